//! What waits in sockets, and what would have been in its way: to whom datagrams go, what is shut down, who is gone.

use super::agent::outward;
use super::make::{Unmade, socket};
use super::name::Address;
use super::outside;
use super::{Class, Message, State, Unix, all, unix_of};
use crate::fd::Files;
use crate::fd::making::Making;
use crate::image::Image;
use crate::restore::Options;
use crate::sys::sockopt;
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// `linux/socket.h`; not in libc.
const SO_BUF_LOCK: i32 = 72;
/// The most bytes that one socket may hold by an image's word.
const MOST: u64 = 1 << 30;
/// What a sender's buffer is to hold: all that may wait, with what the kernel adds to it.
const HUGE: i32 = 1 << 29;
/// How much of a stream is sent at once.
const PIECE: usize = 64 << 10;

impl Unmade {
    /// Puts into each socket what waits in it.
    pub fn fill(
        mut self,
        files: &Files,
        making: &mut Making<'_>,
        image: &Image,
        wanted: &Options,
    ) -> Result<(), Error> {
        let mut senders = Senders::default();
        for (id, class, unix) in all(files).filter(|(.., unix)| !unix.queue.is_empty()) {
            let bytes = match &unix.content {
                Some(name) => image.bytes(name, MOST)?,
                None => Vec::new(),
            };
            let mut rest = bytes.as_slice();
            for message in &unix.queue {
                let size = usize::try_from(message.size).unwrap_or(usize::MAX);
                let Some((bytes, tail)) = rest.split_at_checked(size) else {
                    let name = unix.content.as_deref().unwrap_or("files.json");
                    return Err(Error::Damaged(format!("{name}: shorter than its messages")));
                };
                rest = tail;
                self.send(files, making, &mut senders, (id, class, unix), message, bytes)?;
            }
        }
        senders.close(making)?;
        for (id, class, unix) in all(files) {
            if let State::Outside { to, owned } = &unix.state {
                outside::connect((id, class), to, *owned, making, wanted)?;
            }
        }
        self.finish(files, making)?;
        Ok(())
    }

    fn send(
        &mut self,
        files: &Files,
        making: &mut Making<'_>,
        senders: &mut Senders,
        (id, class, unix): (u32, &Class, &Unix),
        message: &Message,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let (from, to) = match self.peer(files, id, unix, message) {
            Some(peer) => (making.at_or(peer), None),
            None if class.kind == libc::SOCK_DGRAM => {
                let from = self.sender(files, making, senders, class, message)?;
                (from, Some(self.reach(making, id)?))
            }
            None => {
                return Err(Failure::new(
                    format!("find who has sent what waits in a {class}"),
                    Errno::ENOTCONN,
                ));
            }
        };
        let from = senders.take(making, from)?;
        let rights: Result<Vec<OwnedFd>, Failure> =
            message.rights.iter().map(|&id| making.worker.pidfd_getfd(making.at(id))).collect();
        let by = match &message.by {
            Some(by) => {
                let host = making.worker.host();
                let pid = self.agents.host(making, by.pid)?.as_raw();
                let (uid, gid) = (outward(host, "uid_map", by.uid)?, outward(host, "gid_map", by.gid)?);
                Some(libc::ucred { pid, uid, gid })
            }
            None => None,
        };
        let name = to.as_ref().map(|(name, _)| name.as_slice());
        let flags = if message.urgent { libc::MSG_OOB } else { 0 };
        let rights = rights?;
        let mut rights: Vec<BorrowedFd<'_>> = rights.iter().map(AsFd::as_fd).collect();
        let stream = class.kind == libc::SOCK_STREAM;
        let pieces: Vec<&[u8]> = if stream { bytes.chunks(PIECE).collect() } else { vec![bytes] };
        for piece in pieces {
            // Descriptors come with the first byte.
            let rights = std::mem::take(&mut rights);
            transmit(from, piece, &rights, by, name, flags).doing(|| format!("fill a {class}"))?;
        }
        Ok(())
    }

