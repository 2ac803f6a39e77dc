//! What the tests of the sandbox share.

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `probe` in a forked child, for what would change the test's own process for good. A panic of the probe is a
/// panic of the test.
pub(crate) fn in_child(probe: impl FnOnce()) {
    let (mut told, mut tell) = std::io::pipe().unwrap();
    // SAFETY: glibc makes its allocator usable in the child; the probe takes no lock that another thread of the test
    // harness could hold, and the child never returns from here.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let code = match catch_unwind(AssertUnwindSafe(probe)) {
            Ok(()) => 0,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
                let _ = tell.write_all(text.unwrap_or_default().as_bytes());
                1
            }
        };
        // SAFETY: ends the child without running the test harness's exit handlers.
        unsafe { libc::_exit(code) }
    }
    drop(tell);
    let mut text = String::new();
    told.read_to_string(&mut text).unwrap();
    let pid = Pid::from_raw(pid);
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0), "{text}");
}
