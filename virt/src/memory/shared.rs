//! Carried objects, made once in the first process of a restored job. The others inherit its descriptors.

use super::build::{Handle, Handles};
use super::fill::fill_object;
use super::filler::PageFiles;
use super::layout::Layout;
use super::object::{Kind, Object};
use super::segment;
use super::vma::{Backing, Flags, PAGE, Span};
use crate::image::PageRun;
use crate::program::{Call, Program};
use crate::worker::Worker;
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use rustix::fs::{MemfdFlags, Mode, OFlags, ResolveFlags, SealFlags, memfd_create};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

const MFD_CLOEXEC: u32 = 1;
const MFD_ALLOW_SEALING: u32 = 2;
const MFD_HUGETLB: u32 = 4;
const MFD_NOEXEC_SEAL: u32 = 8;
const MFD_EXEC: u32 = 16;
const SEAL_EXEC: u32 = 0x20;

/// Makes every carried object that is not in `handles` yet, with its content, and adds it there. The descriptors get
/// numbers from `base` on. `runs` gives the pages of an object.
///
/// # Errors
/// Those of [`super::fill`], and the kernel's.
pub fn make_objects<'a>(
    worker: &mut Worker,
    objects: &[Object],
    layouts: impl IntoIterator<Item = &'a Layout>,
    runs: impl Fn(u32) -> &'a [PageRun],
    pages: &PageFiles,
    base: RawFd,
    handles: &mut Handles,
) -> Result<(), Error> {
    let uses = Uses::of(layouts);
    for (object, id) in objects.iter().zip(0_u32..) {
        if !object.carried() || handles.contains_key(&id) {
            continue;
        }
        let written = uses.written.contains(&id);
        let mut maker = Maker { worker: &mut *worker, object, runs: runs(id), pages, base, written };
        let file = match &object.kind {
            Kind::File { .. } => continue,
            Kind::Segment { .. } => {
                maker.segment()?;
                continue;
            }
            Kind::Shared { huge } => maker.shared(*huge, uses.unreserved.contains(&id))?,
            Kind::Memfd { name, seals, huge } => maker.memfd(name, *seals, *huge)?,
            Kind::Deleted { path } => maker.deleted(path)?,
        };
        handles.insert(id, maker.hand_over(&file, uses.read_only.contains(&id))?);
    }
    Ok(())
}

/// Opens the files of other mount namespaces, which have these `roots`, and adds them to `handles`.
///
/// # Errors
/// The kernel's, by the name of the file.
pub fn open_elsewhere<'a>(
    worker: &mut Worker,
    objects: &[Object],
    layouts: impl IntoIterator<Item = &'a Layout>,
    roots: &[OwnedFd],
    base: RawFd,
    handles: &mut Handles,
) -> Result<(), Failure> {
    let uses = Uses::of(layouts);
    for (object, id) in objects.iter().zip(0_u32..) {
        let Kind::File { path, namespace: namespace @ 1.., .. } = &object.kind else { continue };
        let what = || format!("open {path} to map it, in mount namespace {namespace} of the job");
        let root = roots.get(*namespace as usize).ok_or_else(|| Failure::new(what(), Errno::ENOENT))?;
        let open = |access: OFlags| {
            let flags = access | OFlags::CLOEXEC | OFlags::NOCTTY;
            rustix::fs::openat2(root, path.as_path(), flags, Mode::empty(), ResolveFlags::IN_ROOT).doing(what)
        };
        let read = number(worker, &open(OFlags::RDONLY)?.into(), base)?;
        let written = uses.written.contains(&id);
        let write = if written { number(worker, &open(OFlags::RDWR)?.into(), base)? } else { read };
        handles.insert(id, Handle { write, read });
    }
    Ok(())
}