    /// The number of the socket that is connected to this one and has sent the message, among those of the job or those
    /// that are to go.
    fn peer(&self, files: &Files, id: u32, unix: &Unix, message: &Message) -> Option<Peer> {
        if let Some(&fd) = self.doomed.get(&id) {
            return Some(Peer::Number(fd));
        }
        let State::Connected { to, .. } = unix.state else { return None };
        let (class, other) = unix_of(files, to)?;
        let mutual = matches!(other.state, State::Connected { to, .. } if to == id);
        let sent = class.kind != libc::SOCK_DGRAM || (to != id && other.name == message.from);
        (mutual && sent).then_some(Peer::Description(to))
    }

    /// A datagram socket with the name of the one that the message is from.
    fn sender(
        &mut self,
        files: &Files,
        making: &mut Making<'_>,
        senders: &mut Senders,
        class: &Class,
        message: &Message,
    ) -> Result<RawFd, Failure> {
        let of = |(_, of, unix): &(u32, &Class, &Unix)| of.kind == class.kind && unix.name == message.from;
        if let Some((id, ..)) = all(files).find(of).filter(|_| message.from.is_some()) {
            return Ok(making.at(id));
        }
        let key = message.from.as_deref().map(<[u8]>::to_vec);
        if let Some(&fd) = senders.made.get(&key) {
            return Ok(fd);
        }
        let fd = making.number();
        socket(&mut making.program, *class, fd);
        if let Some(name) = &message.from {
            self.yard.bind(making, fd, name, None);
        }
        making.run()?;
        senders.made.insert(key, fd);
        Ok(fd)
    }

    /// The address by which ckrun reaches a socket from outside, and what must stay open meanwhile.
    fn reach(&self, making: &Making<'_>, id: u32) -> Result<(Vec<u8>, Option<OwnedFd>), Failure> {
        let what = || "reach a unix socket";
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match self.addresses.get(&id) {
            Some(Address::Abstract(name)) => return Ok((name.clone(), None)),
            Some(Address::File(path)) => rustix::fs::openat2(
                making.root(0),
                path.as_slice(),
                flags,
                Mode::empty(),
                ResolveFlags::IN_ROOT,
            ),
            Some(Address::There(directory, name)) => {
                let directory = making.worker.pidfd_getfd(*directory)?;
                rustix::fs::openat(directory, name.as_slice(), flags, Mode::empty())
            }
            Some(Address::Aside(name)) => {
                rustix::fs::openat(self.yard.aside(), name.as_str(), flags, Mode::empty())
            }
            None => return Err(Failure::new(what(), Errno::EDESTADDRREQ)),
        };
        let file = file.doing(what)?;
        Ok((format!("/proc/self/fd/{}", file.as_raw_fd()).into_bytes(), Some(file)))
    }

    /// Sets what would have been in the way.
    fn finish(mut self, files: &Files, making: &mut Making<'_>) -> Result<(), Failure> {
        for (id, class, unix) in all(files) {
            let State::Connected { to, .. } = unix.state else { continue };
            let Some((_, other)) = unix_of(files, to) else { continue };
            let mutual = to != id && matches!(other.state, State::Connected { to, .. } if to == id);
            if let Some(address) = self.addresses.get(&to)
                && class.kind == libc::SOCK_DGRAM
                && !mutual
            {
                let fd = making.at(id);
                self.yard.connect(&mut making.program, fd, address);
            }
        }
        for (id, _, unix) in all(files) {
            if let (Some(&fd), State::Orphaned { reset: true, .. }) = (self.doomed.get(&id), &unix.state) {
                making.run()?;
                let own = making.worker.pidfd_getfd(making.at(id))?;
                transmit(own.as_fd(), b"!", &[], None, None, 0).doing(|| "leave something unread")?;
                making.program.call("close a descriptor", libc::SYS_close, &[fd.into()]);
            } else if let Some(&fd) = self.doomed.get(&id) {
                making.program.call("close a descriptor", libc::SYS_close, &[fd.into()]);
            }
            // SHUT_RD, SHUT_WR, SHUT_RDWR are one less than the bits.
            let gone = matches!(unix.state, State::Orphaned { .. } | State::Waiting);
            if unix.shutdown != 0 && !gone {
                let args = [making.at(id).into(), u32::from(unix.shutdown - 1).into()];
                making.program.call("shut down a socket", libc::SYS_shutdown, &args);
            }
            making.run_if_large()?;
        }
        self.yard.clear(making);
        making.run()?;
        std::mem::take(&mut self.agents).dismiss(making)
    }
}

