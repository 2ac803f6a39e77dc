//! What waits in a socket, looked at without being taken.
//!
//! With SO_PEEK_OFF each look goes on where the last one ended. It belongs to the socket, like the options that make the
//! kernel tell who has sent what; all of them are put back, also if ckrun is killed ([`Undo`]). A look at a message with descriptors makes copies of them.

use crate::fd::stream::ready;
use crate::sys::{Undo, sockopt};
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::event::PollFlags;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `linux/socket.h` and `asm-generic/socket.h`; not in libc.
const SO_PASSPIDFD: i32 = 76;
const SO_PASSRIGHTS: i32 = 83;
/// `asm-generic/sockios.h`; not in libc.
const SIOCATMARK: libc::c_ulong = 0x8905;
/// More than the default size of a socket's buffer.
const ROOM: usize = 256 << 10;
/// The most descriptors of a message (SCM_MAX_FD), with credentials and a security label.
const CONTROL: usize = 4096;

/// One message, or a part of a stream that was sent by one process and carries at most one set of descriptors.
#[derive(Debug, Default)]
pub(super) struct Peeked {
    pub bytes: Vec<u8>,
    pub rights: Vec<OwnedFd>,
    /// Process, user and group, with the numbers of ckrun's namespaces.
    pub by: Option<(i32, u32, u32)>,
    /// The name of the sender's socket.
    pub from: Option<Vec<u8>>,
    /// One byte out of band.
    pub urgent: bool,
}

/// Options that are set for the look.
struct Changed<'a> {
    socket: BorrowedFd<'a>,
    undo: &'a mut Undo,
}

impl<'a> Changed<'a> {
    fn set(socket: BorrowedFd<'a>, undo: &'a mut Undo) -> Result<Self, Errno> {
        let changed = Changed { socket, undo };
        let wanted = [
            (libc::SO_PEEK_OFF, 0),
            (libc::SO_PASSCRED, 1),
            (SO_PASSRIGHTS, 1),
            (SO_PASSPIDFD, 0),
            (libc::SO_PASSSEC, 0),
        ];
        for (name, value) in wanted {
            match sockopt::number(socket, libc::SOL_SOCKET, name) {
                Ok(old) if old != value => {
                    changed.undo.note(socket, libc::SOL_SOCKET, name)?;
                    sockopt::set_number(socket, libc::SOL_SOCKET, name, value)?;
                }
                // The kernel does not have all of them.
                _ => {}
            }
        }
        Ok(changed)
    }

