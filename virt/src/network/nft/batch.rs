//! Several orders to nftables, which the kernel carries out as a whole or not at all.

use super::{HEADER, SUBSYSTEM, order};
use crate::netlink::attributes::find;
use crate::netlink::{Attributes, Netlink, message};
use nix::errno::Errno;

/// `NFNL_MSG_BATCH_BEGIN` and `_END`; `NFNL_BATCH_GENID`.
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
const BATCH_GENERATION: u16 = 1;
/// `NFT_MSG_GETGEN`, and `NFTA_GEN_ID` of its answer.
const GET_GENERATION: u16 = 16;
const GENERATION: u16 = 1;

/// How often the filters of a namespace have changed, from 1 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation([u8; 4]);

impl Generation {
    /// Nothing has ever changed.
    pub const FIRST: Generation = Generation(1_u32.to_be_bytes());

    /// That of now; None from a kernel without nftables.
    ///
    /// # Errors
    /// The kernel's.
    pub fn now(netfilter: &mut Netlink) -> Result<Option<Generation>, Errno> {
        match netfilter.ask(order(GET_GENERATION), &[0; HEADER]) {
            Ok(answer) => {
                let id = answer.payload.get(HEADER..).and_then(|attributes| find(attributes, GENERATION));
                Ok(id.and_then(|id| id.first_chunk()).copied().map(Generation))
            }
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// Orders that are being collected.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    count: u32,
}

impl Batch {
    /// None yet.
    pub fn new() -> Batch {
        Batch { bytes: border(BEGIN, 0, None), count: 0 }
    }

    /// As [`Batch::new`], and they hold only if nothing has changed since: else the kernel says ERESTART.
    pub fn since(generation: Generation) -> Batch {
        Batch { bytes: border(BEGIN, 0, Some(generation)), count: 0 }
    }

    /// Adds one: what is to be done (`NFT_MSG_*`), `NLM_F_CREATE` and the like, and to what.
    pub fn add(&mut self, what: u16, flags: i32, payload: &[u8]) -> &mut Batch {
        self.count += 1;
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        self.bytes.extend(message(order(what), flags, self.count, payload));
        self
    }

    /// Lets the kernel do it. The error says which one failed, from 1 on; 0 is none of them.
    ///
    /// # Errors
    /// The first one that the kernel reports, and its words.
    pub fn commit(mut self, netfilter: &mut Netlink) -> Result<(), (u32, Errno, String)> {
        self.bytes.extend(border(END, self.count.saturating_add(1), None));
        netfilter.batch(&self.bytes, self.count as usize)
    }
}

fn border(kind: u16, sequence: u32, generation: Option<Generation>) -> Vec<u8> {
    let mut body = Attributes::behind(&[0, 0, 0, SUBSYSTEM as u8]);
    if let Some(Generation(id)) = generation {
        body.put(BATCH_GENERATION, &id);
    }
    message(kind, libc::NLM_F_REQUEST as u16, sequence, body.bytes())
}
