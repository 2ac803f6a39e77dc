//! System V shared memory (shmget(2)). A segment has an id and a key in an IPC namespace, and lives without any process.
//!
//! ckrun enters the namespace for a moment, on its own thread: it can read and make segments there with the ids that they
//! are to have. The time of the last attachment, and the ids of the processes that made and attached a segment, are not
//! kept.

use super::object::{Census, Kind, Object, huge_page_of};
use super::vma::{Backing, Flags, PAGE, Prot, Span, Vma};
use crate::namespace::{self, Namespace};
use crate::program::Program;
use crate::sys::check;
use crate::sysv::{self, Sort};
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;

/// `linux/shm.h`.
const SHM_STAT_ANY: i32 = 15;
const SHM_INFO: i32 = 14;
const SHM_DEST: u32 = 0o1000;
const SHM_LOCKED: u32 = 0o2000;

const SORT: Sort = Sort { name: "shared memory segment", short: "shm", remove };

/// The process behind `link`, a path below `/proc/PID`, is in `namespace`.
pub(super) fn is_in(link: &str, namespace: &Namespace) -> Result<bool, Failure> {
    namespace.has(link.match_indices('/').nth(2).map_or(link, |(at, _)| &link[..at]))
}

/// shmctl(2) that fills a structure.
fn stat(id: i32, command: i32) -> Result<(i32, libc::shmid_ds), Errno> {
    // SAFETY: a plain C structure of numbers.
    let mut segment: libc::shmid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: both commands fill a shmid_ds, or, SHM_INFO, the smaller shm_info.
    let answer = check(unsafe { libc::shmctl(id, command, &raw mut segment) }.into())?;
    Ok((answer as i32, segment))
}

fn remove(id: i32) {
    // SAFETY: IPC_RMID takes no structure.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
}

/// What the kernel says of segment `id`, which is of pages of `huge` bytes, or, 0, of usual ones.
pub(super) fn look(namespace: &Namespace, id: i32, huge: u64) -> Result<Object, Failure> {
    let _abroad = namespace.enter()?;
    let segment = stat(id, libc::IPC_STAT).map_err(|errno| match errno {
        // A job that runs has removed it since.
        Errno::EINVAL | Errno::EIDRM => Errno::ENOENT,
        other => other,
    });
    let (_, segment) = segment.doing(|| format!("look at shared memory segment {id}"))?;
    Ok(object(id, huge, &segment))
}

/// All segments of a namespace. Of their pages nothing is known yet.
pub(super) fn all(namespace: &Namespace) -> Result<Vec<Object>, Failure> {
    let _abroad = namespace.enter()?;
    let (last, _) = stat(0, SHM_INFO).doing(|| "count shared memory segments")?;
    let mut found = Vec::new();
    for index in 0..=last {
        match stat(index, SHM_STAT_ANY) {
            Ok((id, segment)) => found.push(object(id, 0, &segment)),
            // Not every index has one.
            Err(Errno::EINVAL | Errno::EIDRM) => {}
            Err(errno) => return Err(Failure::new("look at the shared memory segments", errno)),
        }
    }
    Ok(found)
}

fn object(id: i32, huge: u64, segment: &libc::shmid_ds) -> Object {
    let perm = &segment.shm_perm;
    let mode = u32::from(perm.mode);
    Object {
        device: 0,
        inode: id as u64,
        size: segment.shm_segsz as u64,
        mode: mode & 0o777,
        owner: (perm.uid, perm.gid),
        kind: Kind::Segment {
            id,
            key: perm.__key,
            creator: (perm.cuid, perm.cgid),
            locked: mode & SHM_LOCKED != 0,
            doomed: mode & SHM_DEST != 0,
            huge,
        },
    }
}

/// Opens the content of segment `id`.
pub(super) fn open(namespace: &Namespace, id: i32) -> Result<File, Failure> {
    let what = || format!("read shared memory segment {id}");
    attached(namespace, id, |link| File::open(link).doing(what))
}

/// Attaches segment `id` for a moment, in which it can be found by a link of `/proc`: an attachment is a mapping of a
/// file.
fn attached<T>(
    namespace: &Namespace,
    id: i32,
    look: impl FnOnce(&str) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let what = || format!("attach shared memory segment {id}");
    let _abroad = namespace.enter()?;
    // SAFETY: attaches at a place of the kernel's choice.
    let at = unsafe { libc::shmat(id, std::ptr::null(), libc::SHM_RDONLY) };
    if at as isize == -1 {
        return Err(Failure::new(what(), Errno::last()));
    }
    let maps = std::fs::read_to_string("/proc/self/maps").doing(|| "read /proc/self/maps");
    let looked = maps.and_then(|maps| {
        // Its length is that of its pages, which may be huge.
        let start = format!("{:x}-", at as usize);
        let line = maps.lines().find(|line| line.starts_with(&start));
        let range = line.and_then(|line| line.split(' ').next());
        let range = range.ok_or_else(|| Failure::new(what(), Errno::ENOENT))?;
        look(&format!("/proc/self/map_files/{range}"))
    });
    // SAFETY: what was attached above; nothing refers to it.
    unsafe { libc::shmdt(at) };
    looked
}