    fn seek(&self, offset: usize) -> Result<(), Errno> {
        let offset = i32::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        sockopt::set_number(self.socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        self.undo.put_back();
    }
}

/// All that waits in a socket of the type `kind`.
pub(super) fn peek(socket: &OwnedFd, kind: i32, undo: &mut Undo) -> Result<Vec<Peeked>, Failure> {
    let what = || "look at what waits in a unix socket";
    let changed = Changed::set(socket.as_fd(), undo).doing(what)?;
    let urgent = if kind == libc::SOCK_STREAM { urgent(socket) } else { None };
    let mut found = Vec::new();
    let mut offset = 0;
    let mut room = ROOM;
    // To read an error of the socket takes it away. A stream tells it behind its data, the others before.
    let failed = has_failed(socket);
    let bytes = rustix::io::ioctl_fionread(socket).doing(what)?;
    loop {
        if failed && offset as u64 >= bytes {
            break;
        }
        let (mut message, truncated) = match receive(socket.as_fd(), room) {
            Err(Errno::EAGAIN) => break,
            Err(Errno::ECONNRESET) if failed => continue,
            answer => match answer.doing(what)? {
                Some(answer) => answer,
                None => break,
            },
        };
        // At its end, a stream too has credentials: nobody's.
        if kind == libc::SOCK_STREAM && message.bytes.is_empty() {
            break;
        }
        if truncated && kind != libc::SOCK_STREAM {
            room *= 4;
            changed.seek(offset).doing(what)?;
            continue;
        }
        let start = offset;
        offset += message.bytes.len();
        if kind == libc::SOCK_STREAM && !message.rights.is_empty() && !message.bytes.is_empty() {
            changed.seek(start).doing(what)?;
            let at = rights_at(socket.as_fd(), message.bytes.len()).doing(what)?;
            changed.seek(offset).doing(what)?;
            let rest = message.bytes.split_off(at);
            let before = Peeked { bytes: message.bytes, by: message.by, ..Peeked::default() };
            found.extend((at > 0).then_some(before));
            found.push(Peeked { bytes: rest, rights: message.rights, by: message.by, ..Peeked::default() });
            continue;
        }
        found.push(message);
    }
    drop(changed);
    if let Some(byte) = urgent {
        mark(&mut found, socket, byte);
    }
    Ok(found)
}

/// Where among the next `size` bytes of a stream those begin that were sent with descriptors. They are the last of what one
/// look shows, but others may come before them. The kernel copies what was sent at once as a whole or not at all; so room
/// that ends one byte too early ends the look where they begin.
fn rights_at(socket: BorrowedFd<'_>, size: usize) -> Result<usize, Errno> {
    let page = rustix::param::page_size();
    let valid = (size - 1).next_multiple_of(page).max(page);
    let room = Room::new(valid, page)?;
    // SAFETY: inside the mapping.
    let start = unsafe { room.start.add(valid + 1 - size) };
    let mut part = libc::iovec { iov_base: start, iov_len: size };
    // SAFETY: all zeroes is a message without anything.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    // SAFETY: the kernel writes to nothing but the mapping, which is nobody else's, and finds where it ends.
    let got =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    match Errno::result(got) {
        Err(Errno::EFAULT) => Ok(0),
        got => Ok((got? as usize).min(size)),
    }
}

/// Memory behind which there is none.
struct Room {
    start: *mut libc::c_void,
    length: usize,
}

impl Room {
    fn new(valid: usize, page: usize) -> Result<Room, Errno> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let length = valid + page;
        // SAFETY: a new mapping where the kernel has room for it.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, prot, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let room = Room { start, length };
        // SAFETY: the last page of the mapping, which nobody has used.
        let closed = unsafe { libc::mprotect(start.add(valid), page, libc::PROT_NONE) };
        Errno::result(closed).map(|_| room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nobody uses it any more.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// The next call that reads is to fail.
pub(super) fn has_failed(socket: &OwnedFd) -> bool {
    ready(socket.as_fd(), PollFlags::IN).contains(PollFlags::ERR)
}

/// The byte out of band that nobody has read.
fn urgent(socket: &OwnedFd) -> Option<u8> {
    let mut byte = [0];
    let flags = nix::sys::socket::MsgFlags::MSG_OOB | nix::sys::socket::MsgFlags::MSG_PEEK;
    let got = nix::sys::socket::recv(socket.as_raw_fd(), &mut byte, flags);
    matches!(got, Ok(1)).then_some(byte[0])
}

/// Tells the byte out of band from the others: a look ends before it, and only another one goes over it. It is always the
/// last of what was sent with it.
fn mark(found: &mut Vec<Peeked>, socket: &OwnedFd, byte: u8) {
    let mut at_mark: libc::c_int = 0;
    // SAFETY: the kernel stores an int.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCATMARK, &raw mut at_mark) };
    let one = |by| Peeked { bytes: vec![byte], by, urgent: true, ..Peeked::default() };
    if asked == 0 && at_mark == 1 {
        let by = found.first().and_then(|first| first.by);
        if found.first().is_some_and(|first| first.bytes.first() == Some(&byte) && inline(socket)) {
            found[0].bytes.remove(0);
            if found[0].bytes.is_empty() {
                found.remove(0);
            }
        }
        found.insert(0, one(by));
        return;
    }
    let begins = |piece: &Peeked| piece.bytes.first() == Some(&byte) && piece.rights.is_empty();
    if let Some(at) = (1..found.len()).find(|&at| begins(&found[at])) {
        let by = found[at].by;
        found[at].bytes.remove(0);
        if found[at].bytes.is_empty() {
            found.remove(at);
        }
        found.insert(at, one(by));
    }
}

fn inline(socket: &OwnedFd) -> bool {
    sockopt::number(socket, libc::SOL_SOCKET, libc::SO_OOBINLINE).is_ok_and(|on| on != 0)
}

/// The next message, and whether it is longer than `room`; None at the end.
fn receive(socket: BorrowedFd<'_>, room: usize) -> Result<Option<(Peeked, bool)>, Errno> {
    let mut bytes = vec![0_u8; room];
    let mut control = vec![0_u64; CONTROL / 8];
    // SAFETY: all zeroes is an address of no family.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: room };
    // SAFETY: all zeroes is a message without anything.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut address).cast();
    header.msg_namelen = size_of_val(&address) as libc::socklen_t;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every pointer in the header is to something that lives through the call and has the length that is said.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let size = Errno::result(got)? as usize;
    bytes.truncate(size);
    let mut message = Peeked { bytes, ..Peeked::default() };
    let mut whole = false;
    // SAFETY: the header is as the kernel has left it; CMSG_NXTHDR stays inside its control bytes.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !next.is_null() {
        // SAFETY: not null, so it is inside the control bytes, which are aligned to 8.
        let (level, kind, length) = unsafe { ((*next).cmsg_level, (*next).cmsg_type, (*next).cmsg_len) };
        // SAFETY: the data follows the header.
        let data = unsafe { libc::CMSG_DATA(next) };
        // SAFETY: a computation.
        let length = length.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for index in 0..length / size_of::<RawFd>() {
                    // SAFETY: so many descriptors are there, and the kernel has made them for us.
                    let fd =
                        unsafe { OwnedFd::from_raw_fd(data.cast::<RawFd>().add(index).read_unaligned()) };
                    message.rights.push(fd);
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                whole = true;
                // SAFETY: it is a struct ucred.
                let by = unsafe { data.cast::<libc::ucred>().read_unaligned() };
                message.by = (by.pid != 0).then_some((by.pid, by.uid, by.gid));
            }
            _ => {}
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
    }
    // With SO_PASSCRED every message has credentials, and the end has none.
    if size == 0 && !whole {
        return Ok(None);
    }
    let path = std::mem::offset_of!(libc::sockaddr_un, sun_path);
    let length = (header.msg_namelen as usize).saturating_sub(path).min(super::LONGEST);
    message.from = name(&address.sun_path.map(libc::c_char::cast_unsigned)[..length]);
    Ok(Some((message, header.msg_flags & libc::MSG_TRUNC != 0)))
}

/// A name as sockaddr_un has it: one of a path ends with a NUL, which is not a part of it.
pub(super) fn name(bytes: &[u8]) -> Option<Vec<u8>> {
    match bytes {
        [] => None,
        [0, ..] => Some(bytes.to_vec()),
        _ => Some(bytes.split(|&b| b == 0).next().unwrap_or_default().to_vec()),
    }
}
