//! From an image to an archive.

use super::super::{Error, Image, Manifest, Result, error, name};
use super::{CLIENT, Compression, IMAGE};
use crate::{Doing, Failure};
use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tar::{Builder, EntryType, Header};

/// Writes the image in `dir`, with all its digests checked, to the archive `file`, which must not exist. `told` gets the
/// number of bytes of the image that are in it, and of all. Returns the size of the archive in bytes.
///
/// # Errors
/// The image is damaged; [`Error::Exists`], [`Error::Busy`], [`Error::NoRoom`]; a link among the client's files. Nothing
/// is left then.
pub fn pack(
    dir: &Path,
    file: &Path,
    compression: Compression,
    told: &mut dyn FnMut(u64, u64),
) -> Result<u64> {
    let image = Image::open(dir)?;
    image.verify()?;
    let mut output = Output::create(file)?;
    let to = output.file.try_clone().doing(|| "duplicate a descriptor")?;
    let manifest = image.manifest();
    let mut packing = Packing {
        tar: Builder::new(Encoder::new(to, compression).map_err(|e| output.failed(&e))?),
        time: seconds(manifest.taken),
        output: &output,
    };
    let client = dir.join(CLIENT);
    if client.symlink_metadata().is_ok() {
        packing.folder_of_client(&client, "")?;
    }
    packing.folder(IMAGE)?;
    packing.image(&image, manifest, told)?;
    let encoder = packing.tar.into_inner().map_err(|e| output.failed(&e))?;
    encoder.finish().map_err(|e| output.failed(&e))?;
    output.commit()
}

/// tar's times are whole seconds.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

struct Packing<'p> {
    tar: Builder<Encoder>,
    time: u64,
    output: &'p Output,
}

impl Packing<'_> {
    fn image(&mut self, image: &Image, manifest: &Manifest, told: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let (bytes, _) = manifest.to_bytes()?;
        let of = |name: &str| format!("{IMAGE}{name}");
        self.file(&of(name::MANIFEST), bytes.len() as u64, &mut bytes.as_slice(), image.dir())?;
        let mut come = 0;
        for (name, entry) in &manifest.files {
            let mut file = match name::pages_number(name) {
                Some(number) => image.pages(number)?,
                None => image.file(name)?,
            };
            let mut counted = Told { inner: &mut file, come: &mut come, all: manifest.size(), told };
            self.file(&of(name), entry.size, &mut counted, image.dir())?;
        }
        Ok(())
    }

    /// What a client wants to have in the archive besides.
    fn folder_of_client(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        let reading = || format!("read {}", folder.display());
        let mut entries: Vec<_> =
            std::fs::read_dir(folder).doing(reading)?.collect::<Result<_, _>>().doing(reading)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            name::check(&name)?;
            let flags =
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let mut file: File = rustix::fs::open(&path, flags, Mode::empty())
                .doing(|| format!("open {}", path.display()))?
                .into();
            let stat = file.metadata().doing(|| format!("stat {}", path.display()))?;
            if stat.is_dir() {
                let name = format!("{name}/");
                self.folder(&name)?;
                self.folder_of_client(&path, &name)?;
            } else if stat.is_file() && !format!("{name}/").starts_with(IMAGE) {
                self.file(&name, stat.len(), &mut file, &path)?;
            } else {
                let why = "neither a file nor a folder that can be in an archive".into();
                return Err(Error::Unfit { file: path, why });
            }
        }
        Ok(())
    }

    fn folder(&mut self, name: &str) -> Result<()> {
        let header = self.header(EntryType::Directory, 0o700, 0);
        self.append(header, name, &mut std::io::empty())
    }

    /// Adds a file of `size` bytes; `from` is for messages.
    fn file(&mut self, name: &str, size: u64, content: &mut dyn Read, from: &Path) -> Result<()> {
        let header = self.header(EntryType::Regular, 0o600, size);
        let mut exact = Exactly { inner: content, left: size };
        self.append(header, name, &mut exact)?;
        if exact.left > 0 {
            return Err(Error::damaged(from, format!("{name} has become shorter")));
        }
        Ok(())
    }

    fn header(&self, kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.time);
        header.set_size(size);
        header
    }

    fn append(&mut self, mut header: Header, name: &str, content: &mut dyn Read) -> Result<()> {
        self.tar.append_data(&mut header, name, content).map_err(|e| self.output.failed(&e))
    }
}

/// No more than what the header says: a file that grows meanwhile would be taken for headers.
struct Exactly<'e> {
    inner: &'e mut dyn Read,
    left: u64,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.inner.take(self.left).read(buffer)?;
        self.left -= length as u64;
        Ok(length)
    }
}