/// Makes a segment in the namespace of process `pid`, empty still.
/// `pages` are flags for the size of its pages.
pub(super) fn make(pid: Pid, object: &Object, pages: i32) -> Result<(), Failure> {
    let Kind::Segment { id, key, creator, locked, .. } = object.kind else { return Ok(()) };
    let what = || format!("make shared memory segment {id}");
    let Some(namespace) = Namespace::of(pid, namespace::Kind::Ipc)? else {
        // It would be left behind by a restart that fails.
        return Err(Failure::new(
            format!("{}: the container has no IPC namespace of its own", what()),
            Errno::EPERM,
        ));
    };
    let _abroad = namespace.enter()?;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | pages | (object.mode & 0o777).cast_signed();
    // SAFETY: numbers only.
    sysv::create(SORT, id, creator, || unsafe { libc::shmget(key, object.size as usize, flags) })?;
    let (_, mut segment) = stat(id, libc::IPC_STAT).doing(what)?;
    (segment.shm_perm.uid, segment.shm_perm.gid) = object.owner;
    // SAFETY: IPC_SET reads owner and permissions from the structure; SHM_LOCK takes none.
    unsafe {
        check(libc::shmctl(id, libc::IPC_SET, &raw mut segment).into()).doing(what)?;
        if locked {
            check(libc::shmctl(id, libc::SHM_LOCK, std::ptr::null_mut()).into()).doing(what)?;
        }
    }
    Ok(())
}

/// Marks the segments that go with their last attachment.
pub(super) fn doom(pid: Pid, objects: &[Object]) -> Result<(), Failure> {
    let doomed: Vec<i32> = objects
        .iter()
        .filter_map(|object| match object.kind {
            Kind::Segment { id, doomed: true, .. } => Some(id),
            _ => None,
        })
        .collect();
    if doomed.is_empty() {
        return Ok(());
    }
    let Some(namespace) = Namespace::of(pid, namespace::Kind::Ipc)? else { return Ok(()) };
    let _abroad = namespace.enter()?;
    for id in doomed {
        // SAFETY: IPC_RMID takes no structure.
        let marked = check(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }.into());
        marked.doing(|| format!("mark shared memory segment {id} for removal"))?;
    }
    Ok(())
}

/// Adds the calls that attach segments where mappings of them are, before anything else is mapped. The kernel attaches
/// the whole of a segment; what a process has unmapped of it is unmapped again.
pub(super) fn attach(
    program: &mut Program,
    vmas: &[Vma],
    objects: &[Object],
    mut kept: impl FnMut(&Vma) -> bool,
) {
    // Each with its length: whole pages.
    let mut groups: BTreeMap<u64, (i32, u64, Vec<&Vma>)> = BTreeMap::new();
    for vma in vmas {
        if let Backing::Object { id, offset, .. } = vma.backing
            && let Some(Object { kind: Kind::Segment { id, huge, .. }, size, .. }) = objects.get(id as usize)
        {
            let size = size.checked_next_multiple_of(PAGE.max(*huge)).unwrap_or(u64::MAX);
            let base = vma.range.start.wrapping_sub(offset);
            groups.entry(base).or_insert_with(|| (*id, size, Vec::new())).2.push(vma);
        }
    }
    for (base, (id, size, vmas)) in groups {
        if vmas.iter().all(|vma| kept(vma)) {
            continue;
        }
        let what = format!("attach shared memory segment {id} at {base:#x}");
        for vma in vmas.iter().filter(|vma| kept(vma)) {
            unmap(program, vma.range, &what);
        }
        let writable = vmas.iter().any(|vma| vma.flags.has(Flags::MAY_WRITE));
        let exec = vmas.iter().any(|vma| vma.prot.allows(Prot::EXEC));
        let flags = if writable { 0 } else { libc::SHM_RDONLY } | if exec { libc::SHM_EXEC } else { 0 };
        program.call(what.clone(), libc::SYS_shmat, &[id.into(), base.into(), flags.into()]);
        let all = Span::new(base, base.saturating_add(size));
        let mut at = all.start;
        for vma in vmas {
            unmap(program, Span::new(at, vma.range.start), &what);
            at = vma.range.end;
            let args = [vma.range.start.into(), vma.range.len().into(), vma.prot.bits().into()];
            program.call(what.clone(), libc::SYS_mprotect, &args);
        }
        unmap(program, Span::new(at, all.end), &what);
    }
}

fn unmap(program: &mut Program, range: Span, what: &str) {
    if !range.is_empty() {
        program.call(what.to_owned(), libc::SYS_munmap, &[range.start.into(), range.len().into()]);
    }
}

impl Census {
    /// Adds the System V segments of the job that no process has attached. To be called when all maps have been read.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter_segments(&mut self) -> Result<(), Failure> {
        let Some(namespace) = self.ipc() else { return Ok(()) };
        let id_of = |object: &Object| match object.kind {
            Kind::Segment { id, .. } => Some(id),
            _ => None,
        };
        let known: Vec<i32> = self.objects().iter().filter_map(id_of).collect();
        let mut found = all(namespace)?;
        found.retain(|object| id_of(object).is_some_and(|id| !known.contains(&id)));
        for object in &mut found {
            if let Kind::Segment { id, huge, .. } = &mut object.kind {
                *huge = attached(namespace, *id, huge_page_of)?;
            }
        }
        for object in found {
            self.push(object, String::new());
        }
        Ok(())
    }
}