/// Seals the memfds as they were, and marks the System V segments that go with their last user. Nothing may be mapped any
/// more that needs either; no writable mapping of a memfd may be there that is to be sealed against writing.
///
/// # Errors
/// The kernel's, with the name of the memfd.
pub fn seal_objects(worker: &Worker, objects: &[Object], handles: &Handles) -> Result<(), Failure> {
    for (object, id) in objects.iter().zip(0_u32..) {
        let (Kind::Memfd { name, seals, .. }, Some(handle)) = (&object.kind, handles.get(&id)) else {
            continue;
        };
        let what = || format!("seal the memfd {name}");
        let seals = SealFlags::from_bits_retain(*seals);
        if !seals.is_empty() {
            let file = worker.pidfd_getfd(handle.write)?;
            let has = rustix::fs::fcntl_get_seals(&file).doing(what)?;
            if !has.contains(seals) {
                rustix::fs::fcntl_add_seals(&file, seals.difference(has)).doing(what)?;
            }
        }
    }
    segment::doom(worker.host(), objects)
}

/// What the mappings say of objects.
#[derive(Debug, Default)]
struct Uses {
    /// Mapped from a descriptor that was open for reading only.
    read_only: BTreeSet<u32>,
    /// Mapped with MAP_NORESERVE.
    unreserved: BTreeSet<u32>,
    /// Mapped shared from a descriptor that was open for writing.
    written: BTreeSet<u32>,
}

impl Uses {
    fn of<'a>(layouts: impl IntoIterator<Item = &'a Layout>) -> Self {
        let mut uses = Uses::default();
        for vma in layouts.into_iter().flat_map(|layout| &layout.vmas) {
            if let Backing::Object { id, shared: true, .. } = vma.backing {
                if vma.flags.has(Flags::MAY_WRITE) {
                    uses.written.insert(id);
                } else {
                    uses.read_only.insert(id);
                }
                if vma.flags.has(Flags::NO_RESERVE) {
                    uses.unreserved.insert(id);
                }
            }
        }
        uses
    }
}

/// Makes one object.
struct Maker<'a> {
    worker: &'a mut Worker,
    object: &'a Object,
    runs: &'a [PageRun],
    pages: &'a PageFiles,
    base: RawFd,
    written: bool,
}