/// Who is connected to a socket.
enum Peer {
    Description(u32),
    Number(RawFd),
}

impl Making<'_> {
    fn at_or(&self, peer: Peer) -> RawFd {
        match peer {
            Peer::Description(id) => self.at(id),
            Peer::Number(fd) => fd,
        }
    }
}

/// Sockets that send.
#[derive(Default)]
struct Senders {
    /// Those that are there only for that, by their names.
    made: BTreeMap<Option<Vec<u8>>, RawFd>,
    /// ckrun's duplicates, with the sizes and the locks of their buffers.
    taken: BTreeMap<RawFd, (OwnedFd, i32, i32)>,
}

impl Senders {
    /// ckrun's duplicate of a socket, with a buffer for all that is to be sent.
    fn take(&mut self, making: &Making<'_>, fd: RawFd) -> Result<BorrowedFd<'_>, Failure> {
        let what = || "enlarge the buffer of a unix socket";
        let (own, ..) = match self.taken.entry(fd) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => {
                let own = making.worker.pidfd_getfd(fd)?;
                let number = |name| sockopt::number(&own, libc::SOL_SOCKET, name).doing(what);
                let (size, lock) = (number(libc::SO_SNDBUF)?, number(SO_BUF_LOCK)?);
                sockopt::set_number(&own, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, HUGE).doing(what)?;
                place.insert((own, size, lock))
            }
        };
        Ok(OwnedFd::as_fd(own))
    }

    /// Gives the buffers their sizes again, and closes what is not the job's.
    fn close(self, making: &mut Making<'_>) -> Result<(), Failure> {
        let what = || "reset the buffer of a unix socket";
        for (own, size, lock) in self.taken.into_values() {
            // The kernel doubles it.
            sockopt::set_number(&own, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, size / 2).doing(what)?;
            sockopt::set_number(&own, libc::SOL_SOCKET, SO_BUF_LOCK, lock).doing(what)?;
        }
        for fd in self.made.into_values() {
            making.program.call("close a descriptor", libc::SYS_close, &[fd.into()]);
        }
        making.run()
    }
}

/// sendmsg(2): with descriptors, in somebody's name, to somebody; it never waits.
fn transmit(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    rights: &[BorrowedFd<'_>],
    by: Option<libc::ucred>,
    to: Option<&[u8]>,
    flags: i32,
) -> Result<(), Errno> {
    use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, UnixCredentials, sendmsg};
    let fds: Vec<RawFd> = rights.iter().map(AsRawFd::as_raw_fd).collect();
    let by = by.map(UnixCredentials::from);
    let mut control = Vec::new();
    if !fds.is_empty() {
        control.push(ControlMessage::ScmRights(&fds));
    }
    if let Some(by) = &by {
        control.push(ControlMessage::ScmCredentials(by));
    }
    let address = match to {
        Some([0, name @ ..]) => Some(UnixAddr::new_abstract(name)?),
        Some(path) => Some(UnixAddr::new(path)?),
        None => None,
    };
    let flags = MsgFlags::from_bits_retain(flags) | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let parts = [std::io::IoSlice::new(bytes)];
    let sent = sendmsg(socket.as_raw_fd(), &parts, &control, flags, address.as_ref())?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::ENOBUFS) }
}
