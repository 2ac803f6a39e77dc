//! Going through an archive, member by member.

use super::super::{Error, Result};
use super::unreadable;
use crate::Doing;
use rustix::fs::{Mode, OFlags};
use std::cell::Cell;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tar::EntryType;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
}

/// A member: its path, without a slash at its end; what it is; its size in bytes, and its content.
pub(super) struct Member<'m> {
    pub name: &'m str,
    pub kind: Kind,
    pub size: u64,
    pub content: &'m mut dyn Read,
}

/// Whether to go on.
pub(super) enum Then {
    Next,
    Stop,
}

/// The most bytes of headers that a member may have. A long name and the attributes of a file are in headers too, and are
/// read into memory as a whole.
const HEADERS: u64 = 1 << 20;

/// An archive that is there.
pub(super) struct Archive {
    pub path: PathBuf,
}

impl Archive {
    /// Shows every member to `visit`, until that has seen enough.
    ///
    /// # Errors
    /// Anything but files and folders in it, and names that are not text; those of `visit`; [`Error::Damaged`].
    pub fn walk(&self, mut visit: impl FnMut(Member<'_>) -> Result<Then>) -> Result<()> {
        let path = &self.path;
        let left = Rc::new(Cell::new(None));
        let guarded = Guarded { inner: open(path)?, left: Rc::clone(&left) };
        let mut archive = tar::Archive::new(guarded);
        let mut members = archive.entries().map_err(|e| unreadable(path, &e))?;
        loop {
            left.set(Some(HEADERS));
            let Some(member) = members.next() else { return Ok(()) };
            left.set(None);
            let mut member = member.map_err(|e| unreadable(path, &e))?;
            let name = member.path_bytes().into_owned();
            let refuse = |why: &str| {
                let name = String::from_utf8_lossy(&name).escape_debug().to_string();
                Error::damaged(path, format!("{name} in it is {why}"))
            };
            let kind = match member.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => Kind::File,
                EntryType::Directory => Kind::Folder,
                // Attributes for all that follow: of a comment and the like.
                EntryType::XGlobalHeader => {
                    drain(&mut member).map_err(|e| unreadable(path, &e))?;
                    continue;
                }
                EntryType::Symlink | EntryType::Link => return Err(refuse("a link")),
                EntryType::GNUSparse => {
                    return Err(refuse("a sparse file, of which nobody knows how long it is"));
                }
                _ => return Err(refuse("neither a file nor a folder")),
            };
            let text = std::str::from_utf8(&name).map_err(|_| refuse("not named in UTF-8"))?;
            let text = text.strip_prefix("./").unwrap_or(text).trim_end_matches('/');
            let size = member.size();
            if !matches!(text, "" | ".")
                && let Then::Stop = visit(Member { name: text, kind, size, content: &mut member })?
            {
                return Ok(());
            }
            // What is left of it is read here, so that only headers are read in the step to the next one.
            drain(&mut member).map_err(|e| unreadable(path, &e))?;
        }
    }
}

fn drain(member: &mut impl Read) -> std::io::Result<()> {
    std::io::copy(member, &mut std::io::sink()).map(drop)
}

/// Opens an archive and takes off its compression, which it is known by its first bytes.
fn open(path: &Path) -> Result<Box<dyn Read>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file: File =
        rustix::fs::open(path, flags, Mode::empty()).doing(|| format!("open {}", path.display()))?.into();
    if !file.metadata().doing(|| format!("stat {}", path.display()))?.is_file() {
        return Err(Error::Unfit {
            file: path.to_owned(),
            why: "is not a plain file, which is read twice".into(),
        });
    }
    let mut first = [0; 4];
    // A shorter file is no archive of any kind.
    let _ = std::os::unix::fs::FileExt::read_at(&file, &mut first, 0)
        .doing(|| format!("read {}", path.display()))?;
    let file = BufReader::with_capacity(1 << 17, file);
    Ok(match first {
        [0x28, 0xb5, 0x2f, 0xfd] => {
            Box::new(zstd::Decoder::with_buffer(file).map_err(|e| unreadable(path, &e))?)
        }
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        _ => Box::new(file),
    })
}

/// A reader that refuses to be read too far while a limit is set.
struct Guarded<R> {
    inner: R,
    left: Rc<Cell<Option<u64>>>,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(left) = self.left.get() else { return self.inner.read(buffer) };
        if left == 0 {
            return Err(std::io::Error::other("a member's name or attributes are too long"));
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let length = self.inner.read(&mut buffer[..most])?;
        self.left.set(Some(left - length as u64));
        Ok(length)
    }
}
