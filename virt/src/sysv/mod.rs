//! Semaphore sets and message queues of System V (sysvipc(7)), message queues of POSIX ([`posix`]), and limits. They belong to an IPC namespace, not to a process: ckrun
//! enters it and reads and makes them itself. Shared memory segments are memory, and the memory's room has them; what
//! all three have in common is here.
//!
//! Ids and keys are kept, owners, creators, permissions, values, messages and their order. Not kept are the times (a
//! set that has been operated on has been so at the restart), the processes that wrote to and read from a queue last,
//! and the adjustments of SEM_UNDO, which the kernel shows to nobody: a process that ends after a restart takes nothing
//! back that it did before the checkpoint. Whether a process has a list of them can be asked, but not what is in it, and
//! every process that has ever had a thread has one: so that is a warning ([`warn_of_undo`]), and no refusal.

mod creator;
mod limits;
mod msg;
pub mod posix;
mod sem;
#[cfg(test)]
mod tests;

pub use limits::Limits;
pub use msg::{Message, Queue};
pub use sem::Set;

use crate::namespace::{Kind, Namespace};
use crate::program::Program;
use crate::restore::Problem;
use crate::sys::{check, kcmp};
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::{Pid, gettid};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::HashMap;

/// Everything of one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SystemV {
    /// semget(2).
    pub semaphores: Vec<Set>,
    /// msgget(2).
    pub queues: Vec<Queue>,
    /// mq_open(3): those of POSIX, which the same namespace has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub posix: Vec<posix::Queue>,
    /// How much of it there may be.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
}

/// What `struct ipc_perm` says. Users and groups are the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Access {
    /// The key; 0 is IPC_PRIVATE.
    pub key: i32,
    /// User and group that own it.
    pub owner: (u32, u32),
    /// User and group that made it.
    pub creator: (u32, u32),
    /// Permissions.
    pub mode: u32,
}

impl Access {
    fn of(perm: &libc::ipc_perm) -> Access {
        Access {
            key: perm.__key,
            owner: (perm.uid, perm.gid),
            creator: (perm.cuid, perm.cgid),
            mode: u32::from(perm.mode) & 0o777,
        }
    }

    /// For the call that makes it, and must not find another one.
    fn flags(&self) -> libc::c_int {
        libc::IPC_CREAT | libc::IPC_EXCL | (self.mode & 0o777).cast_signed()
    }

    fn apply(&self, perm: &mut libc::ipc_perm) {
        (perm.uid, perm.gid) = self.owner;
    }
}

impl SystemV {
    /// The file of an image that they are in, if there are any.
    pub const FILE: &str = "sysv.json";

    /// There is nothing.
    pub fn is_empty(&self) -> bool {
        *self == SystemV::default()
    }

    /// Reads those of `namespace`. `ids` are the job's ids of its processes, by ckrun's.
    ///
    /// # Errors
    /// The kernel's; `ENOSYS` without CONFIG_CHECKPOINT_RESTORE when a message waits.
    pub fn capture(namespace: &Namespace, ids: &HashMap<i32, i32>) -> Result<SystemV, Failure> {
        let _abroad = namespace.enter()?;
        Ok(SystemV {
            semaphores: sem::capture(ids)?,
            queues: msg::capture()?,
            posix: posix::capture()?,
            limits: limits::here(),
        })
    }

    /// Why they can't be made in the container whose first process is `init`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn homeless(&self, init: Pid) -> Result<Option<Problem>, Failure> {
        if self.is_empty() || Namespace::of(init, Kind::Ipc)?.is_some() {
            return Ok(None);
        }
        let what = "semaphores and message queues".into();
        Ok(Some(Problem { what, why: "the container has no IPC namespace for them".into() }))
    }

    /// Makes them in the namespace of process `init`, which must not be ckrun's own.
    ///
    /// # Errors
    /// The kernel's; `EEXIST` when an id or a key is taken.
    pub fn make(&self, init: Pid) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let Some(namespace) = Namespace::of(init, Kind::Ipc)? else {
            if self.semaphores.is_empty() && self.queues.is_empty() && self.posix.is_empty() {
                return Ok(());
            }
            return Err(Error::Unsupported(
                "the job has semaphores or message queues, and the container no IPC namespace for them"
                    .into(),
            ));
        };
        let _abroad = namespace.enter()?;
        limits::raise(&self.limits)?;
        self.semaphores.iter().try_for_each(Set::make)?;
        self.queues.iter().try_for_each(Queue::make)?;
        self.posix.iter().try_for_each(posix::Queue::make)?;
        Ok(limits::set(&self.limits)?)
    }

    /// What only process `pid` itself can do: be the one that a semaphore says has changed it last.
    pub fn finish(&self, pid: i32, program: &mut Program) {
        for set in &self.semaphores {
            set.finish(pid, program);
        }
    }
}

/// Says which processes of a job that has semaphores may lose something: by their ids in ckrun's namespace, in the job, and
/// their names. Whoever has had threads has a list, be it empty, so of those only the log tells.
pub(crate) fn warn_of_undo(processes: impl Iterator<Item = (Pid, i32, String)>) {
    for (host, pid, comm) in processes.filter(|(host, ..)| has_undo(*host)) {
        let alone = std::fs::read_dir(format!("/proc/{host}/task")).map_or(0, Iterator::count) == 1;
        log::log!(
            if alone { log::Level::Warn } else { log::Level::Info },
            "process {pid} ({comm}): what it is to take back from semaphores at its end (SEM_UNDO), if there is anything, \
             does not go with it, for the kernel does not tell it"
        );
    }
}

/// It has a list of what it is to take back.
fn has_undo(host: Pid) -> bool {
    // A thread of ckrun's may have made ours; now there is none for this one.
    nix::sched::unshare(CloneFlags::CLONE_SYSVSEM).is_ok()
        && kcmp::compare_undo(gettid(), host).is_ok_and(Ordering::is_ne)
}

/// One of the three kinds, as messages and files name it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sort {
    /// `semaphore set`.
    pub name: &'static str,
    /// `sem`.
    pub short: &'static str,
    /// Removes one.
    pub remove: fn(i32),
}

/// Makes an object that is to have the id `id`, by `get`, as if by the user and group `creator`.
pub(crate) fn create(
    sort: Sort,
    id: i32,
    creator: (u32, u32),
    get: impl FnOnce() -> libc::c_int,
) -> Result<(), Failure> {
    let what = || format!("make {} {id}", sort.name);
    let next = format!("/proc/sys/kernel/{}_next_id", sort.short);
    // The next object gets this id if it is free, else another one.
    std::fs::write(&next, id.to_string()).doing(|| format!("write {next}"))?;
    let made = creator::acting_as(creator, || check(get().into()))?.doing(what)? as i32;
    if made == id {
        return Ok(());
    }
    (sort.remove)(made);
    Err(Failure::new(format!("{}: its id is taken", what()), Errno::EEXIST))
}

/// All objects of a kind: `last` is the highest index that is in use, `look` looks at an index.
fn all<T>(sort: Sort, last: i32, look: impl Fn(i32) -> Result<T, Errno>) -> Result<Vec<T>, Failure> {
    let mut found = Vec::new();
    for index in 0..=last {
        match look(index) {
            Ok(object) => found.push(object),
            // Not every index has one.
            Err(Errno::EINVAL | Errno::EIDRM) => {}
            Err(errno) => return Err(Failure::new(format!("look at {} number {index}", sort.name), errno)),
        }
    }
    Ok(found)
}
