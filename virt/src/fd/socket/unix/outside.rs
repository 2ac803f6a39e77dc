//! Connections to somebody outside of the job. They are made anew at a restart: to whom the restart says, if somebody
//! answers for the other end; or else, if that was asked for, to the path by which the container knows it.
//!
//! What the job has sent is the other end's. What it has not read can't be put in front of what comes from the new peer, as
//! TCP lets it be: whoever answers for the other end has to wait until it is read. Who connects again is ckrun, and that is
//! whom the other end finds in SO_PEERCRED.

use super::{Class, Message, State, Unix, readable};
use crate::fd::Trouble;
use crate::fd::capture::Job;
use crate::fd::container::{find_followed, join, mount_id, mounts, same};
use crate::fd::making::Making;
use crate::image::Bytes;
use crate::restore::{Options, Peer};
use crate::sys::sockopt;
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::net::SocketAddrUnix;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// How long somebody may take to accept a connection while others wait, in seconds.
const PATIENCE: u64 = 10;

impl Unix {
    /// What it is to be connected to, though nobody answers for that.
    pub fn leads_to(&self) -> Option<&Bytes> {
        match &self.state {
            State::Outside { to, owned: false } => Some(to),
            _ => None,
        }
    }
}

impl Job<'_> {
    /// The other end of a socket, of inode `peer`, is somebody else's.
    pub(super) fn outside(&self, socket: &OwnedFd, called: &str, peer: u64) -> Result<State, Trouble> {
        let name = self.peer_name(socket);
        if let Some(to) = name.as_ref().and_then(|name| self.owned.unix_name(name)) {
            return Ok(State::Outside { to: to.clone(), owned: true });
        }
        let place = match &name {
            Some(name) if name.first() == Some(&0) => Some(name.clone()),
            Some(name) => self.path_inside(name)?,
            None => None,
        };
        if self.owned.outward.unix
            && let Some(to) = place
        {
            return Ok(State::Outside { to, owned: false });
        }
        let remedy = if place.is_some() {
            "--ext-unix-sk connects again, and `--map unix:PATH=PATH` to where it is then"
        } else if name.is_some() {
            "connect by a path of the container, or by `--map unix:PATH=PATH`, or close the connection"
        } else {
            "close the connection"
        };
        let at = name.map(|name| format!(" to {}", readable(&name))).unwrap_or_default();
        let holder = super::capture::holder(peer)
            .map(|(pid, comm, fd)| format!(": host process {pid} ({comm}) has it as descriptor {fd}"))
            .unwrap_or_default();
        let why = format!("its other end is outside of the job{holder}");
        Err(Trouble::refused(format!("{called} connected{at}"), why).or(remedy.into()))
    }

    /// By which path the container finds the socket that somebody has bound to `name`: by the same one, or where a mount
    /// shows the directory in which it is on the host.
    fn path_inside(&self, name: &[u8]) -> Result<Option<Bytes>, Failure> {
        let container = self.container();
        let is_socket = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
        let here = std::fs::canonicalize(OsStr::from_bytes(name)).ok().filter(|_| name.starts_with(b"/"));
        let stat = here.as_ref().and_then(|path| rustix::fs::stat(path).ok()).filter(is_socket);
        let there = find_followed(container.root(), name)?.filter(is_socket);
        if there.is_some_and(|there| stat.is_none_or(|stat| same(&stat, &there))) {
            return Ok(Some(name.into()));
        }
        let (Some(here), Some(stat)) = (here, stat) else { return Ok(None) };
        let mount = mount_id(&here.to_string_lossy())?;
        let Some((_, mount)) = mounts(Pid::this())?.into_iter().find(|(id, _)| *id == mount) else {
            return Ok(None);
        };
        let inside = mount.inside(&here.into_os_string().into_vec());
        for shown in container.all().filter(|shown| shown.device == mount.device) {
            let path = match inside.strip_prefix(shown.root.strip_suffix(b"/").unwrap_or(&shown.root)) {
                Some(b"") => shown.point.clone(),
                Some([b'/', rest @ ..]) => join(&shown.point, rest),
                _ => continue,
            };
            if container.finds(&path, &stat)? {
                return Ok(Some(path.into()));
            }
        }
        Ok(None)
    }
}

/// Refuses what waits to be read.
pub(super) fn unread(queue: &[Message], called: &str, to: &[u8]) -> Result<(), Trouble> {
    if queue.is_empty() {
        return Ok(());
    }
    let bytes: u64 = queue.iter().map(|message| message.size).sum();
    let why = format!("{bytes} bytes wait in it that the job has not read, and nobody could send them again");
    let remedy = "let the other end wait until the job has read them";
    Err(Trouble::refused(format!("{called} connected to {}", readable(to)), why).or(remedy.into()))
}

/// Connects the socket of description `id` again.
pub(super) fn connect(
    (id, class): (u32, &Class),
    to: &Bytes,
    owned: bool,
    making: &mut Making<'_>,
    wanted: &Options,
) -> Result<(), Error> {
    let shown = readable(to);
    let what = || format!("connect to {shown}");
    let own = making.worker.pidfd_getfd(making.at(id))?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match wanted.sockets.get(to).filter(|_| owned) {
        _ if !owned => {
            let address = if let [0, name @ ..] = &to[..] {
                Address::Abstract(name)
            } else {
                let (root, resolve) = (making.root(0), ResolveFlags::IN_ROOT);
                let file = rustix::fs::openat2(root, &to[..], flags, Mode::empty(), resolve);
                Address::File(file.doing(what)?)
            };
            dial(&own, &address).doing(what)?;
        }
        Some(Peer::Unix(real)) => {
            let what = || format!("connect to {shown}, which is {} now", readable(real));
            let address = if let [b'@' | 0, name @ ..] = &real[..] {
                Address::Abstract(name)
            } else {
                Address::File(rustix::fs::open(&real[..], flags, Mode::empty()).doing(what)?)
            };
            dial(&own, &address).doing(what)?;
        }
        Some(Peer::Given(socket)) => {
            if Class::of(socket.as_fd())? != *class {
                return Err(Failure::new(what(), Errno::EPROTOTYPE).into());
            }
            let there = making.worker.give(socket.as_fd())?;
            let to = making.at(id);
            making.put_at(there.into(), to);
            making.run()?;
        }
        Some(Peer::Tcp(_)) => return Err(Failure::new(what(), Errno::EAFNOSUPPORT).into()),
        None => return Err(Failure::new(what(), Errno::EDESTADDRREQ).into()),
    }
    Ok(())
}

/// Where to connect to.
enum Address<'a> {
    Abstract(&'a [u8]),
    /// Opened: so its path is never too long, and nobody puts something else there meanwhile.
    File(OwnedFd),
}

/// Connects, and waits while the other end has too many who wait.
fn dial(socket: &OwnedFd, address: &Address<'_>) -> Result<(), Errno> {
    let number = |errno: rustix::io::Errno| Errno::from_raw(errno.raw_os_error());
    let address = match address {
        Address::Abstract(name) => SocketAddrUnix::new_abstract_name(name),
        Address::File(file) => SocketAddrUnix::new(format!("/proc/self/fd/{}", file.as_raw_fd())),
    };
    let address = address.map_err(number)?;
    // struct timeval: seconds, microseconds.
    let limit = |seconds: u64| {
        let time = [seconds.to_ne_bytes(), [0; 8]].concat();
        sockopt::set(socket, libc::SOL_SOCKET, libc::SO_SNDTIMEO, &time)
    };
    limit(PATIENCE)?;
    let connected = rustix::net::connect(socket, &address);
    limit(0)?;
    connected.map_err(number)
}
