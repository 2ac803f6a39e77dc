//! Making an image.

use super::folder;
use super::partial::Partial;
use super::sparse::{self, Side};
use super::{
    Digest, Entry, Error, Index, MAX_INDEX, MAX_JSON, MAX_MANIFEST, Manifest, Owner, PageRun, PagesWriter,
    Result, name,
};
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Writes an image. Nothing of it is to be seen under its name before [`Writer::commit`] has returned, and without a
/// commit everything is removed when the writer is dropped; when it is killed, by the next writer for the same place.
#[derive(Debug)]
pub struct Writer {
    pub(super) partial: Partial,
    /// Every file begun; None until it is finished.
    files: BTreeMap<String, Option<Entry>>,
    /// Files of pages; their sizes are known when all have been written.
    pages: BTreeSet<u16>,
    folders: BTreeSet<String>,
}

/// An image that is complete.
#[derive(Debug)]
pub struct Committed {
    /// Where it is.
    pub dir: PathBuf,
    /// Its manifest, with all files.
    pub manifest: Manifest,
    /// The digest of its manifest: its identity for [`super::Parent`].
    pub digest: Digest,
}

impl Writer {
    /// Begins an image that will be `dir`. Directories above it are made as needed. If `dir` exists, it must be a
    /// directory without an image; the files in it that belong to others stay as they are.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Busy`] (another writer is alive there), [`Error::Foreign`], system errors.
    pub fn create(dir: &Path) -> Result<Self> {
        Self::begin_at(dir, false)
    }

    /// Begins an image that will be `dir` like [`Writer::create`], but an image that is there already is replaced by the
    /// commit, and stays if there is none.
    ///
    /// # Errors
    /// As [`Writer::create`], and [`Error::Damaged`] or [`Error::Newer`] when the old manifest can't be read.
    pub fn replace(dir: &Path) -> Result<Self> {
        Self::begin_at(dir, true)
    }

    fn begin_at(dir: &Path, replace: bool) -> Result<Self> {
        let partial = Partial::claim(dir, replace)?;
        Ok(Writer { partial, files: BTreeMap::new(), pages: BTreeSet::new(), folders: BTreeSet::new() })
    }

