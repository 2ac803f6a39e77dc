//! Steps that a kill -9 of ckrun does not cut short.
//!
//! They are done by a process of their own, which has ckrun's memory and descriptors, while the thread that wants them waits
//! (CLONE_VFORK). If ckrun is killed meanwhile the process comes to the end of its steps all the same, which takes
//! about as long as the kernel needs to let go of what ckrun has traced. Only the out-of-memory killer ends both together.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Its stack, in 16 bytes.
const STACK: usize = 4096;

struct Errand<F, T> {
    work: Option<F>,
    answer: Option<T>,
}

/// Does `work` in a process of its own. It must not allocate or free memory (if ckrun is killed, one of its threads may hold
/// the allocator's lock for ever), take locks, or panic.
///
/// # Errors
/// Those of clone(2); `EINTR` when somebody has killed the process.
pub fn apart<T, F: FnOnce() -> T>(work: F) -> Result<T, Errno> {
    let mut stack = vec![0_u128; STACK];
    let mut errand = Errand { work: Some(work), answer: None };
    // What the terminal, or somebody who ends a process group, sends to ckrun is not for it: it inherits the mask.
    let mut mask = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
    let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_VFORK;
    let top = stack.as_mut_ptr_range().end.cast();
    // SAFETY: the child runs on a stack of its own, and this thread, whose thread-local memory it uses, waits until it has
    // ended. If this thread is killed instead, the memory lasts as long as the child.
    let pid = unsafe { libc::clone(run::<F, T>, top, flags, (&raw mut errand).cast()) };
    let made = Errno::result(pid);
    if let Ok(pid) = made {
        // It has no exit signal, and is waited for by nobody else.
        while waitpid(Pid::from_raw(pid), Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
    made?;
    errand.answer.ok_or(Errno::EINTR)
}

extern "C" fn run<F: FnOnce() -> T, T>(errand: *mut libc::c_void) -> libc::c_int {
    // SAFETY: out of reach of a kill of ckrun's process group.
    unsafe { libc::setsid() };
    // SAFETY: `apart` passed a pointer to this type, and touches it only when this process has ended.
    let errand = unsafe { &mut *errand.cast::<Errand<F, T>>() };
    if let Some(work) = errand.work.take() {
        errand.answer = Some(work());
    }
    0
}

/// Whether `ckrun`, whose [`apart`] this process comes from, has ended.
pub fn is_orphan(ckrun: Pid) -> bool {
    Pid::parent() != ckrun
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::WaitStatus;
    use nix::unistd::{ForkResult, fork, getpid, pipe, read, write};

    #[test]
    fn the_answer_comes_back_from_another_process() {
        let mut seen = [0; 2];
        let answer = apart(|| {
            seen[0] = 7;
            (getpid(), is_orphan(getpid()))
        });
        let (other, orphan) = answer.unwrap();
        assert!(other != getpid() && orphan && seen == [7, 0]);
        assert_eq!(waitpid(other, None), Err(Errno::ECHILD));
    }

    #[test]
    fn a_kill_does_not_cut_it_short() {
        let ((begun, begin), (go, tell), (done, end)) = (pipe().unwrap(), pipe().unwrap(), pipe().unwrap());
        // SAFETY: the child makes system calls only, but for the stack of `apart`.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                drop((begun, tell, done));
                let _ = apart(|| {
                    let _ = write(&begin, b"x");
                    let _ = read(&go, &mut [0]);
                    let _ = write(&end, b"y");
                });
                // SAFETY: the end.
                unsafe { libc::_exit(1) }
            }
            ForkResult::Parent { child } => {
                drop((begin, go, end));
                let mut byte = [0];
                assert_eq!(read(&begun, &mut byte), Ok(1));
                kill(child, Signal::SIGKILL).unwrap();
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Signaled(child, Signal::SIGKILL, false)));
                write(&tell, b"x").unwrap();
                assert_eq!((read(&done, &mut byte), byte), (Ok(1), [b'y']));
            }
        }
    }
}
