//! NUMA policies of single mappings (mbind(2)). Only the process itself can say which it has.

use super::layout::Layout;
use super::vma::{Backing, Span, Vma};
use crate::Failure;
use crate::mempolicy::{Asked, MemPolicy};
use crate::program::{Answers, Call, Place, Program};

/// The policy of the memory at an address, instead of the thread's.
const MPOL_F_ADDR: u64 = 2;
/// Questions in one program, which has other questions as well.
const QUESTIONS: usize = 400;

/// What has been asked.
#[derive(Debug)]
pub struct PolicyQuestions {
    modes: Vec<(usize, Call, Place)>,
    next: usize,
}

impl Layout {
    /// Adds the question for the policies of mappings from the one with number `from` on, of as many as one program should
    /// ask for.
    pub fn ask_policies(&self, from: usize, program: &mut Program) -> PolicyQuestions {
        let next = self.vmas.len().min(from + QUESTIONS);
        let modes = (from..next)
            .filter(|&n| self.vmas[n].can_have_policy())
            .map(|n| {
                let mode = program.room(4);
                let args =
                    [mode.into(), 0.into(), 0.into(), self.vmas[n].range.start.into(), MPOL_F_ADDR.into()];
                (
                    n,
                    program.attempt("get the memory policy of a mapping", libc::SYS_get_mempolicy, &args),
                    mode,
                )
            })
            .collect();
        PolicyQuestions { modes, next }
    }

    /// Reads the answers. Mappings that have a policy get their part in it by [`Layout::ask_nodes`]; which those are is the
    /// first answer, the number of the mapping to go on with the second.
    pub fn take_policies(&self, asked: &PolicyQuestions, answers: &Answers) -> (Vec<usize>, usize) {
        let with = |(n, call, mode): &(usize, Call, Place)| {
            // A kernel without NUMA has no policies.
            (answers.of(*call).is_ok() && answers.u32(*mode, 0) != 0).then_some(*n)
        };
        (asked.modes.iter().filter_map(with).collect(), asked.next)
    }

    /// Adds the question for the whole policy of mapping number `vma`.
    pub fn ask_nodes(&self, vma: usize, program: &mut Program) -> Asked {
        MemPolicy::ask_of(program, self.vmas[vma].range.start, MPOL_F_ADDR)
    }

    /// Reads the answer.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take_nodes(&mut self, vma: usize, asked: &Asked, answers: &Answers) -> Result<(), Failure> {
        self.vmas[vma].policy = Some(MemPolicy::of(asked, answers)?);
        Ok(())
    }
}

impl Vma {
    fn can_have_policy(&self) -> bool {
        matches!(self.backing, Backing::Anonymous | Backing::Object { .. })
    }
}

/// Adds the call that gives `piece` of a mapping its policy.
pub(super) fn bind(program: &mut Program, vma: &Vma, piece: Span) {
    if let Some(policy) = &vma.policy {
        policy.bind(program, piece.start, piece.len());
    }
}