impl Maker<'_> {
    /// The size, in whole pages of `huge` bytes or usual ones.
    fn room(&self, huge: u64) -> Result<u64, Error> {
        let page = huge.max(PAGE);
        let rounded = self.object.size.checked_next_multiple_of(page).filter(|size| *size < 1 << 56);
        rounded.ok_or_else(|| Error::Damaged(format!("objects.json: a size of {} bytes", self.object.size)))
    }

    /// A System V segment has a name by which all find it.
    fn segment(&mut self) -> Result<(), Error> {
        let Kind::Segment { id, huge, .. } = self.object.kind else { return Ok(()) };
        let pages = huge_bits(huge, libc::SHM_HUGETLB.cast_unsigned())?.cast_signed();
        segment::make(self.worker.host(), self.object, pages)?;
        if self.runs.is_empty() {
            return Ok(());
        }
        let mut program = Program::new();
        let what = "attach a shared memory segment to fill it";
        let at = program.call(what, libc::SYS_shmat, &[id.into(), 0.into(), 0.into()]);
        let at = self.worker.run(&program)?.of(at).doing(|| what)?.cast_unsigned();
        fill_object(self.worker, Span::new(at, at + self.room(huge)?), false, self.runs, self.pages)?;
        let mut program = Program::new();
        program.call("detach a shared memory segment", libc::SYS_shmdt, &[at.into()]);
        Ok(self.worker.run(&program).map(drop)?)
    }

    /// Memory of MAP_SHARED | MAP_ANONYMOUS. Only a mapping makes it; its descriptor comes from there.
    fn shared(&mut self, huge: u64, unreserved: bool) -> Result<File, Error> {
        let size = self.room(huge)?;
        let mut flags = libc::MAP_SHARED
            | libc::MAP_ANONYMOUS
            | huge_bits(huge, libc::MAP_HUGETLB.cast_unsigned())?.cast_signed();
        if unreserved {
            flags |= libc::MAP_NORESERVE;
        }
        let range = self.map(size, flags, -1, huge)?;
        let path = format!("/proc/{}/map_files/{range}", self.worker.host());
        let file = File::options().read(true).write(true).open(&path).doing(|| format!("open {path}"))?;
        fill_object(self.worker, range, huge == 0, self.runs, self.pages)?;
        self.unmap(range)?;
        Ok(file)
    }

    fn memfd(&mut self, name: &[u8], seals: u32, huge: u64) -> Result<File, Error> {
        let size = self.room(huge)?;
        let exec =
            if seals & SEAL_EXEC != 0 && self.object.mode & 0o111 == 0 { MFD_NOEXEC_SEAL } else { MFD_EXEC };
        // Before Linux 6.3 nobody had to say whether it may be executed.
        let exec = if exec_is_said() { exec } else { 0 };
        let flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | exec | huge_bits(huge, MFD_HUGETLB)?;
        let mut program = Program::new();
        let name = program.put_cstr(name);
        let made = program.call("make a memfd", libc::SYS_memfd_create, &[name.into(), flags.into()]);
        let what = "set the size of a memfd";
        program.call(what, libc::SYS_ftruncate, &[made.into(), self.object.size.into()]);
        let file = self.take(&program, made)?;
        if !self.runs.is_empty() {
            // By a mapping and not by writing, so that the memory counts as the job's.
            let fd = self.worker.give(file.as_fd())?;
            let range = self.map(size, libc::MAP_SHARED, fd, huge)?;
            fill_object(self.worker, range, huge == 0, self.runs, self.pages)?;
            self.unmap(range)?;
            self.close(fd)?;
        }
        self.own(&file)?;
        Ok(file)
    }

    /// A file that has no name any more. It gets its last name for a moment; if that is in use now, or it never had one,
    /// none at all; and where no file can be made, it is a memfd.
    fn deleted(&mut self, path: &[u8]) -> Result<File, Error> {
        let mut program = Program::new();
        // No file can be made under this one.
        let place = program.put_cstr(if never_named(path) { b"" } else { path });
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
        let args = [libc::AT_FDCWD.into(), place.into(), flags.into(), 0o600.into()];
        let made = program.attempt("make a deleted file", libc::SYS_openat, &args);
        let file = match self.take(&program, made) {
            Ok(file) => {
                let mut program = Program::new();
                let place = program.put_cstr(path);
                program.call("delete a deleted file", libc::SYS_unlink, &[place.into()]);
                self.worker.run(&program)?;
                file
            }
            Err(_) => {
                let slash = path.iter().rposition(|&b| b == b'/').unwrap_or(0);
                let mut program = Program::new();
                let folder = program.put_cstr(&path[..slash.max(1).min(path.len())]);
                let flags = libc::O_RDWR | libc::O_TMPFILE | libc::O_CLOEXEC;
                let args = [libc::AT_FDCWD.into(), folder.into(), flags.into(), 0o600.into()];
                let made = program.attempt("make a file without a name", libc::SYS_openat, &args);
                match self.take(&program, made) {
                    Ok(file) => file,
                    Err(_) => return self.memfd(path.get(slash + 1..).unwrap_or_default(), 0, 0),
                }
            }
        };
        let what = || format!("fill the deleted file {}", String::from_utf8_lossy(path));
        file.set_len(self.object.size).doing(what)?;
        let mut buffer = Vec::new();
        for run in self.runs {
            // The last page may reach beyond the end.
            let len = run.len().min(self.object.size.saturating_sub(run.vaddr));
            let bytes = self.pages.read(std::slice::from_ref(run), &mut buffer)?;
            file.write_all_at(&bytes[..len as usize], run.vaddr).doing(what)?;
        }
        self.own(&file)?;
        Ok(file)
    }

    /// Runs `program` and takes the descriptor that `made` gives out of the task.
    fn take(&mut self, program: &Program, made: Call) -> Result<File, Failure> {
        let fd = self.worker.run(program)?.of(made).doing(|| "make a carried object")? as RawFd;
        let file = self.worker.pidfd_getfd(fd)?;
        self.close(fd)?;
        Ok(file.into())
    }

    fn map(&mut self, size: u64, flags: i32, fd: RawFd, huge: u64) -> Result<Span, Failure> {
        let what = match huge {
            0 => "map a carried object".to_owned(),
            huge => format!("map {size} bytes in free huge pages of {huge} (/proc/sys/vm/nr_hugepages)"),
        };
        let mut program = Program::new();
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let args = [0.into(), size.into(), prot.into(), flags.into(), fd.into(), 0.into()];
        let at = program.call(what, libc::SYS_mmap, &args);
        let at = self.worker.run(&program)?.of(at).doing(|| "map a carried object")?.cast_unsigned();
        Ok(Span::new(at, at + size))
    }

    fn unmap(&mut self, range: Span) -> Result<(), Failure> {
        let mut program = Program::new();
        program.call("unmap a carried object", libc::SYS_munmap, &[range.start.into(), range.len().into()]);
        self.worker.run(&program).map(drop)
    }

    fn close(&mut self, fd: RawFd) -> Result<(), Failure> {
        let mut program = Program::new();
        program.call("close a carried object", libc::SYS_close, &[fd.into()]);
        self.worker.run(&program).map(drop)
    }

    /// Owner and permissions.
    fn own(&self, file: &File) -> Result<(), Failure> {
        let (uid, gid) = self.object.owner;
        std::os::unix::fs::fchown(file, Some(uid), Some(gid))
            .doing(|| "set the owner of a carried object")?;
        let mode = nix::sys::stat::Mode::from_bits_truncate(self.object.mode);
        match nix::sys::stat::fchmod(file, mode) {
            // F_SEAL_EXEC lets nobody touch the mode, and it is right then.
            Err(Errno::EPERM) if matches!(self.object.kind, Kind::Memfd { .. }) => Ok(()),
            other => other.doing(|| "set the permissions of a carried object"),
        }
    }

    /// Gives the object to the task, with numbers from `base` on.
    fn hand_over(&mut self, file: &File, read_only: bool) -> Result<Handle, Failure> {
        if matches!(self.object.kind, Kind::Deleted { .. }) && !self.written {
            // A program that runs may be open for writing nowhere.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let reader = File::open(&path).doing(|| format!("open {path}"))?;
            let read = self.number(&reader)?;
            return Ok(Handle { write: read, read });
        }
        let write = self.number(file)?;
        if !read_only {
            return Ok(Handle { write, read: write });
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let reader = File::open(&path).doing(|| format!("open {path}"))?;
        Ok(Handle { write, read: self.number(&reader)? })
    }

    fn number(&mut self, file: &File) -> Result<RawFd, Failure> {
        number(self.worker, file, self.base)
    }
}

