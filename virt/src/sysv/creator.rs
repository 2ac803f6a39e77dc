//! An object of System V remembers who made it, and nobody can change that afterwards: it must be made by that user.

use crate::sys::check;
use crate::{Doing, Failure};
use nix::errno::Errno;

/// Capabilities stay when the effective user changes (capabilities(7)).
const SECBIT_NO_SETUID_FIXUP: libc::c_long = 4;

/// Runs `work` while this thread's effective user and group are `creator`, with the capabilities that it has anyway.
pub(super) fn acting_as<T>(creator: (u32, u32), work: impl FnOnce() -> T) -> Result<T, Failure> {
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if creator == own {
        return Ok(work());
    }
    let what = || format!("act as user {} and group {}", creator.0, creator.1);
    let before = Before::look().doing(what)?;
    bits_set(before.bits | SECBIT_NO_SETUID_FIXUP).doing(what)?;
    let done = become_user(creator).map(|()| work());
    // Each of these only takes back what was done before, and had the privilege for it.
    if let Err(errno) = become_user(own).and(before.restore()) {
        log::error!("become user {} again: {errno}", own.0);
    }
    done.doing(what)
}

/// What the kernel changes in a process whose effective user changes, and does not change back with it.
struct Before {
    bits: libc::c_long,
    dumpable: libc::c_long,
    parent_death_signal: libc::c_int,
}

impl Before {
    fn look() -> Result<Before, Errno> {
        let mut parent_death_signal: libc::c_int = 0;
        // SAFETY: the kernel writes one int.
        check(unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut parent_death_signal) }.into())?;
        let bits = prctl(libc::PR_GET_SECUREBITS, 0)?;
        Ok(Before { bits, dumpable: prctl(libc::PR_GET_DUMPABLE, 0)?, parent_death_signal })
    }

    fn restore(&self) -> Result<(), Errno> {
        // 2 can't be asked for: it is what sysctl fs.suid_dumpable has made of it, now as before.
        if self.dumpable != 2 {
            prctl(libc::PR_SET_DUMPABLE, self.dumpable)?;
        }
        prctl(libc::PR_SET_PDEATHSIG, self.parent_death_signal.into())?;
        bits_set(self.bits)
    }
}

fn prctl(command: libc::c_int, value: libc::c_long) -> Result<libc::c_long, Errno> {
    // SAFETY: the commands above take numbers only.
    check(unsafe { libc::prctl(command, value, 0, 0, 0) }.into())
}

fn bits_set(value: libc::c_long) -> Result<(), Errno> {
    prctl(libc::PR_SET_SECUREBITS, value).map(drop)
}

/// The calls themselves and not libc's functions, which would do it for all threads.
fn become_user((uid, gid): (u32, u32)) -> Result<(), Errno> {
    const KEEP: libc::c_long = -1;
    for (call, id) in [(libc::SYS_setresgid, gid), (libc::SYS_setresuid, uid)] {
        // SAFETY: numbers only.
        check(unsafe { libc::syscall(call, KEEP, libc::c_long::from(id), KEEP) })?;
    }
    Ok(())
}