    /// The folder that the files are in until the commit, for calls that take a directory.
    pub fn dir_fd(&self) -> BorrowedFd<'_> {
        self.partial.work()
    }

    /// Writes `value` as the JSON file `name`.
    ///
    /// # Errors
    /// [`Error::Unfit`] when it has no form in JSON, and those of [`Writer::bytes`].
    pub fn json<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<()> {
        let mut bytes = serde_json::to_vec(value)
            .map_err(|e| Error::Unfit { file: self.partial.path(name), why: e.to_string() })?;
        bytes.push(b'\n');
        self.limit(name, bytes.len() as u64, MAX_JSON)?;
        self.bytes(name, &bytes)
    }

    /// Writes a file in one piece.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Exists`], [`Error::NoRoom`], system errors.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let file = self.begin(name)?;
        if !bytes.is_empty() {
            folder::fill(&file, bytes, &self.partial.path(name))?;
        }
        self.finish(name, Entry { size: bytes.len() as u64, digest: Some(Digest::of(bytes)) });
        Ok(())
    }

    /// Begins a file that is written piece by piece.
    ///
    /// # Errors
    /// As [`Writer::bytes`].
    pub fn file(&mut self, name: &str) -> Result<FileWriter<'_>> {
        let file = self.begin(name)?;
        Ok(FileWriter { writer: self, name: name.to_owned(), file, sum: Xxh3::new(), size: 0 })
    }

    /// Copies the whole content of `source` into the file `name`; holes stay holes, and blocks of zeroes become some.
    /// The offset of `source` does not move: it may be shared with a job. Returns the size in bytes.
    ///
    /// # Errors
    /// As [`Writer::bytes`], and what reading fails with.
    pub fn copy(&mut self, name: &str, source: impl AsFd) -> Result<u64> {
        let path = self.partial.path(name);
        let source = sparse::reopen(source, Path::new("the file to be copied into the image"))?;
        let file = self.begin(name)?;
        let content = sparse::copy(&source, Some(&file)).map_err(|side| match side {
            Side::Read(errno) => Failure::new(format!("read what goes to {}", path.display()), errno).into(),
            Side::Write(errno) => Error::write(&path, errno),
        })?;
        self.finish(name, Entry { size: content.size, digest: Some(content.digest) });
        Ok(content.size)
    }

    /// Makes the folder `name` for somebody who writes files into it himself, and returns its path. [`Writer::adopt`]
    /// takes them over.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Exists`], system errors.
    pub fn folder(&mut self, name: &str) -> Result<PathBuf> {
        name::check(name)?;
        self.partial.refuse_taken(name)?;
        self.make_folders(name)?;
        self.make_folder(name)?;
        Ok(self.partial.work_path().join(name))
    }

    /// Takes over all files in the folder `name`, at any depth. Nobody may write to them afterwards. Empty folders,
    /// modes and owners are not kept.
    ///
    /// # Errors
    /// [`Error::Unfit`] for anything but files and folders, [`Error::Name`] for a name that an image can't have.
    pub fn adopt(&mut self, name: &str) -> Result<()> {
        name::check(name)?;
        let path = self.partial.path(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(self.partial.work(), name, flags, Mode::empty())
            .doing(|| format!("open {}", path.display()))?;
        self.folders.insert(name.to_owned());
        for entry in Dir::read_from(&folder).doing(|| format!("read {}", path.display()))? {
            let entry = entry.doing(|| format!("read {}", path.display()))?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let inner = format!("{name}/{}", entry.file_name().to_string_lossy());
            name::check(&inner)?;
            let stat = rustix::fs::statat(&folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                .doing(|| format!("stat {}", self.partial.path(&inner).display()))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => self.adopt(&inner)?,
                FileType::RegularFile => self.adopt_file(&inner)?,
                other => {
                    let why = format!("an image holds files and folders only, and this is a {other:?}");
                    return Err(Error::Unfit { file: self.partial.path(&inner), why });
                }
            }
        }
        Ok(())
    }

    fn adopt_file(&mut self, name: &str) -> Result<()> {
        let path = self.partial.path(name);
        let file = self.open(name, OFlags::RDONLY)?;
        let content =
            sparse::copy(&file, None).map_err(Side::errno).doing(|| format!("read {}", path.display()))?;
        self.finish(name, Entry { size: content.size, digest: Some(content.digest) });
        Ok(())
    }

    /// Makes the file of pages number `worker`, for a thread of its own. All must have been written when the image is
    /// committed.
    ///
    /// # Errors
    /// As [`Writer::bytes`], and [`Error::Name`] for a number above 65535.
    pub fn pages(&mut self, worker: usize) -> Result<PagesWriter> {
        let Ok(number) = u16::try_from(worker) else {
            return Err(Error::Name { name: format!("pages-{worker}.img"), why: "a number above 65535" });
        };
        let name = name::pages(number);
        self.partial.refuse_taken(&name)?;
        let pages = PagesWriter::create(self.partial.work(), number, self.partial.path(&name))?;
        self.pages.insert(number);
        Ok(pages)
    }

    /// Writes the index of all pages, in any order of owners, when the pages themselves have been written.
    ///
    /// # Errors
    /// [`Error::Unfit`] when a run breaks a rule of the index or lies outside its file, and those of
    /// [`Writer::bytes`].
    pub fn index(&mut self, sections: &[(Owner, Vec<PageRun>)]) -> Result<()> {
        let sizes = self.pages_sizes()?;
        let index = Index::new(sections, |number| sizes.get(&number).copied())
            .map_err(|why| Error::Unfit { file: self.partial.path(name::INDEX), why })?;
        let bytes = index.to_bytes();
        self.limit(name::INDEX, bytes.len() as u64, MAX_INDEX)?;
        self.bytes(name::INDEX, &bytes)
    }

    /// Completes the image: `manifest` gets the files, everything is put on the disk, and the image appears under its
    /// name. If this fails there is no image, and nothing else is left either.
    ///
    /// # Errors
    /// [`Error::Unfinished`], [`Error::Exists`] (something has taken the name meanwhile), [`Error::NoRoom`], system
    /// errors.
    pub fn commit(self, manifest: Manifest) -> Result<Committed> {
        self.commit_if(manifest, |_| Ok(()))
    }

    /// [`Writer::commit`], unless something is wrong with the folder that is to become the image.
    pub(super) fn commit_if(
        mut self,
        mut manifest: Manifest,
        good: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Committed> {
        manifest.files.clear();
        for (number, size) in self.pages_sizes()? {
            manifest.files.insert(name::pages(number), Entry { size, digest: None });
        }
        for (file, entry) in std::mem::take(&mut self.files) {
            let Some(entry) = entry else { return Err(Error::Unfinished { file: self.partial.path(&file) }) };
            manifest.files.insert(file, entry);
        }
        let (bytes, digest) = manifest.to_bytes()?;
        self.limit(name::MANIFEST, bytes.len() as u64, MAX_MANIFEST)?;
        let path = self.partial.path(name::MANIFEST);
        let file = folder::create(self.partial.work(), name::MANIFEST, OFlags::WRONLY, &path)?;
        folder::fill(&file, &bytes, &path)?;
        good(&self.partial.work_path())?;
        self.sync(manifest.files.keys().map(String::as_str))?;
        let entries: BTreeSet<_> = manifest.files.keys().map(|file| name::top(file).to_owned()).collect();
        self.partial.commit(entries)?;
        Ok(Committed { dir: self.partial.dir().to_owned(), manifest, digest })
    }

    /// Puts everything on the disk, the manifest too.
    ///
    /// Each file by fsync(2), not the whole file system by syncfs(2): that would also wait for what every other process
    /// has written there, which on a busy host is seconds. All files are handed to the disk first, so that the first
    /// fsync commits the journal for all and the others find their work done.
    fn sync<'a>(&self, files: impl Iterator<Item = &'a str>) -> Result<()> {
        let work = self.partial.work();
        let kind =
            rustix::fs::fstatfs(work).doing(|| format!("statfs {}", self.partial.dir().display()))?.f_type;
        if kind == libc::TMPFS_MAGIC {
            // Memory forgets everything in a crash, synced or not.
            return Ok(());
        }
        let names: Vec<_> = files.chain([name::MANIFEST]).collect();
        // Not more at once than a common limit on descriptors leaves room for.
        for names in names.chunks(256) {
            let mut open = Vec::with_capacity(names.len());
            for name in names {
                let file = self.open(name, OFlags::RDONLY)?;
                crate::sys::start_writeback(file.as_fd())
                    .map_err(|e| Error::write(&self.partial.path(name), e))?;
                open.push((name, file));
            }
            for (name, file) in open {
                rustix::fs::fsync(&file)
                    .map_err(|e| Error::write(&self.partial.path(name), Errno::from_raw(e.raw_os_error())))?;
            }
        }
        let fsync = |folder: BorrowedFd<'_>, path: PathBuf| {
            rustix::fs::fsync(folder).doing(|| format!("fsync {}", path.display()))
        };
        for folder in &self.folders {
            let path = self.partial.path(folder);
            let folder = rustix::fs::openat(work, folder, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .doing(|| format!("open {}", path.display()))?;
            fsync(folder.as_fd(), path)?;
        }
        Ok(fsync(work, self.partial.work_path())?)
    }

    /// Makes the file `name` beside those of the image. It goes with the folder that is being written, so only where that
    /// becomes the image under its name.
    pub(super) fn beside(&mut self, name: &str) -> Result<File> {
        name::check(name)?;
        self.make_folders(name)?;
        folder::create(self.partial.work(), name, OFlags::WRONLY, &self.partial.path(name))
    }

    /// Makes the folder `name`, and those above it, unless they are there.
    pub(super) fn folder_beside(&mut self, name: &str) -> Result<()> {
        name::check(name)?;
        self.make_folders(name)?;
        self.make_folder(name)
    }

    pub(super) fn begin(&mut self, name: &str) -> Result<File> {
        name::check(name)?;
        self.partial.refuse_taken(name)?;
        if name::pages_number(name).is_some() {
            return Err(Error::Name { name: name.to_owned(), why: "the name of a file of pages" });
        }
        self.make_folders(name)?;
        let file = folder::create(self.partial.work(), name, OFlags::WRONLY, &self.partial.path(name))?;
        self.files.insert(name.to_owned(), None);
        Ok(file)
    }

    pub(super) fn finish(&mut self, name: &str, entry: Entry) {
        self.files.insert(name.to_owned(), Some(entry));
    }

    fn limit(&self, name: &str, size: u64, most: u64) -> Result<()> {
        if size > most {
            return Err(Error::TooBig { file: self.partial.path(name), size, most });
        }
        Ok(())
    }

    fn make_folders(&mut self, name: &str) -> Result<()> {
        name::folders(name).try_for_each(|folder| self.make_folder(folder))
    }

    fn make_folder(&mut self, folder: &str) -> Result<()> {
        if self.folders.contains(folder) {
            return Ok(());
        }
        let path = self.partial.path(folder);
        rustix::fs::mkdirat(self.partial.work(), folder, Mode::RWXU)
            .map_err(|e| Error::write(&path, Errno::from_raw(e.raw_os_error())))?;
        self.folders.insert(folder.to_owned());
        Ok(())
    }

    fn open(&self, name: &str, access: OFlags) -> Result<File> {
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file: OwnedFd = rustix::fs::openat(self.partial.work(), name, flags, Mode::empty())
            .doing(|| format!("open {}", self.partial.path(name).display()))?;
        Ok(file.into())
    }

    fn pages_sizes(&self) -> Result<BTreeMap<u16, u64>> {
        self.pages
            .iter()
            .map(|&number| {
                let name = name::pages(number);
                let stat = rustix::fs::statat(self.partial.work(), &name, AtFlags::SYMLINK_NOFOLLOW)
                    .doing(|| format!("stat {}", self.partial.path(&name).display()))?;
                Ok((number, stat.st_size.cast_unsigned()))
            })
            .collect()
    }
}

/// A file of an image, written piece by piece.
#[must_use = "without finish() the image can't be committed"]
pub struct FileWriter<'w> {
    writer: &'w mut Writer,
    name: String,
    file: File,
    sum: Xxh3,
    size: u64,
}

impl FileWriter<'_> {
    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`Error::NoRoom`], system errors.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|e| Error::write(&self.writer.partial.path(&self.name), super::error::errno(&e)))?;
        self.sum.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Adds the file to the image and returns its size in bytes.
    pub fn finish(self) -> u64 {
        let digest = Some(Digest::Plain(self.sum.digest128()));
        self.writer.finish(&self.name, Entry { size: self.size, digest });
        self.size
    }
}

impl std::fmt::Debug for FileWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileWriter")
            .field("name", &self.name)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
