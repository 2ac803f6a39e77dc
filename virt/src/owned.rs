//! Paths of the container behind which somebody else's device is: a rule of the command line, later a plugin, says on each
//! host what that is. ckrun opens it again by its path and leaves its state to the owner.

use crate::image::Bytes;
use crate::table::{Id, Row, Table};
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

/// What of a job leads to somebody outside: the owned paths, and what is below one; the addresses of owned sockets.
#[derive(Debug, Clone, Default)]
pub struct Owned {
    paths: Vec<Bytes>,
    /// As the job knows them, and what they are here.
    sockets: Vec<(Bytes, Bytes)>,
    /// What to do with connections to everybody else.
    pub outgoing: Outgoing,
    /// The name of a unix socket outside of the job, connections to which the job finds closed after a restart.
    pub closing: Option<Bytes>,
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

    /// Somebody answers for what is at `path`. Only whole components count.
    pub fn covers(&self, path: &[u8]) -> bool {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        self.paths.iter().any(|owned| path.starts_with(owned.as_path()))
    }
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
}
