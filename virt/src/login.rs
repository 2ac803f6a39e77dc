//! As who somebody logged in, for the kernel's audit: `/proc/PID/loginuid`.
//!
//! Per thread, but set when a process has only one, so ckrun reads that of the leader. A task inherits it, and can only
//! set it itself; to change it takes CAP_AUDIT_CONTROL, unless there was none. So a restart may have to do without; and a
//! job that had none gets that of whoever restarts it.

use crate::program::Program;
use crate::resource::Stopped;
use crate::worker::Worker;
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// A user of ckrun's user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LoginUid(u32);

/// `AUDIT_UID_UNSET` of `linux/audit.h`.
const NOBODY: u32 = u32::MAX;

impl LoginUid {
    /// The file of an image that they are in, if there are any.
    pub const FILE: &str = "login-uids.json";

    /// That of a task.
    pub fn of(task: &Stopped) -> Option<LoginUid> {
        parse(&task.read("loginuid").ok()?)
    }

    /// That of ckrun, which all tasks inherit that it makes.
    pub fn own() -> Option<LoginUid> {
        parse(&crate::proc::read("/proc/thread-self/loginuid").ok()?)
    }

    /// Gives it to a thread.
    ///
    /// # Errors
    /// `EPERM` (the thread has another one already, and may not change it), `ENOENT` (this kernel audits nothing).
    pub fn set(self, worker: &mut Worker) -> Result<(), Failure> {
        let path = format!("/proc/{}/loginuid", worker.host());
        let what = || format!("write {} to {path}", self.0);
        // The job's procfs may show something else, and is no place to write to.
        let file = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).doing(what)?;
        let given = worker.give(file.as_fd())?;
        let mut program = Program::new();
        let text = self.0.to_string();
        let bytes = program.put(text.as_bytes());
        let args = [given.into(), bytes.into(), (text.len() as u64).into()];
        let written = program.attempt("write the login's user", libc::SYS_write, &args);
        program.call("close a descriptor", libc::SYS_close, &[given.into()]);
        worker.run(&program)?.of(written).map(drop).map_err(|errno: Errno| Failure::new(what(), errno))
    }
}

fn parse(text: &[u8]) -> Option<LoginUid> {
    let number = std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()?;
    (number != NOBODY).then_some(LoginUid(number))
}