/// A reader of which somebody hears how far it is.
struct Told<'t> {
    inner: &'t mut File,
    come: &'t mut u64,
    all: u64,
    told: &'t mut dyn FnMut(u64, u64),
}

impl Read for Told<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.inner.read(buffer)?;
        *self.come += length as u64;
        (self.told)(*self.come, self.all);
        Ok(length)
    }
}

enum Encoder {
    None(BufWriter<File>),
    Gzip(flate2::write::GzEncoder<BufWriter<File>>),
    Zstd(zstd::Encoder<'static, BufWriter<File>>),
}

impl Encoder {
    fn new(to: File, compression: Compression) -> std::io::Result<Encoder> {
        let to = BufWriter::with_capacity(1 << 17, to);
        Ok(match compression {
            Compression::None => Encoder::None(to),
            Compression::Gzip => {
                Encoder::Gzip(flate2::write::GzEncoder::new(to, flate2::Compression::fast()))
            }
            Compression::Zstd => Encoder::Zstd(zstd::Encoder::new(to, zstd::DEFAULT_COMPRESSION_LEVEL)?),
        })
    }

    fn finish(self) -> std::io::Result<()> {
        match self {
            Encoder::None(to) => to,
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Zstd(encoder) => encoder.finish()?,
        }
        .flush()
    }
}

impl Write for Encoder {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Encoder::None(to) => to.write(bytes),
            Encoder::Gzip(encoder) => encoder.write(bytes),
            Encoder::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Encoder::None(to) => to.flush(),
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// The archive while it is written, under a name of its own. It is locked, so that one whose writer was killed is known
/// by its lock's absence.
struct Output {
    file: File,
    path: PathBuf,
    partial: PathBuf,
    done: bool,
}

impl Output {
    fn create(path: &Path) -> Result<Output> {
        let taken = || Error::Exists { path: path.to_owned() };
        if path.symlink_metadata().is_ok() {
            return Err(taken());
        }
        let mut partial = path.file_name().ok_or_else(taken)?.to_owned();
        partial.push(".partial");
        let partial = path.with_file_name(partial);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        loop {
            let file: File = rustix::fs::open(&partial, flags, Mode::RUSR | Mode::WUSR)
                .doing(|| format!("open {}", partial.display()))?
                .into();
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(Error::Busy { path: partial }),
                Err(e) => return Err(e).doing(|| format!("flock {}", partial.display()))?,
            }
            // Between the open and the lock its writer may have finished, or given up.
            let own = file.metadata().doing(|| format!("stat {}", partial.display()))?;
            match partial.symlink_metadata() {
                Ok(named) if (named.dev(), named.ino()) == (own.dev(), own.ino()) => {}
                _ => continue,
            }
            if !own.is_file() || own.uid() != rustix::process::geteuid().as_raw() {
                return Err(Error::Foreign { path: partial, why: "it is somebody else's" });
            }
            file.set_len(0).doing(|| format!("truncate {}", partial.display()))?;
            return Ok(Output { file, path: path.to_owned(), partial, done: false });
        }
    }

    fn failed(&self, e: &std::io::Error) -> Error {
        match e.raw_os_error() {
            Some(_) => Error::write(&self.path, error::errno(e)),
            None => Error::Unfit { file: self.path.clone(), why: e.to_string() },
        }
    }

    fn commit(&mut self) -> Result<u64> {
        self.file.sync_all().map_err(|e| self.failed(&e))?;
        let size = self.file.metadata().doing(|| format!("stat {}", self.partial.display()))?.len();
        let (at, flags) = (rustix::fs::CWD, RenameFlags::NOREPLACE);
        let renamed = match rustix::fs::renameat_with(at, &self.partial, at, &self.path, flags) {
            // A file system that knows no flags (NFS): the look and the rename are two steps there.
            Err(Errno::INVAL) if self.path.symlink_metadata().is_err() => {
                rustix::fs::rename(&self.partial, &self.path)
            }
            Err(Errno::INVAL) => Err(Errno::EXIST),
            other => other,
        };
        match renamed {
            Ok(()) => self.done = true,
            Err(Errno::EXIST) => return Err(Error::Exists { path: self.path.clone() }),
            Err(e) => return Err(e).doing(|| format!("rename {}", self.partial.display()))?,
        }
        let folder =
            self.path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let sync = File::open(folder).and_then(|folder| folder.sync_all());
        sync.map_err(|e| Failure::new(format!("fsync {}", folder.display()), error::errno(&e)))?;
        Ok(size)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}
