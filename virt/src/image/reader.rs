//! Reading an image: nothing in it is believed before it is checked.

use super::sparse::{self, Side};
use super::{
    Digest, Entry, Error, Index, MAX_INDEX, MAX_JSON, MAX_MANIFEST, Manifest, PageRun, Result, SMALL, Stored,
    error, name,
};
use crate::{Doing, Failure};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// An image, open for reading. Files that the manifest does not list don't exist for it.
#[derive(Debug)]
pub struct Image {
    dir: PathBuf,
    fd: OwnedFd,
    manifest: Manifest,
    digest: Digest,
    /// The bytes of small files that were read to check them.
    small: BTreeMap<String, Vec<u8>>,
}

impl Image {
    /// Opens the image in `dir`: checks the manifest, that every file is there with its size, and the digests of those
    /// up to [`SMALL`] bytes. Larger files are checked when they are read, pages run by run.
    ///
    /// # Errors
    /// [`Error::NoImage`], [`Error::Newer`], [`Error::Damaged`], system errors.
    pub fn open(dir: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::open(dir, flags, Mode::empty()).doing(|| format!("open image {}", dir.display()))?;
        let path = dir.join(name::MANIFEST);
        let file = match beneath(fd.as_fd(), name::MANIFEST, &path) {
            Err(Error::Sys(Failure { errno: nix::errno::Errno::ENOENT, .. })) => {
                return Err(Error::NoImage { dir: dir.to_owned() });
            }
            other => other?,
        };
        let size = size(&file, &path)?;
        if size > MAX_MANIFEST {
            return Err(Error::TooBig { file: path, size, most: MAX_MANIFEST });
        }
        let bytes = exactly(&file, size, &path)?;
        let (manifest, digest) = Manifest::parse(&path, &bytes)?;
        let mut image = Image { dir: dir.to_owned(), fd, manifest, digest, small: BTreeMap::new() };
        let mut small = BTreeMap::new();
        for (name, entry) in &image.manifest.files {
            if entry.size > SMALL {
                image.sized(name, *entry)?;
            } else if name.contains('/') {
                // Contents of the job's files, or what belongs to others: they can be many.
                image.check_digest(name, *entry, &image.sized(name, *entry)?)?;
            } else {
                small.insert(name.clone(), image.bytes(name, SMALL)?);
            }
        }
        image.small = small;
        Ok(image)
    }

