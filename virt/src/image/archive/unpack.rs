//! From an archive to an image.

use super::super::{Committed, Digest, Entry, Error, Image, MAX_MANIFEST, Manifest, Result, Writer, name};
use super::read::{Archive, Kind, Member, Then};
use super::{CLIENT, IMAGE, unreadable};
use crate::Doing;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Unpacks the archive `file` and makes it the image `dir`, which must not exist. `told` gets the number of bytes of the
/// image that there are, and of all.
///
/// # Errors
/// [`Error::Exists`]; [`Error::Damaged`] for an archive that is none, has no image in it, or anything that it should not
/// have; those of a [`Writer`]. Nothing is left then.
pub fn unpack(file: &Path, dir: &Path, told: &mut dyn FnMut(u64, u64)) -> Result<Committed> {
    if std::fs::symlink_metadata(dir).is_ok() {
        return Err(Error::Exists { path: dir.to_owned() });
    }
    let archive = Archive { path: file.to_owned() };
    let Found { prefix, manifest, digest } = Found::look(&archive)?;
    let mut taking = Taking {
        archive: file,
        prefix,
        wanted: manifest.files.clone(),
        writer: Writer::create(dir)?,
        come: 0,
        all: manifest.size(),
        told,
    };
    archive.walk(|member| taking.take(member).map(|()| Then::Next))?;
    let Taking { wanted, writer, .. } = taking;
    if let Some(name) = wanted.keys().next() {
        return Err(Error::damaged(file, format!("{prefix}{name} is missing in it")));
    }
    writer.commit_if(manifest, |folder| {
        let image = Image::open(folder)?;
        if image.digest() != digest {
            return Err(Error::damaged(file, "its manifest lists other files than an image has"));
        }
        image.verify()
    })
}

/// The manifest of an archive, and what is before the names of the image's files.
struct Found {
    prefix: &'static str,
    manifest: Manifest,
    digest: Digest,
}

impl Found {
    fn look(archive: &Archive) -> Result<Found> {
        let file = &archive.path;
        let mut found = None;
        archive.walk(|Member { name, kind, size, content }| {
            let prefix = match name.strip_suffix(name::MANIFEST) {
                Some(IMAGE) => IMAGE,
                Some("") => "",
                _ => return Ok(Then::Next),
            };
            if kind != Kind::File || size > MAX_MANIFEST {
                return Err(Error::damaged(file, format!("{name} in it is no manifest")));
            }
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).map_err(|e| unreadable(file, &e))?;
            let (manifest, digest) = Manifest::parse(&file.join(name), &bytes)?;
            found = Some(Found { prefix, manifest, digest });
            Ok(Then::Stop)
        })?;
        found.ok_or_else(|| {
            Error::damaged(
                file,
                format!("there is no {IMAGE}{} in it: it is no checkpoint of ckrun's", name::MANIFEST),
            )
        })
    }
}

/// The second way through the archive.
struct Taking<'t> {
    archive: &'t Path,
    prefix: &'static str,
    /// What has not come yet.
    wanted: BTreeMap<String, Entry>,
    writer: Writer,
    come: u64,
    all: u64,
    told: &'t mut dyn FnMut(u64, u64),
}

impl Taking<'_> {
    fn take(&mut self, member: Member<'_>) -> Result<()> {
        match member.name.strip_prefix(self.prefix) {
            // It was read before, and is written from what it says.
            Some(name::MANIFEST) => Ok(()),
            Some(name) => {
                let name = name.to_owned();
                self.take_of_image(&name, member)
            }
            None if member.name == IMAGE.trim_end_matches('/') => Ok(()),
            None => self.take_of_client(member),
        }
    }

    fn take_of_image(&mut self, name: &str, member: Member<'_>) -> Result<()> {
        if member.kind == Kind::Folder {
            // Folders are made for the files in them.
            return Ok(());
        }
        let Some(entry) = self.wanted.remove(name) else {
            let why = format!("{} in it comes twice, or is not in its manifest", member.name);
            return Err(Error::damaged(self.archive, why));
        };
        if entry.size != member.size {
            let why = format!(
                "{} in it has {} bytes, and the manifest says {}",
                member.name, member.size, entry.size
            );
            return Err(Error::damaged(self.archive, why));
        }
        let Taking { writer, come, all, told, .. } = self;
        let mut content = member.content;
        writer.receive(name, entry, &mut content, &mut |some| {
            *come += some;
            told(*come, *all);
        })
    }

    fn take_of_client(&mut self, member: Member<'_>) -> Result<()> {
        // So that what is checked is the whole name: a dot at its beginning would not be seen behind the folder's.
        name::check(member.name).map_err(|e| Error::damaged(self.archive, e.to_string()))?;
        let name = format!("{CLIENT}/{}", member.name);
        if member.kind == Kind::Folder {
            return self.writer.folder_beside(&name);
        }
        let mut file = self.writer.beside(&name)?;
        let copied = std::io::copy(&mut member.content.take(member.size), &mut file)
            .map_err(|e| unreadable(self.archive, &e))?;
        if copied != member.size {
            return Err(Error::damaged(self.archive, format!("it ends in {}", member.name)));
        }
        Ok(file.sync_all().doing(|| format!("fsync {name}"))?)
    }
}
