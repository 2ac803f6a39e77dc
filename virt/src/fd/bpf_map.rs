//! Maps of bpf(2): arrays, hash tables and tries of prefixes, which a program of user space keeps things in.
//!
//! ckrun makes and fills a map and hands it over: no task of the job needs a right for that. Programs are not carried, so
//! nobody but descriptors has a map.

use super::Trouble;
use super::capture::Job;
use super::captured::{Content, Source};
use super::making::Making;
use crate::image::{Bytes, Image};
use crate::sys::bpf::{self, About};
use crate::{Doing, Error};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, RawFd};

/// `enum bpf_map_type`.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const TRIE: u32 = 11;
/// What a descriptor may not do.
const READ_ONLY: u32 = 8;
const WRITE_ONLY: u32 = 16;
/// The largest map that is carried, and the longest key and value, in bytes.
const LARGEST: u64 = 1 << 28;
const LONGEST: u32 = 1 << 22;

/// A map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BpfMap {
    /// 1 hash table, 2 array, 11 trie (`enum bpf_map_type`).
    pub r#type: u32,
    /// Bytes of a key and of a value.
    pub sizes: (u32, u32),
    /// The most entries.
    pub entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
    /// At most 15 bytes.
    pub name: Bytes,
    /// Nobody in user space may change it any more (BPF_MAP_FREEZE).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
    /// The file with its keys and values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

impl Job<'_> {
    pub(super) fn bpf_map(&mut self, node: usize) -> Result<BpfMap, Trouble> {
        let seen = &self.graph.nodes[node].seen;
        let refused = |why: &str| Err(Trouble::refused("BPF map", why));
        let frozen = seen.info.number::<u32>("frozen") != 0;
        let of = bpf::about(self.graph.take(node)?.as_fd()).doing(|| "look at a BPF map")?;
        if ![HASH, ARRAY, TRIE].contains(&of.kind) {
            return refused("of its types only hash tables, arrays and tries can be checkpointed");
        }
        if of.types != 0 || of.device != 0 || of.extra != 0 {
            return refused("it has types (BTF) or is in a device");
        }
        // Programs hold it, too, and are not carried; but two descriptions that were opened apart are of one map.
        if self.known.insert((u64::MAX, of.id.into()), 0).is_some() {
            return refused("it is open more than once (BPF_MAP_GET_FD_BY_ID)");
        }
        let mut map = BpfMap {
            r#type: of.kind,
            sizes: (of.key, of.value),
            entries: of.entries,
            flags: of.flags,
            name: of.name.split(|&b| b == 0).next().unwrap_or_default().into(),
            frozen,
            content: None,
        };
        if map.wrong().is_some() {
            return refused("it is too large");
        }
        if !self.running() {
            // The job's descriptor may be one that only writes.
            let own = bpf::by_id(of.id, 0).doing(|| "open a BPF map")?;
            let bytes = bpf::entries(own.as_fd(), &of).doing(|| "read a BPF map")?;
            if !bytes.is_empty() {
                let name = format!("files/bpf-{node}");
                map.content = Some(name.clone());
                self.contents.push(Content { name, source: Source::Bytes(bytes) });
            }
        }
        Ok(map)
    }
}

impl BpfMap {
    /// Why an image can't be right.
    pub(super) fn wrong(&self) -> Option<String> {
        let (key, value) = self.sizes;
        let known = [HASH, ARRAY, TRIE].contains(&self.r#type);
        let fits = (1..=LONGEST).contains(&key) && (1..=LONGEST).contains(&value) && self.entries > 0;
        let small = (u64::from(key) + u64::from(value)).saturating_mul(self.entries.into()) <= LARGEST;
        let named = self.name.len() < 16 && !self.name.contains(&0);
        (!known || !fits || !small || !named || self.flags & (READ_ONLY | WRITE_ONLY) != 0)
            .then(|| "an impossible BPF map".into())
    }

    pub(super) fn make(
        &self,
        flags: u32,
        to: RawFd,
        image: &Image,
        making: &mut Making<'_>,
    ) -> Result<(), Error> {
        let what = || format!("make the BPF map {:?}", self.name);
        let mut name = [0; 16];
        name[..self.name.len()].copy_from_slice(&self.name);
        let (key, value) = self.sizes;
        let of = About {
            kind: self.r#type,
            key,
            value,
            entries: self.entries,
            flags: self.flags,
            name,
            ..About::default()
        };
        let map = bpf::create(&of).doing(what)?;
        if let Some(content) = &self.content {
            let bytes = image.bytes(content, LARGEST)?;
            let entries = bytes.chunks_exact((key + value) as usize);
            if !entries.remainder().is_empty() || entries.len() > self.entries as usize {
                return Err(Error::Damaged(format!("{content}: not as many entries as there can be")));
            }
            for entry in entries {
                let (key, value) = entry.split_at(key as usize);
                bpf::update(map.as_fd(), key, value).doing(what)?;
            }
        }
        if self.frozen {
            bpf::freeze(map.as_fd()).doing(what)?;
        }
        let access = match flags & libc::O_ACCMODE as u32 {
            0 => READ_ONLY,
            1 => WRITE_ONLY,
            _ => 0,
        };
        let own = match access {
            0 => Ok(map),
            access => bpf::about(map.as_fd()).and_then(|of| bpf::by_id(of.id, access)),
        };
        let given = making.worker.give(own.doing(what)?.as_fd())?;
        making.put_at(given.into(), to);
        Ok(making.run()?)
    }
}
