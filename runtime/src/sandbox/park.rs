//! The wait of an init that is to become the first process of a restored job.
//!
//! Everything that it has beyond its sandbox is a hindrance to the job, so it lets go of all descriptors but the standard
//! streams and one: the channel to ckrun, which from now on is the hatch through which ckrun hands descriptors to it. Behind
//! that come the mount namespaces of the job, if it has several.
//! While it waits it is ptraced, and then its memory, its descriptors and its registers are replaced by those of the job.

use super::channel::{Channel, Note};
use crate::error::Result;
use ckrun_virt::Doing;
use ckrun_virt::mounts::Namespaces;
use ckrun_virt::restore::HATCH;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::convert::Infallible;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

/// Tells ckrun that this process is ready, and waits to be made another. It ends when ckrun does.
///
/// # Errors
/// The kernel's, and only before anything was closed.
pub fn park(channel: &Channel, namespaces: &Namespaces) -> Result<Infallible> {
    let namespaces =
        namespaces.iter().flat_map(|namespace| [namespace.handle.as_fd(), namespace.root.as_fd()]);
    let wanted: Vec<_> = std::iter::once(channel.as_fd()).chain(namespaces).collect();
    let end = HATCH + i32::try_from(wanted.len()).map_err(|_| Errno::EMFILE).doing(|| "park")?;
    // First out of each other's way.
    let aside = wanted.iter().map(|fd| {
        let aside = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(end));
        aside.doing(|| "move a descriptor out of the way")
    });
    for (fd, number) in aside.collect::<Result<Vec<_>, _>>()?.into_iter().zip(HATCH..) {
        // SAFETY: plain numbers. Who owned this one never runs again: below, this process can only end.
        let moved = unsafe { libc::dup2(fd, number) };
        Errno::result(moved).doing(|| "move a descriptor to its known number")?;
    }
    // SAFETY: as above; no owner of any of these descriptors runs again.
    let closed = unsafe { libc::close_range(end.unsigned_abs(), libc::c_uint::MAX, 0) };
    Errno::result(closed).doing(|| "close all other descriptors")?;
    // SAFETY: the descriptor is open, and nobody else who would close it runs again.
    let hatch = Channel::from(unsafe { OwnedFd::from_raw_fd(HATCH) });
    if hatch.send(&Note::Ready).is_ok() {
        await_end();
    }
    // SAFETY: ends this process without the destructors of what it has a copy of, whose descriptors are closed.
    unsafe { libc::_exit(1) }
}

/// Returns when the other end of the hatch is closed. What comes through the hatch stays in it for those who are to
/// take it.
fn await_end() {
    loop {
        let mut hatch = libc::pollfd { fd: HATCH, events: 0, revents: 0 };
        // SAFETY: one pollfd, which lives through the call.
        let answer = unsafe { libc::poll(&raw mut hatch, 1, -1) };
        if answer >= 0 || Errno::last() != Errno::EINTR {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::channel::pair;
    use crate::sandbox::namespaces::spawn;
    use crate::sandbox::testing::in_child;
    use ckrun_virt::sys::Clone3;
    use nix::sys::wait::{WaitStatus, waitpid};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_parked_process_has_its_streams_and_the_hatch_and_ends_with_us() {
        in_child(|| {
            let (ours, theirs) = pair().unwrap();
            let ours_there = ours.as_fd().as_raw_fd();
            let parked = spawn(&Clone3::default(), move || {
                let _ = nix::unistd::close(ours_there);
                let Err(_) = park(&theirs, &Namespaces::new());
                2
            })
            .unwrap();
            assert_eq!(ours.receive().unwrap(), Some(Note::Ready));
            let dir = format!("/proc/{}/fd", parked.pid());
            let mut open: Vec<i32> = std::fs::read_dir(&dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().to_string_lossy().parse().unwrap())
                .collect();
            open.sort_unstable();
            assert_eq!(open, [0, 1, 2, HATCH]);
            let at = std::fs::read_link(format!("{dir}/{HATCH}")).unwrap();
            assert!(at.to_string_lossy().starts_with("socket:"), "{at:?}");
            // What comes through the hatch wakes nobody.
            ours.send(&Note::Continue).unwrap();
            drop(ours);
            assert_eq!(waitpid(parked.pid(), None).unwrap(), WaitStatus::Exited(parked.pid(), 1));
        });
    }
}
