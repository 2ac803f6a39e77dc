//! The keeper: the supervisor's parent, which does nothing but wait for its end, and then starts another one.
//!
//! What the kernel would take back with its last holder, the keeper holds too: the listener of the job's filter (without
//! which the calls that it is about fail with ENOSYS), the sockets to which verbs and the job connect, and the memory that
//! knows which calls have not been answered ([`Pending`]). A supervisor puts new ones on the shelf, a pair of sockets of
//! which the keeper has both ends; there they are when it is killed, at whatever moment.
//!
//! When the keeper itself is killed, the supervisor goes on without it. Only when both are is there nobody, until the next
//! verb that needs the plugins.

use super::record::{Record, Stage};
use super::{launch, serve};
use crate::error::{Error, Result};
use crate::intercept::pending::Pending;
use crate::state::InitProcess;
use ckrun_virt::proc::Stat;
use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// So many in a row may be killed before they have found their feet; then no other is started, and what waits is told.
const TRIES: u32 = 10;

/// The pause before the second of them; each is twice as long as the one before, a few seconds in all.
const PAUSE: Duration = Duration::from_millis(5);

/// What is put on the shelf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thing {
    /// The listener of the filter over the system calls that are answered.
    Calls = 1,
    /// The socket to which the job connects.
    Job,
    /// Nothing to hold: a supervisor that has taken over has all that it needs.
    Feet,
}

/// Where a supervisor puts what must not end with it.
#[derive(Debug)]
pub struct Shelf {
    to: OwnedFd,
    from: OwnedFd,
}

impl Shelf {
    /// An empty one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> Result<Shelf, Failure> {
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (to, from) = pair.doing(|| "make a socket pair")?;
        Ok(Shelf { to, from })
    }

    /// Puts something there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn put(&self, what: Thing, fd: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let bytes = [what as u8];
        let sent = sendmsg(&self.to, &[IoSlice::new(&bytes)], &mut control, SendFlags::DONTWAIT);
        sent.map(drop).doing(|| "leave a descriptor with the supervisor's keeper")
    }

    /// Takes the next thing from it.
    fn take(&self) -> Option<(u8, Option<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let (mut bytes, flags) = ([0], RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC);
        let got = recvmsg(&self.from, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
        got.ok().filter(|got| got.bytes == 1)?;
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        Some((bytes[0], fd))
    }
}

/// What a supervisor gets.
#[derive(Debug)]
pub struct Kept {
    /// The socket to which verbs connect.
    pub verbs: OwnedFd,
    /// See [`Thing::Calls`]; of a predecessor.
    pub calls: Option<OwnedFd>,
    /// See [`Thing::Job`]; of a predecessor.
    pub job: Option<OwnedFd>,
    /// The calls that were not answered.
    pub pending: Pending,
    /// For what comes to it.
    pub shelf: Shelf,
    /// The keeper.
    pub keeper: InitProcess,
    /// There was one before, which was killed.
    pub again: bool,
}

impl Kept {
    fn collect(&mut self) -> bool {
        let mut stood = false;
        while let Some((what, fd)) = self.shelf.take() {
            match (what, fd) {
                (1, Some(fd)) => self.calls = Some(fd),
                (2, Some(fd)) => self.job = Some(fd),
                _ => stood = true,
            }
        }
        stood
    }
}

/// Keeps a supervisor for the container in `home` until its job is gone. `verb` leads to the verb that has started us. It
/// returns in the supervisor, too, at its end.
///
/// # Errors
/// The kernel's; there is no supervisor any more, and no other is started.
pub fn keep(home: &Path, verb: OwnedFd) -> Result<()> {
    let pid = getpid();
    let keeper = InitProcess { pid: pid.as_raw(), started: Stat::of(pid).map_or(0, |stat| stat.started) };
    let (verbs, pending, shelf) = (launch::open(home)?, Pending::new()?, Shelf::new()?);
    let mut kept = Kept { verbs, calls: None, job: None, pending, shelf, keeper, again: false };
    let (mut verb, mut fallen) = (Some(verb), 0);
    loop {
        // SAFETY: there is one thread.
        let child = match unsafe { fork() }.doing(|| "start the supervisor of the job's plugins")? {
            ForkResult::Child => return serve::serve(home, verb, kept),
            ForkResult::Parent { child } => child,
        };
        // The end of a supervisor is to be the end of this connection.
        verb = None;
        let how = end(child)?;
        if let WaitStatus::Exited(_, 0) = how {
            return Ok(());
        }
        fallen = if kept.collect() { 1 } else { fallen + 1 };
        let lives =
            Record::read(home)?.is_some_and(|record| record.over.is_none() && record.stage != Stage::Making);
        if !lives || fallen >= TRIES {
            return Err(Error::Supervisor { why: format!("it was killed: {how:?}") });
        }
        log::warn!("the supervisor was killed ({how:?}): another one takes over");
        if fallen > 1 {
            std::thread::sleep(PAUSE * (1 << (fallen - 2)));
        }
        kept.again = true;
    }
}

fn end(child: Pid) -> Result<WaitStatus, Failure> {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            other => return other.doing(|| "wait for the supervisor"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_on_the_shelf_outlives_who_put_it_there() {
        let shelf = Shelf::new().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let put = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    shelf.put(Thing::Calls, Some(writer.as_fd())).unwrap();
                    shelf.put(Thing::Feet, None).unwrap();
                    drop(writer);
                })
                .join()
        });
        put.unwrap();
        let (what, fd) = shelf.take().unwrap();
        assert_eq!(what, Thing::Calls as u8);
        std::io::Write::write_all(&mut std::fs::File::from(fd.unwrap()), b"kept").unwrap();
        assert!(matches!(shelf.take(), Some((3, None))));
        assert!(shelf.take().is_none());
        let mut said = String::new();
        std::io::Read::read_to_string(&mut reader, &mut said).unwrap();
        assert_eq!(said, "kept");
    }
}
