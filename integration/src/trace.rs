//! A process that is killed at a system call of one's choice.

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Runs a command and kills it by SIGKILL when it has entered or left `count` system calls (so an even number is the end
/// of one, an odd number the beginning); children that it makes are left alone. Returns how many there were, and whether
/// that was its end.
pub fn kill_at(command: Command, count: usize) -> (usize, bool) {
    kill_at_calls(command, |_| true, count)
}

/// The same, with only those system calls that are `wanted`, by their numbers.
#[expect(clippy::zombie_processes, reason = "waitpid(2) is called for each stop and the end")]
pub fn kill_at_calls(mut command: Command, wanted: impl Fn(i64) -> bool, count: usize) -> (usize, bool) {
    // SAFETY: PTRACE_TRACEME is a plain system call.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from)) };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("spawn a traced command");
    let pid = Pid::from_raw(child.id().cast_signed());
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Stopped(pid, Signal::SIGTRAP)), "the stop at its exec");
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL)
        .expect("set the options of a trace");
    let mut seen = 0;
    let mut pass_on = None;
    loop {
        if seen == count {
            kill(pid, Signal::SIGKILL).expect("kill a traced command");
            while !matches!(waitpid(pid, None), Ok(WaitStatus::Signaled(..) | WaitStatus::Exited(..))) {}
            return (seen, true);
        }
        ptrace::syscall(pid, pass_on.take()).expect("continue a traced command");
        match waitpid(pid, None).expect("wait for a traced command") {
            WaitStatus::PtraceSyscall(_) => {
                let number = ptrace::getregs(pid).expect("read the registers of a traced command").orig_rax;
                seen += usize::from(wanted(number.cast_signed()));
            }
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, signal) => pass_on = Some(signal),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return (seen, false),
            other => panic!("{other:?} is not expected of a traced command"),
        }
    }
}