/// Gives a file to the task, with a number from `base` on.
fn number(worker: &mut Worker, file: &File, base: RawFd) -> Result<RawFd, Failure> {
    let low = worker.give(file.as_fd())?;
    let mut program = Program::new();
    let what = "place a carried object";
    let args = [low.into(), libc::F_DUPFD_CLOEXEC.into(), base.into()];
    let high = program.call(what, libc::SYS_fcntl, &args);
    program.call(what, libc::SYS_close, &[low.into()]);
    Ok(worker.run(&program)?.of(high).doing(|| what)? as RawFd)
}

/// The kernel calls a file of O_TMPFILE by its inode: `/tmp/#4711`.
fn never_named(path: &[u8]) -> bool {
    let number = path.rsplit(|&b| b == b'/').next().and_then(|name| name.strip_prefix(b"#"));
    number.is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

/// `flag` with the size of the pages, as mmap(2) and memfd_create(2) take it: its logarithm above bit 26.
fn huge_bits(huge: u64, flag: u32) -> Result<u32, Error> {
    match huge {
        0 => Ok(0),
        size if size.is_power_of_two() => Ok(flag | size.trailing_zeros() << 26),
        size => Err(Error::Damaged(format!("objects.json: pages of {size} bytes"))),
    }
}

/// memfd_create(2) takes `MFD_EXEC` and `MFD_NOEXEC_SEAL` (Linux 6.3).
fn exec_is_said() -> bool {
    static SAID: LazyLock<bool> = LazyLock::new(|| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::EXEC;
        memfd_create(c"ckrun", flags).is_ok()
    });
    *SAID
}
