//! From a socket of a job to what an image holds of it.

use super::outside;
use super::peek::Peeked;
use super::reveal;
use super::world::{LISTEN, Listed};
use super::{Class, Credentials, Message, Place, State, Unix, readable};
use crate::fd::Trouble;
use crate::fd::capture::Job;
use crate::fd::captured::{Content, Source};
use crate::fd::located::{Located, locate};
use crate::fd::seen::Info;
use crate::image::Bytes;
use crate::status::Status;
use crate::sys::sockopt;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// `linux/un.h`; not in libc.
const SIOCUNIXFILE: libc::c_ulong = 0x89E0;
/// `asm-generic/socket.h`.
const SO_PEERGROUPS: i32 = 59;

impl Job<'_> {
    /// The unix socket behind `node`, of which `socket` is a duplicate.
    pub(in crate::fd::socket) fn unix(
        &mut self,
        node: usize,
        socket: &OwnedFd,
        class: &Class,
    ) -> Result<Unix, Trouble> {
        let inode = self.graph.nodes[node].seen.stat.st_ino;
        let Some(listed) = self.unix.listed(inode).cloned() else {
            // Made since the list was.
            return Err(Failure::new(format!("find the {class} of inode {inode}"), Errno::ENOENT).into());
        };
        let name = listed.name.clone();
        let called = match &name {
            Some(name) => format!("{class} {}", readable(name)),
            None => class.to_string(),
        };
        let blamed = |trouble: Trouble| trouble.of(&called);
        let file = match &name {
            Some(name) if name.first() != Some(&0) => self.unix_file(socket).map_err(blamed)?,
            _ => None,
        };
        let state = self.unix_state((node, socket), class, inode, &listed, &called)?;
        let (queue, content) = self.messages(node, &called)?;
        match &state {
            // It may have been made by who has connected it, elsewhere.
            State::Outside { to, .. } => outside::unread(&queue, &called, to)?,
            _ => self.at_home(node, class)?,
        }
        Ok(Unix { name: name.map(Bytes::from), file, state, shutdown: listed.shutdown & 3, queue, content })
    }

    /// Sockets are made in the network namespace of the job.
    fn at_home(&self, node: usize, class: &Class) -> Result<(), Trouble> {
        let init = self.graph.members.first().map_or(Pid::from_raw(0), |member| member.host);
        let path = format!("/proc/{init}/ns/net");
        let home = rustix::fs::stat(&path).doing(|| format!("look at {path}"))?.st_ino;
        match self.unix.socket(node) {
            Some((_, there)) if *there != home => Err(Trouble::refused(
                class.to_string(),
                "it was made in another network namespace, and only that of the first process is carried",
            )),
            _ => Ok(()),
        }
    }

    /// Where the file of a socket's name is; None if it was deleted.
    fn unix_file(&mut self, socket: &OwnedFd) -> Result<Option<Place>, Trouble> {
        let what = || "find the file of a unix socket";
        // SAFETY: the call has no further argument; its answer is a new descriptor.
        let fd = match Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCUNIXFILE) }) {
            Err(Errno::ENOENT) => return Ok(None),
            // SAFETY: the kernel has just made it, for nobody else.
            fd => unsafe { OwnedFd::from_raw_fd(fd.doing(what)?) },
        };
        let stat = rustix::fs::fstat(&fd).doing(what)?;
        if stat.st_nlink == 0 {
            return Ok(None);
        }
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).doing(what)?;
        let mount = Info::read(Pid::this(), fd.as_raw_fd())?.mount;
        let link = self.graph.home(mount).1.relative(link.into_os_string().into_vec());
        let (namespace, located) = locate(self, &link, &stat, mount)?;
        match located {
            Located::Deleted(_) => Ok(None),
            Located::Named(path) => Ok(Some(Place {
                path: path.into(),
                namespace,
                mode: stat.st_mode & 0o7777,
                owner: self.container().owner(stat.st_uid, stat.st_gid)?,
            })),
        }
    }

    fn unix_state(
        &self,
        (node, socket): (usize, &OwnedFd),
        class: &Class,
        inode: u64,
        listed: &Listed,
        called: &str,
    ) -> Result<State, Trouble> {
        if listed.state == LISTEN {
            let by = self.peer_credentials(socket)?.unwrap_or_default();
            let waiting = listed.waiting.iter().map(|&client| self.waiting(client, called));
            let waiting = waiting.collect::<Result<_, _>>()?;
            return Ok(State::Listening { backlog: listed.backlog, by, waiting });
        }
        match listed.peer {
            None => Ok(State::Alone),
            Some(0) if self.unix.waits(inode) == Some(true) => Ok(State::Waiting),
            Some(0) if self.unix.waits_outside(inode) => self.outside(socket, called, 0),
            Some(0) => Ok(State::Orphaned {
                from: self.peer_name(socket),
                with: self.peer_credentials(socket)?,
                reset: class.kind != libc::SOCK_DGRAM && self.unix.has_failed(node),
            }),
            Some(peer) => match self.unix.node(peer) {
                Some(other) => Ok(State::Connected {
                    to: self.description(other, -1),
                    with: self.peer_credentials(socket)?,
                }),
                None if self.owned.closing.is_some() && self.peer_name(socket) == self.owned.closing => {
                    Ok(State::Orphaned { from: self.peer_name(socket), with: None, reset: false })
                }
                // In a job that runs it may be on its way in a message, or be new.
                None if self.running() && !self.is_held_outside(peer) => Ok(State::Alone),
                None => self.outside(socket, called, peer),
            },
        }
    }

    /// One who has connected and waits to be accepted.
    fn waiting(&self, inode: u64, called: &str) -> Result<(u32, Credentials), Trouble> {
        let refused = |why: String| Trouble::refused(called, why).passing();
        match self.unix.node(inode) {
            Some(node) => {
                // Where it has been sent to, nobody can read it: that has no descriptor yet.
                let unread = unread(&self.graph.take(node)?)?;
                if unread {
                    let why = "something was sent through a connection that waits to be accepted, where ckrun can't read it";
                    return Err(refused(why.into()).or("let the connection be accepted".into()));
                }
                let member = &self.graph.members[self.graph.nodes[node].member];
                let path = format!("/proc/{}/status", member.host);
                let status = Status::parse(&crate::proc::read(&path).doing(|| format!("read {path}"))?);
                let (uid, gid) = self.container().owner(status.uid[1], status.gid[1])?;
                let by = Credentials { pid: member.pid, uid, gid, groups: Vec::new() };
                Ok((self.description(node, -1), by))
            }
            None if inode == 0 => {
                Err(refused("a connection waits to be accepted of which the other end has gone".into()))
            }
            None => Err(refused("a connection from outside of the job waits to be accepted".into())),
        }
    }

    /// Somebody who is not in the job has the socket.
    fn is_held_outside(&self, inode: u64) -> bool {
        holder(inode).is_some_and(|(pid, ..)| self.graph.members.iter().all(|m| m.host.as_raw() != pid))
    }

    pub(super) fn peer_name(&self, socket: &OwnedFd) -> Option<Bytes> {
        // SAFETY: all zeroes is an address of no family.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address has the length that is said, and both live through the call.
        let got =
            unsafe { libc::getpeername(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut length) };
        let path = std::mem::offset_of!(libc::sockaddr_un, sun_path);
        let length = (length as usize).saturating_sub(path).min(super::LONGEST);
        let bytes = address.sun_path.map(libc::c_char::cast_unsigned);
        super::peek::name(bytes.get(..length).filter(|_| got == 0)?).map(Bytes::from)
    }

    /// SO_PEERCRED; None where the kernel has noted nobody.
    fn peer_credentials(&self, socket: &OwnedFd) -> Result<Option<Credentials>, Failure> {
        let what = || "ask who is at the other end of a unix socket";
        let (pid, uid, gid) = reveal::peer(socket)?;
        if pid == 0 {
            return Ok(None);
        }
        let mut groups = vec![0; 4 << 10];
        let length = loop {
            match sockopt::get(socket, libc::SOL_SOCKET, SO_PEERGROUPS, &mut groups) {
                Err(Errno::ERANGE) if groups.len() < 1 << 20 => groups.resize(groups.len() * 4, 0),
                Err(Errno::ENODATA) => break 0,
                length => break length.doing(what)?,
            }
        };
        let groups = groups[..length].as_chunks().0.iter().map(|word| u32::from_ne_bytes(*word));
        let (uid, gid) = self.container().owner(uid, gid)?;
        let groups = groups.map(|group| self.container().owner(0, group).map(|(_, group)| group));
        let pid = self.virtual_id(pid).unwrap_or(0);
        Ok(Some(Credentials { pid, uid, gid, groups: groups.collect::<Result<_, _>>()? }))
    }

    /// What waits in the socket.
    fn messages(&mut self, node: usize, called: &str) -> Result<(Vec<Message>, Option<String>), Trouble> {
        let mut queue = Vec::new();
        let mut bytes = Vec::new();
        for (peeked, rights) in self.unix.queue(node) {
            let Peeked { bytes: some, by, from, urgent, .. } = peeked;
            let by = by.map(|by| self.sender(by, called)).transpose()?;
            let rights = rights.into_iter().map(|node| self.description(node, -1)).collect();
            queue.push(Message { size: some.len() as u64, rights, by, from: from.map(Bytes::from), urgent });
            bytes.extend(some);
        }
        if bytes.is_empty() {
            return Ok((queue, None));
        }
        let name = format!("files/socket-{}", self.description(node, -1));
        self.contents.push(Content { name: name.clone(), source: Source::Bytes(bytes) });
        Ok((queue, Some(name)))
    }

    fn sender(&self, (host, uid, gid): (i32, u32, u32), called: &str) -> Result<Credentials, Trouble> {
        let Some(pid) = self.virtual_id(host) else {
            return Err(Trouble::refused(
                called,
                format!(
                    "a message waits in it with the credentials of host process {host}, which is not of the job"
                ),
            ));
        };
        let (uid, gid) = self.container().owner(uid, gid)?;
        Ok(Credentials { pid, uid, gid, groups: Vec::new() })
    }
}

/// Something that was sent by the socket waits to be read.
fn unread(socket: &OwnedFd) -> Result<bool, Failure> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel stores an int.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    Errno::result(asked).doing(|| "ask what of a unix socket is unread")?;
    Ok(bytes > 0)
}

/// A process of the host that has the socket `inode`: its id, its name and the number of its descriptor.
pub(super) fn holder(inode: u64) -> Option<(i32, String, i32)> {
    let wanted = format!("socket:[{inode}]");
    let numbers = |path: &str| -> Vec<i32> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    };
    for pid in numbers("/proc") {
        for fd in numbers(&format!("/proc/{pid}/fd")) {
            let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}"));
            if link.is_ok_and(|link| link.as_os_str() == wanted.as_str()) {
                let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                return Some((pid, comm.trim_end().to_owned(), fd));
            }
        }
    }
    None
}
