//! A wall before TCP connections while their job is away.
//!
//! In a network namespace that outlives the job the kernel answers for a connection whose socket is gone: with a reset, which
//! ends it at the peer. And while the job stands still the kernel still takes in, and acknowledges, what nobody would find
//! in the image. So what the peers of these connections send is dropped, by a packet filter of ckrun's own; they send it
//! again.
//!
//! From before the connections are read until the job is killed or goes on, the filter is in a table that belongs to a socket
//! of ckrun's (NFT_TABLE_F_OWNER, Linux 5.12): the kernel takes it away when ckrun ends, however that happens. For the time
//! after that the connections are entered in a table that all ckruns share, [`TABLE`], one element for each, so that jobs
//! in one namespace don't meet. A restart takes its own out ([`lower`]), and the table when it is the last. What nobody
//! restores here is dropped by the kernel after [`LASTS`].

mod table;
#[cfg(test)]
mod tests;

use super::nft::batch::{Batch, Generation};
use crate::namespace::{Kind, Namespace};
use crate::netlink::{Netlink, protocols, said};
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use table::Family;
pub(super) use table::TABLE;

/// How long an entry of the table lasts. A peer that sends gives up after some 15 minutes, and one that only asks whether
/// anybody is there after some 2 hours (`net.ipv4.tcp_retries2`, `tcp_keepalive_time`); who does neither can wait for longer.
const LASTS: Duration = Duration::from_secs(24 * 60 * 60);
/// How often something is tried again that somebody else has changed meanwhile.
const TRIES: usize = 16;

/// The two ends of a connection: the job's, and its peer's.
pub type Ends = (SocketAddr, SocketAddr);

/// A wall that stands as long as this does, unless it is to [stay](Wall::stay).
#[derive(Debug)]
pub struct Wall {
    netfilter: Netlink,
    connections: Vec<Ends>,
}

impl Wall {
    /// Puts one up in the network namespace of process `init`.
    ///
    /// # Errors
    /// The kernel's: `EPROTONOSUPPORT`, `EOPNOTSUPP` of one without nftables; `EPERM` without CAP_NET_ADMIN there.
    pub fn raise(init: Pid, connections: Vec<Ends>) -> Result<Wall, Failure> {
        let mut netfilter = open(init)?;
        // Nobody else's socket in this namespace has the same number.
        let name = format!("{TABLE}-{}", netfilter.port().doing(what)?);
        let mut batch = Batch::new();
        table::make(&mut batch, &name, true);
        table::enter(&mut batch, &name, &connections, None);
        commit(batch, &mut netfilter)?;
        Ok(Wall { netfilter, connections })
    }

    /// Lets it stay when ckrun has ended.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stay(&mut self) -> Result<(), Failure> {
        let lasts = Some(LASTS);
        for _ in 0..TRIES {
            let mut batch = Batch::new();
            if !table::is_there(&mut self.netfilter).doing(what)? {
                table::make(&mut batch, TABLE, false);
            }
            table::enter(&mut batch, TABLE, &self.connections, lasts);
            match commit(batch, &mut self.netfilter) {
                // Another ckrun was faster, with making it or with taking it away.
                Err(failure) if matches!(failure.errno, Errno::EEXIST | Errno::ENOENT) => {}
                done => return done,
            }
        }
        Err(Failure::new(what(), Errno::EBUSY))
    }

    /// Takes back that it is to stay.
    ///
    /// # Errors
    /// The kernel's.
    pub fn leave(&mut self) -> Result<(), Failure> {
        take_out(&mut self.netfilter, &self.connections)
    }
}

/// What keeps the kernel from waiting, when it is dropped, until nobody looks at the old filter any more.
#[derive(Debug)]
#[must_use = "the kernel waits for a moment when it is dropped"]
pub struct Rubble(#[expect(dead_code, reason = "dropped at the right moment")] Netlink);

/// Lets the peers of these connections in again, in the network namespace of process `init`. Where no wall stands it does
/// nothing.
///
/// # Errors
/// The kernel's.
pub fn lower(init: Pid, connections: &[Ends]) -> Result<Option<Rubble>, Failure> {
    let mut netfilter = match open(init) {
        Err(failure) if is_unknown(&failure) => return Ok(None),
        opened => opened?,
    };
    take_out(&mut netfilter, connections)?;
    Ok(Some(Rubble(netfilter)))
}

/// The kernel has no packet filters of this kind.
pub fn is_unknown(failure: &Failure) -> bool {
    matches!(failure.errno, Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)
}

fn what() -> &'static str {
    "keep the network from answering for a job that is away"
}

fn open(init: Pid) -> Result<Netlink, Failure> {
    let net = Namespace::of(init, Kind::Net)?;
    let _abroad = net.as_ref().map(Namespace::enter).transpose()?;
    Netlink::open(protocols::NETFILTER).doing(what)
}

fn commit(batch: Batch, netfilter: &mut Netlink) -> Result<(), Failure> {
    batch.commit(netfilter).map_err(|(_, errno, words)| Failure::new(said(what(), &words), errno))
}

/// Takes connections out of the table that is shared, and the table away if nothing is left in it.
fn take_out(netfilter: &mut Netlink, connections: &[Ends]) -> Result<(), Failure> {
    let own: BTreeSet<(Family, Vec<u8>)> = connections.iter().map(table::key).collect();
    for _ in 0..TRIES {
        let Some(generation) = Generation::now(netfilter).doing(what)? else { return Ok(()) };
        if generation == Generation::FIRST || !table::is_there(netfilter).doing(what)? {
            return Ok(());
        }
        let there = table::entries(netfilter).doing(what)?;
        let mut batch = Batch::since(generation);
        if there.is_subset(&own) {
            table::remove(&mut batch);
        } else {
            let found: Vec<_> = there.intersection(&own).collect();
            if found.is_empty() {
                return Ok(());
            }
            table::take(&mut batch, &found);
        }
        match commit(batch, netfilter) {
            // Something else has changed meanwhile; or an entry has come to its end.
            Err(failure) if matches!(failure.errno, Errno::ERESTART | Errno::ENOENT) => {}
            done => return done,
        }
    }
    Err(Failure::new(what(), Errno::EBUSY))
}
