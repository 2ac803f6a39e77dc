//! What is wanted of a restart.

use crate::cgroups::Home;
use crate::image::Bytes;
use crate::table::Id;
use crate::table::rules::Rules;
use rustix::net::{SocketAddrAny, SocketAddrUnix};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What to do with a file that is not as it was at the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Changed {
    /// Refuse.
    #[default]
    Strict,
    /// Cut what was appended.
    Truncate,
    /// Take it as it is.
    Ignore,
}

/// The network namespace of a job that is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkIs {
    /// Its owner's, who has made it: nothing in it is changed.
    #[default]
    Anothers,
    /// Made by the sandbox. Everything in it is to be as it was.
    Made,
    /// Made by the sandbox, and to be left as that has made it.
    LeftAsMade,
}

/// The other end of a connection, on this host.
#[derive(Debug, Clone)]
pub enum Peer {
    /// It is to be found at this address, from within the job's network namespace.
    Tcp(SocketAddr),
    /// It is to be found at this path of the host, or, after an `@`, by this abstract name.
    Unix(Bytes),
    /// Somebody has connected this socket to it already.
    Given(Arc<OwnedFd>),
}

impl Peer {
    /// Its address, as the table has it.
    pub fn name(&self) -> Bytes {
        match self {
            Peer::Tcp(address) => address.to_string().into(),
            Peer::Unix(name) => name.clone(),
            Peer::Given(socket) => match rustix::net::getpeername(socket) {
                Ok(Some(address)) => match SocketAddr::try_from(address.clone()) {
                    Ok(address) => address.to_string().into(),
                    Err(_) => path(address).unwrap_or_else(|| "socket".into()),
                },
                _ => "socket".into(),
            },
        }
    }
}

fn path(address: SocketAddrAny) -> Option<Bytes> {
    Some(SocketAddrUnix::try_from(address).ok()?.path()?.to_bytes().into())
}

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// For all files that are not named.
    pub changed: Changed,
    /// For single files, by their path in the container.
    pub changed_files: Vec<(PathBuf, Changed)>,
    /// What the sockets are here for which somebody answers, by the job's names for them.
    pub sockets: BTreeMap<Bytes, Peer>,
    /// Unix sockets that were connected to somebody outside are connected again, to the same path of the container.
    pub unix: bool,
    /// What the devices are here for which somebody answers: by their paths in the container, those on this host.
    pub devices: Rules,
    /// The names by which vendors describe some of them, by their paths in the container.
    pub vendors: BTreeMap<Bytes, String>,
    /// Paths in the container for which somebody will say before the restart what is there.
    pub promised: Vec<PathBuf>,
    /// Names of sockets for which the same holds.
    pub promised_sockets: BTreeSet<Bytes>,
    /// What is to be in the job's network namespace.
    pub network: NetworkIs,
    /// CPU features that the job does not use, though it could have: by their names, or `all`.
    pub unused: Vec<String>,
    /// What else the job's names stand for here, said by those who answer for it: handles.
    pub bound: Vec<(Id, Id)>,
    /// The container's own cgroups, below which the job's have been built ([`Cgroups::build`](crate::cgroups::Cgroups::build));
    /// none if they are to be left out.
    pub cgroups: Vec<Home>,
    /// What was set in the container's own cgroups is set again.
    pub own_cgroups: bool,
}

impl Options {
    /// What is wanted for the file at `path`.
    pub fn policy(&self, path: &Path) -> Changed {
        if self.devices.to_real(path).is_some() || self.promises(path) {
            // What is there is another one's business.
            return Changed::Ignore;
        }
        let named = self.changed_files.iter().find(|(file, _)| file == path);
        named.map_or(self.changed, |(_, policy)| *policy)
    }

    /// Whether somebody will say what is at `path`.
    pub fn promises(&self, path: &Path) -> bool {
        self.promised.iter().any(|promised| path.starts_with(promised))
    }
}
