//! The NUMA policy of a thread: on which nodes the kernel looks for memory (set_mempolicy(2)).
//!
//! Per thread. Restored in each thread at any time; memory that is filled afterwards follows it. The policies of single
//! mappings (mbind(2)) are the memory's.

use crate::hex::Hex;
use crate::program::{Answers, Call, Place, Program};
use crate::resource::{Resource, Stopped};
use crate::{Doing, Failure};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// Linux can be built for 1024 nodes, and refuses a shorter mask than its own.
const NODES: usize = 1024;

/// A thread's policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MemPolicy {
    /// `MPOL_*` with its flags; 0 is the system's default.
    pub mode: i32,
    /// 64 nodes a word. The zeroes at the end are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Hex>,
}

/// Where the answers are.
#[derive(Debug)]
pub struct Asked {
    call: Call,
    mode: Place,
    nodes: Place,
}

impl Resource for MemPolicy {
    type Asked = Asked;

    fn ask(program: &mut Program) -> Asked {
        MemPolicy::ask_of(program, 0, 0)
    }

    fn capture(_: &Stopped, asked: &Asked, answers: &Answers) -> Result<Self, Failure> {
        MemPolicy::of(asked, answers)
    }

    fn restore(&self, program: &mut Program) {
        if self.mode == 0 && self.nodes.is_empty() {
            // Attempted, for kernels without NUMA.
            program.attempt(
                "reset the memory policy",
                libc::SYS_set_mempolicy,
                &[0.into(), 0.into(), 0.into()],
            );
            return;
        }
        let (place, bits) = self.mask(program);
        let args = [self.mode.into(), place.into(), bits.into()];
        program.call("set the memory policy (are its nodes on this host?)", libc::SYS_set_mempolicy, &args);
    }
}

impl MemPolicy {
    /// Adds the question for the policy that `flags` choose: the thread's, or that of the memory at `address`.
    pub(crate) fn ask_of(program: &mut Program, address: u64, flags: u64) -> Asked {
        let (mode, nodes) = (program.room(4), program.room(NODES / 8));
        let args = [mode.into(), nodes.into(), NODES.into(), address.into(), flags.into()];
        let call = program.attempt("get the memory policy", libc::SYS_get_mempolicy, &args);
        Asked { call, mode, nodes }
    }

    /// Reads the answer.
    pub(crate) fn of(asked: &Asked, answers: &Answers) -> Result<Self, Failure> {
        match answers.of(asked.call) {
            // A kernel without NUMA has one policy.
            Err(Errno::ENOSYS) => return Ok(MemPolicy { mode: 0, nodes: Vec::new() }),
            other => other.doing(|| "get the memory policy")?,
        };
        let mut nodes: Vec<Hex> = (0..NODES / 64).map(|k| Hex(answers.u64(asked.nodes, k * 8))).collect();
        nodes.truncate(nodes.iter().rposition(|word| word.0 != 0).map_or(0, |last| last + 1));
        Ok(MemPolicy { mode: answers.u32(asked.mode, 0).cast_signed(), nodes })
    }

    /// Adds the call that gives the policy to memory that a mapping has just got.
    pub(crate) fn bind(&self, program: &mut Program, address: u64, len: u64) {
        let (place, bits) = self.mask(program);
        let args = [address.into(), len.into(), self.mode.into(), place.into(), bits.into(), 0.into()];
        program.call(
            "set the memory policy of a mapping (are its nodes on this host?)",
            libc::SYS_mbind,
            &args,
        );
    }

    /// The nodes as the kernel takes them, and how many bits that are.
    fn mask(&self, program: &mut Program) -> (Place, usize) {
        let mut mask: Vec<u8> = self.nodes.iter().flat_map(|word| word.0.to_ne_bytes()).collect();
        mask.resize(mask.len().max(NODES / 8), 0);
        (program.put(&mask), mask.len() * 8)
    }
}