    /// What the image is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The digest of its manifest: its identity.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Where it was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory.
    pub fn dir_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether the image has a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.manifest.files.contains_key(name)
    }

    /// The names of the files that begin with `prefix`.
    pub fn names<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.manifest.files.keys().map(String::as_str).filter(move |name| name.starts_with(prefix))
    }

    /// The bytes of a file, which may be at most `most`, with their digest checked.
    ///
    /// # Errors
    /// [`Error::TooBig`] before anything is read, [`Error::Damaged`] (not in the image, other size or digest).
    pub fn bytes(&self, name: &str, most: u64) -> Result<Vec<u8>> {
        self.look(name, most).map(Cow::into_owned)
    }

    fn look(&self, name: &str, most: u64) -> Result<Cow<'_, [u8]>> {
        let entry = self.entry(name)?;
        if entry.size > most {
            return Err(Error::TooBig { file: self.dir.join(name), size: entry.size, most });
        }
        if let Some(bytes) = self.small.get(name) {
            return Ok(bytes.into());
        }
        let file = self.sized(name, entry)?;
        let bytes = exactly(&file, entry.size, &self.dir.join(name))?;
        match entry.digest {
            // The same bytes are digested that are returned.
            Some(digest @ Digest::Plain(_)) => self.compare(name, digest, Digest::of(&bytes))?,
            _ => self.check_digest(name, entry, &file)?,
        }
        Ok(bytes.into())
    }

    /// The value of a JSON file.
    ///
    /// # Errors
    /// As [`Image::bytes`], and [`Error::Damaged`] when it is not the JSON of a `T`.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let bytes = self.look(name, MAX_JSON)?;
        serde_json::from_slice(&bytes).map_err(|e| Error::damaged(&self.dir.join(name), e.to_string()))
    }

    /// A file, open for reading at its beginning, with its digest checked (files of pages have none). To restore a
    /// large content, [`Image::copy`] reads it only once.
    ///
    /// # Errors
    /// [`Error::Damaged`], system errors.
    pub fn file(&self, name: &str) -> Result<File> {
        let entry = self.entry(name)?;
        let file = self.sized(name, entry)?;
        self.check_digest(name, entry, &file)?;
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))
            .doing(|| format!("seek {}", self.dir.join(name).display()))?;
        Ok(file)
    }

    /// Copies the content of a file to the beginning of `to`, an empty file, and checks the digest on the way: after an
    /// error `to` must be thrown away. Blocks of zeroes become holes. Returns the size in bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`], and what writing fails with.
    pub fn copy(&self, name: &str, to: &File) -> Result<u64> {
        let entry = self.entry(name)?;
        let file = self.sized(name, entry)?;
        let content = sparse::copy(&file, Some(to)).map_err(|side| match side {
            Side::Read(errno) => Failure::new(format!("read {}", self.dir.join(name).display()), errno),
            Side::Write(errno) => Failure::new(format!("write what was {} in the image", name), errno),
        })?;
        match entry.digest {
            Some(digest @ Digest::Blocks(_)) => self.compare(name, digest, content.digest)?,
            _ => self.check_digest(name, entry, &file)?,
        }
        Ok(content.size)
    }

    /// A file that was written piece by piece, open, to be read and checked later: see [`Stored`].
    ///
    /// # Errors
    /// [`Error::Damaged`] (not in the image, other size, no digest of its bytes), system errors.
    pub fn stored(&self, name: &str) -> Result<Stored> {
        let entry = self.entry(name)?;
        let (file, path) = (self.sized(name, entry)?, self.dir.join(name));
        match entry.digest {
            Some(Digest::Plain(sum)) => Ok(Stored { file, path, size: entry.size, sum }),
            _ => Err(Error::damaged(&path, "the manifest has no digest of its bytes")),
        }
    }

    /// The file of pages `number`.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is not there or has another size, system errors.
    pub fn pages(&self, number: u16) -> Result<File> {
        self.file(&name::pages(number))
    }

    /// The index of all pages; an empty one when the image has none.
    ///
    /// # Errors
    /// As [`Image::bytes`], and [`Error::Damaged`] when a run breaks a rule or lies outside its file.
    pub fn index(&self) -> Result<Index> {
        if !self.has(name::INDEX) {
            return Ok(Index::default());
        }
        let bytes = self.look(name::INDEX, MAX_INDEX)?;
        Index::parse(&self.dir.join(name::INDEX), &bytes, |number| {
            self.manifest.files.get(&name::pages(number)).map(|entry| entry.size)
        })
    }

    /// Reads the pages of `run` from its file, which [`Image::pages`] gave, and checks them.
    ///
    /// # Errors
    /// [`Error::Damaged`] with the file and the place.
    pub fn read_run(&self, run: &PageRun, file: &File, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.resize(run.len() as usize, 0);
        let path = self.dir.join(name::pages(run.file));
        file.read_exact_at(buffer, run.offset).map_err(|e| ended(&e, &path))?;
        run.verify(buffer).map_err(|e| match e {
            Error::Damaged { why, .. } => Error::Damaged { file: path, why },
            other => other,
        })
    }

    /// Checks everything: all digests and all pages. It reads the whole image.
    ///
    /// # Errors
    /// [`Error::Damaged`] for the first thing that is wrong.
    pub fn verify(&self) -> Result<()> {
        for (name, entry) in &self.manifest.files {
            self.check_digest(name, *entry, &self.sized(name, *entry)?)?;
        }
        let index = self.index()?;
        let mut buffer = Vec::new();
        let mut open: Option<(u16, File)> = None;
        for run in index.runs() {
            let file = match open.take() {
                Some((number, file)) if number == run.file => file,
                _ => self.pages(run.file)?,
            };
            self.read_run(run, &file, &mut buffer)?;
            open = Some((run.file, file));
        }
        Ok(())
    }

    fn entry(&self, name: &str) -> Result<Entry> {
        self.manifest
            .files
            .get(name)
            .copied()
            .ok_or_else(|| Error::damaged(&self.dir.join(name), "the manifest does not list it"))
    }

    /// Opens a file and compares its size with the manifest's.
    fn sized(&self, name: &str, entry: Entry) -> Result<File> {
        let path = self.dir.join(name);
        let file = match beneath(self.fd.as_fd(), name, &path) {
            Err(Error::Sys(Failure { errno: nix::errno::Errno::ENOENT, .. })) => {
                return Err(Error::damaged(&path, "it is missing"));
            }
            other => other?,
        };
        let size = size(&file, &path)?;
        if size != entry.size {
            return Err(Error::damaged(&path, format!("{size} bytes, and the manifest says {}", entry.size)));
        }
        Ok(file)
    }

    fn check_digest(&self, name: &str, entry: Entry, file: &File) -> Result<()> {
        let Some(wanted) = entry.digest else { return Ok(()) };
        let path = self.dir.join(name);
        let found = sparse::digest(file, entry.size, wanted)
            .map_err(|errno| ended(&std::io::Error::from_raw_os_error(errno as i32), &path))?;
        self.compare(name, wanted, found)
    }

    fn compare(&self, name: &str, wanted: Digest, found: Digest) -> Result<()> {
        if wanted == found {
            return Ok(());
        }
        Err(Error::damaged(
            &self.dir.join(name),
            format!("its digest is {found}, and the manifest says {wanted}"),
        ))
    }
}

/// Opens a plain file below `dir`: no `..`, no symlink, no way out, and no waiting for the writer of a FIFO.
fn beneath(dir: BorrowedFd<'_>, name: &str, path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        return match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
            Ok(file) => Ok(file.into()),
            // A rename anywhere in the system while `..` is being looked out for.
            Err(Errno::AGAIN | Errno::INTR) => continue,
            Err(Errno::LOOP | Errno::XDEV) => {
                Err(Error::damaged(path, "a symlink, or a way out of the image"))
            }
            Err(Errno::NXIO) => Err(Error::damaged(path, "not a plain file")),
            Err(e) => Err(e).doing(|| format!("open {}", path.display()))?,
        };
    }
}

/// The size of a plain file; anything else is refused.
fn size(file: &File, path: &Path) -> Result<u64> {
    let meta = file.metadata().doing(|| format!("stat {}", path.display()))?;
    if !meta.is_file() {
        return Err(Error::damaged(path, "not a plain file"));
    }
    Ok(meta.len())
}

/// Reads the first `size` bytes, which fstat said are there.
fn exactly(file: &File, size: u64, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|e| ended(&e, path))?;
    Ok(bytes)
}

/// A failed read. An end that comes too early means that the file is being changed right now.
fn ended(error: &std::io::Error, path: &Path) -> Error {
    if error.kind() == std::io::ErrorKind::UnexpectedEof || error.raw_os_error().is_none() {
        return Error::damaged(path, "it became shorter while it was read");
    }
    Failure::new(format!("read {}", path.display()), error::errno(error)).into()
}
