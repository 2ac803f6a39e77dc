//! Processes of an image that do not run: zombies, and those that job control has stopped. And helpers, which end.

use crate::program::Program;
use crate::signals;
use crate::sys::ptrace::{self, Change};
use crate::worker::Worker;
use crate::{Doing, Failure};
use nix::errno::Errno;

/// Ends the process so that its parent finds the wait status `status`.
///
/// # Errors
/// The kernel's.
pub fn end(mut worker: Worker, status: i32) -> Result<(), Failure> {
    let mut program = Program::new();
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        // No core file: it was written when the process died for the first time.
        let none = program.put(&[0; size_of::<libc::rlimit>()]);
        program.call("forbid a core file", libc::SYS_setrlimit, &[libc::RLIMIT_CORE.into(), none.into()]);
        worker.run(&program)?;
        ptrace::set_signal_mask(worker.host(), 0).doing(|| "unblock all signals")?;
        program = Program::new();
        let me = program.call("getpid", libc::SYS_getpid, &[]);
        program.call("kill", libc::SYS_kill, &[me.into(), signal.into()]);
    } else {
        program.call("exit_group", libc::SYS_exit_group, &[libc::WEXITSTATUS(status).into()]);
    }
    let regs = worker.load(&program)?;
    worker.tracee.run_to_end(&regs)
}

/// Lets `parent` reap its child `id`, whatever signal the child ends with.
///
/// # Errors
/// `ECHILD`.
pub fn reap(parent: &mut Worker, id: i32) -> Result<(), Failure> {
    let mut program = Program::new();
    let args = [id.into(), 0.into(), libc::__WALL.into(), 0.into()];
    program.call("reap a helper", libc::SYS_wait4, &args);
    parent.run(&program).map(drop)
}

/// Stops the process by job control, with `signal`. It is in an event stop afterwards, as before, and stays stopped when
/// it is let go.
///
/// # Errors
/// The kernel's.
pub fn stop(worker: &mut Worker, signal: i32) -> Result<(), Failure> {
    let host = worker.host();
    let what = || format!("stop process {host}");
    let mask = ptrace::signal_mask(host).doing(what)?;
    let mut program = Program::new();
    let me = program.call("getpid", libc::SYS_getpid, &[]);
    program.call("kill", libc::SYS_kill, &[me.into(), signal.into()]);
    let regs = worker.load(&program)?;
    ptrace::set_registers(host, &regs).doing(what)?;
    // Only this signal: those that the process is to have, and blocks, would come first.
    ptrace::set_signal_mask(host, !1_u64.checked_shl(signals::bit(signal)).unwrap_or(0)).doing(what)?;
    ptrace::resume(host, 0).doing(what)?;
    loop {
        match ptrace::wait(host, 0).doing(what)? {
            Some((_, Change::Stopped(by))) if by == signal => break,
            Some((_, Change::Signal(by))) => ptrace::resume(host, by).doing(what)?,
            Some((_, Change::Ended(_))) | None => return Err(Failure::new(what(), Errno::ESRCH)),
            Some(_) => ptrace::resume(host, 0).doing(what)?,
        }
    }
    worker.tracee.group_stop = Some(signal);
    ptrace::set_signal_mask(host, mask).doing(what)
}
