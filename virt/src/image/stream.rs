//! An image on its way to another host, as a stream of bytes:
//!
//! ```text
//! "CKRUNIMG" │ length of the manifest, 8 bytes, little endian │ manifest.json │ file │ file │ …
//! ```
//!
//! The files follow each other in the order of their names, each as long as the manifest says. Who receives it relies on
//! nothing but lengths and names; the digests are checked by whoever reads the image then.

use super::{Committed, Entry, Error, Image, MAX_MANIFEST, Manifest, Result, Writer, name};
use crate::{Doing, Failure};
use std::io::{Read, Write};
use std::path::Path;

const MAGIC: &[u8; 8] = b"CKRUNIMG";
/// How much is sent, or received, between two looks at how far it is.
const STEP: u64 = 4 << 20;

/// Sends an image; `told` gets the number of bytes that have been sent.
///
/// # Errors
/// The image is damaged; the receiver has closed the stream, other system errors.
pub fn send(image: &Image, to: &mut impl Write, told: &mut dyn FnMut(u64)) -> Result<u64> {
    let failed = |e: &std::io::Error| Failure::new("send an image", super::error::errno(e));
    let (manifest, _) = image.manifest().to_bytes()?;
    let head = [MAGIC, (manifest.len() as u64).to_le_bytes().as_slice(), &manifest].concat();
    to.write_all(&head).map_err(|e| failed(&e))?;
    let mut sent = head.len() as u64;
    for (name, entry) in &image.manifest().files {
        let mut file = match name::pages_number(name) {
            Some(number) => image.pages(number)?,
            None => image.file(name)?,
        };
        let mut left = entry.size;
        while left > 0 {
            let some = std::io::copy(&mut (&mut file).take(left.min(STEP)), to).map_err(|e| failed(&e))?;
            if some == 0 {
                return Err(Error::damaged(&image.dir().join(name), "it has become shorter"));
            }
            (left, sent) = (left - some, sent + some);
            told(sent);
        }
    }
    to.flush().map_err(|e| failed(&e))?;
    Ok(sent)
}

/// Receives an image and makes it `dir`; `told` gets the number of bytes that have come and of all.
///
/// # Errors
/// [`Error::Damaged`] for a stream that is none or ends too early, [`Error::Newer`], and those of a [`Writer`].
pub fn receive(from: &mut impl Read, dir: &Path, told: &mut dyn FnMut(u64, u64)) -> Result<Committed> {
    let mut writer = Writer::create(dir)?;
    let short = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::damaged(dir, "the stream has ended too early"),
        _ => Failure::new("receive an image", super::error::errno(&e)).into(),
    };
    let mut head = [0; 16];
    from.read_exact(&mut head).map_err(short)?;
    let (magic, length) = head.split_at(MAGIC.len());
    let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
    if magic != MAGIC {
        return Err(Error::damaged(dir, "the stream does not begin like an image"));
    }
    if length > MAX_MANIFEST {
        return Err(Error::TooBig { file: dir.join(name::MANIFEST), size: length, most: MAX_MANIFEST });
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes).map_err(short)?;
    let (manifest, digest) = Manifest::parse(&dir.join(name::MANIFEST), &bytes)?;
    let all = manifest.size();
    let mut come = 0;
    for (name, entry) in &manifest.files {
        writer.receive(name, *entry, from, &mut |some| {
            come += some;
            told(come, all);
        })?;
    }
    let committed = writer.commit(manifest)?;
    if committed.digest != digest {
        return Err(Error::damaged(dir, "its manifest lists other files than an image has"));
    }
    Ok(committed)
}

impl Writer {
    /// Writes a file that comes from another image, whose entry says how long it is. Blocks of zeroes become holes.
    pub(super) fn receive(
        &mut self,
        name: &str,
        entry: Entry,
        from: &mut impl Read,
        told: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let file = match name::pages_number(name) {
            Some(number) => {
                self.pages(number.into())?.file().try_clone().doing(|| "duplicate a descriptor")?
            }
            None => self.begin(name)?,
        };
        let path = self.partial.path(name);
        let full = |e: &std::io::Error| Error::write(&path, super::error::errno(e));
        let zeroes = vec![0; entry.size.min(STEP) as usize];
        let mut buffer = zeroes.clone();
        let mut at = 0;
        while at < entry.size {
            let some = &mut buffer[..(entry.size - at).min(STEP) as usize];
            from.read_exact(some).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => Error::damaged(&path, "the stream has ended in it"),
                // Not the kernel's: what decompresses it has found it damaged.
                _ if e.raw_os_error().is_none() => Error::damaged(&path, e.to_string()),
                _ => Failure::new("receive an image", super::error::errno(&e)).into(),
            })?;
            if some[..] != zeroes[..some.len()] {
                std::os::unix::fs::FileExt::write_all_at(&file, some, at).map_err(|e| full(&e))?;
            }
            at += some.len() as u64;
            told(some.len() as u64);
        }
        file.set_len(entry.size).map_err(|e| full(&e))?;
        if name::pages_number(name).is_none() {
            self.finish(name, entry);
        }
        Ok(())
    }
}
