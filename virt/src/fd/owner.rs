//! Who is told by a signal that a description is ready (F_SETOWN, F_SETSIG, O_ASYNC).

use super::Trouble;
use super::capture::Job;
use crate::Doing;
use crate::program::Program;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, RawFd};

/// `fcntl.h`; not in libc.
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_GETOWNER_UIDS: i32 = 17;
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;

/// Who gets the signals of a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Owner {
    /// A thread, a process or a process group.
    pub kind: OwnerKind,
    /// Its id in the job.
    pub id: i32,
    /// The real and effective user ids of who set it, as the container knows them: whether the signal may be sent is
    /// decided by them.
    pub users: (u32, u32),
}

/// What an owner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OwnerKind {
    /// `F_OWNER_TID`.
    Thread,
    /// `F_OWNER_PID`.
    Process,
    /// `F_OWNER_PGRP`.
    Group,
}

impl Job<'_> {
    /// The owner and the signal of a description.
    pub(super) fn owner(&self, node: usize) -> Result<(Option<Owner>, Option<i32>), Trouble> {
        let name = || self.graph.nodes[node].seen.name();
        let fd = self.graph.take(node)?;
        // struct f_owner_ex
        let mut owner = [0_i32; 2];
        // SAFETY: the kernel stores two ints.
        let got = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr()) };
        Errno::result(got).doing(|| format!("read the owner of {}", name()))?;
        // SAFETY: no argument is a pointer.
        let signal = Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) });
        let signal = signal.doing(|| format!("read the signal of {}", name()))?;
        let signal = (signal != 0).then_some(signal);
        let [kind, host] = owner;
        if host == 0 {
            return Ok((None, signal));
        }
        let kind = match kind {
            0 => OwnerKind::Thread,
            1 => OwnerKind::Process,
            _ => OwnerKind::Group,
        };
        let Some(id) = self.virtual_id(host) else {
            return Err(Trouble::refused(name(), format!("its signals go to process {host} of the host")));
        };
        let mut users = [0_u32; 2];
        // SAFETY: the kernel stores two uid_t.
        let got = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWNER_UIDS, users.as_mut_ptr()) };
        Errno::result(got).doing(|| format!("read who set the owner of {}", name()))?;
        let (real, _) = self.container().owner(users[0], 0)?;
        let (effective, _) = self.container().owner(users[1], 0)?;
        Ok((Some(Owner { kind, id, users: (real, effective) }), signal))
    }
}

/// A directory has an owner since somebody asked to be told of its changes (fcntl(2), F_NOTIFY).
pub(super) fn watched_directory(name: String) -> Trouble {
    let why = "it was watched by dnotify (F_NOTIFY), and the kernel does not tell for what";
    Trouble::refused(name, why).or("close it, or watch it by inotify(7)".into())
}

impl Owner {
    /// Sets the owner in the name of who did.
    pub(super) fn set(&self, fd: RawFd, program: &mut Program) {
        let kind = match self.kind {
            OwnerKind::Thread => 0,
            OwnerKind::Process => 1,
            OwnerKind::Group => 2_i32,
        };
        let owner = program.put(&[kind, self.id].map(i32::to_ne_bytes).concat());
        // The saved user id stays root's, so that the way back is open and no permitted capability is lost.
        let users = |program: &mut Program, real: u32, effective: u32| {
            let args = [real.into(), effective.into(), 0.into()];
            program.call("change the user", libc::SYS_setresuid, &args);
        };
        if self.users != (0, 0) {
            users(program, self.users.0, self.users.1);
        }
        let what = format!("set the owner of descriptor {fd}");
        program.call(what, libc::SYS_fcntl, &[fd.into(), F_SETOWN_EX.into(), owner.into()]);
        if self.users != (0, 0) {
            users(program, 0, 0);
        }
    }
}

/// Sets the signal that is sent instead of SIGIO.
pub(super) fn set_signal(signal: i32, fd: RawFd, program: &mut Program) {
    let what = format!("set the signal of descriptor {fd}");
    program.call(what, libc::SYS_fcntl, &[fd.into(), F_SETSIG.into(), signal.into()]);
}
