//! Paths of the container behind which somebody else's device is: a rule of the command line, a vendor's description
//! or a plugin says on each host what that is. ckrun opens it again by its path and leaves its state to the owner.

use crate::image::Bytes;
use crate::table::{Id, Row, Table};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What to do with a connection to somebody outside for whom nobody answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Outgoing {
    /// Refuse.
    #[default]
    Refuse,
    /// Keep it, for a restart at the same address.
    Keep,
    /// Let the job find it closed.
    Close,
}

/// What to do with connections to somebody outside for whom nobody answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outward {
    /// By TCP.
    pub tcp: Outgoing,
    /// Unix sockets are connected again, to the same path of the container. Else they are refused.
    pub unix: bool,
}

/// What of a job leads to somebody outside: the owned paths, and what is below one; the addresses of owned sockets.
#[derive(Debug, Clone, Default)]
pub struct Owned {
    paths: Vec<Bytes>,
    /// As the job knows them, and what they are here.
    sockets: Vec<(Bytes, Bytes)>,
    /// The addresses by which the job knows its own ends of connections that were made anew, by the cookies of their sockets.
    pub locals: BTreeMap<u64, SocketAddr>,
    /// What to do with connections to everybody else.
    pub outward: Outward,
    /// The name of a unix socket outside of the job, connections to which the job finds closed after a restart.
    pub closing: Option<Bytes>,
    /// What is in the job's network namespace goes with it.
    pub network: bool,
    /// It is known what the sandbox mounts, so that other mounts are made again.
    pub mounts: bool,
    /// The network is there when the job is gone, and must not answer the peers of connections that are kept.
    pub wall: bool,
}

impl Owned {
    /// Those that the table knows.
    pub fn of(table: &Table) -> Owned {
        let mut owned = Owned::default();
        for Row { id, real, .. } in table.rows() {
            match (id, real) {
                (Id::Device(path), _) => owned.paths.push(path),
                (Id::Socket(name), Id::Socket(real)) => owned.sockets.push((name, real)),
                _ => {}
            }
        }
        owned
    }

    /// Somebody answers for the socket at this address of the host.
    pub fn answers_for(&self, peer: SocketAddr) -> bool {
        self.virtual_name(peer).is_some()
    }

    /// The job's name for the socket at this address of the host, if somebody answers for it.
    pub fn virtual_name(&self, peer: SocketAddr) -> Option<&Bytes> {
        let plain = |address: SocketAddr| (address.ip().to_canonical(), address.port());
        let is = |real: &Bytes| {
            let text = std::str::from_utf8(real).ok()?;
            Some(plain(text.strip_prefix("tcp:").unwrap_or(text).parse().ok()?) == plain(peer))
        };
        self.sockets.iter().find(|(_, real)| is(real) == Some(true)).map(|(name, _)| name)
    }

    /// The job's name for the Unix socket of this name on the host (an abstract one begins with a NUL), if somebody answers
    /// for it. One file may have several paths.
    pub fn unix_name(&self, peer: &[u8]) -> Option<&Bytes> {
        let is = |real: &Bytes| {
            let real = real.strip_prefix(b"unix:").unwrap_or(real);
            match (real, peer) {
                ([b'@', real @ ..], [0, peer @ ..]) => real == peer,
                ([b'/', ..], [b'/', ..]) => real == peer || is_one_file(real, peer),
                _ => false,
            }
        };
        self.sockets.iter().find(|(_, real)| is(real)).map(|(name, _)| name)
    }

    /// Somebody answers for what is at `path`. Only whole components count.
    pub fn covers(&self, path: &[u8]) -> bool {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        self.paths.iter().any(|owned| path.starts_with(owned.as_path()))
    }
}

fn is_one_file(a: &[u8], b: &[u8]) -> bool {
    let look = |path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino));
    look(a).is_ok_and(|a| look(b) == Ok(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_components_count() {
        let paths = vec![b"/dev/emu0"[..].into(), b"/dev/boards"[..].into()];
        let owned = Owned { paths, ..Owned::default() };
        for (path, covered) in [
            ("/dev/emu0", true),
            ("/dev/emu0/in", true),
            ("/dev/emu01", false),
            ("/dev/boards/7", true),
            ("/dev", false),
        ] {
            assert_eq!(owned.covers(path.as_bytes()), covered, "{path}");
        }
    }

    #[test]
    fn a_unix_socket_is_known_by_each_of_its_paths() {
        let dir = tempfile::tempdir().unwrap();
        let (real, other) = (dir.path().join("real"), dir.path().join("other"));
        std::fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink(&real, &other).unwrap();
        let bytes = |path: &Path| Bytes::from(path.as_os_str().as_bytes());
        let sockets =
            vec![(b"/run/emu"[..].into(), bytes(&real)), (b"@emu"[..].into(), b"@there"[..].into())];
        let owned = Owned { sockets, ..Owned::default() };
        let find = |peer: &[u8]| owned.unix_name(peer).map(ToString::to_string);
        assert_eq!(find(&bytes(&real)).as_deref(), Some("/run/emu"));
        assert_eq!(find(&bytes(&other)).as_deref(), Some("/run/emu"));
        assert_eq!(find(b"\0there").as_deref(), Some("@emu"));
        assert_eq!((find(b"@there"), find(b"/nowhere")), (None, None));
    }
}
