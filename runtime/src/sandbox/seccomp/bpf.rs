//! From rules to BPF: the program that the kernel runs at every system call.
//!
//! libseccomp needs 7 to 14 ms for an engine's default profile, more than everything else that ckrun does for a
//! container; this needs a few microseconds, and its programs are shorter: neighbouring numbers with the same outcome
//! are one range, and a binary search finds the range. A test proves the outcomes equal to libseccomp's.
//!
//! BPF jumps forward only, so the program is built from its end: whatever is emitted may jump to anything emitted
//! before it, and an address is simply the length that the program had at that moment.

use libc::sock_filter;

/// One comparison of a system call's argument with a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) argument: u32,
    pub(super) test: Test,
    /// True when the condition holds if the test fails: "not equal", "less", "less or equal".
    pub(super) negated: bool,
    pub(super) mask: u64,
    pub(super) value: u64,
}

/// What BPF can test with one jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Equal,
    Greater,
    GreaterOrEqual,
}

/// The action of a call whose arguments meet all conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: u32,
}

/// What becomes of the calls of one range of numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The same for all arguments.
    Always(u32),
    /// The first rule that is met decides; if none is, the second field does.
    FirstOf(Vec<Rule>, u32),
}

/// A range of system call numbers: from `first` to the next range's first.
#[derive(Debug)]
pub(super) struct Range {
    pub(super) first: u32,
    /// Whether arguments are compared in all of their 64 bits or in the lower half.
    pub(super) wide: bool,
    pub(super) outcome: Outcome,
}

/// Everything about the calls that carry one `AUDIT_ARCH_*` value. The ranges begin at 0 and leave no gap.
#[derive(Debug)]
pub(super) struct Convention {
    pub(super) audit_arch: u32,
    pub(super) ranges: Vec<Range>,
}

/// The program for these calling conventions; a call by any other one gets `foreign`.
pub(super) fn assemble(conventions: &[Convention], foreign: u32) -> Vec<sock_filter> {
    let mut asm = Assembler::default();
    let mut next = asm.finish(foreign);
    for convention in conventions.iter().rev() {
        asm.search(&convention.ranges);
        let found = asm.load(NUMBER);
        next = asm.branch(libc::BPF_JEQ, convention.audit_arch, found, next);
    }
    asm.load(ARCH);
    asm.backwards.reverse();
    asm.backwards
}

/// Offsets in `struct seccomp_data` (seccomp(2)): number, architecture, instruction pointer, six arguments.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The farthest target of a conditional jump, less the room for two relays in between.
const NEAR: usize = 250;

/// An instruction, as the distance from the end of the program.
type Address = usize;

#[derive(Default)]
struct Assembler {
    backwards: Vec<sock_filter>,
    /// Where each action was returned last.
    finished: Vec<(u32, Address)>,
}

impl Assembler {
    fn here(&self) -> Address {
        self.backwards.len()
    }

    fn emit(&mut self, code: u32, jt: usize, jf: usize, k: u32) -> Address {
        // The jumps of a branch are at most 255 by construction, see `near`.
        self.backwards.push(sock_filter { code: code as u16, jt: jt as u8, jf: jf as u8, k });
        self.here()
    }

    fn load(&mut self, offset: u32) -> Address {
        self.emit(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
    }

    /// An address with the effect of `target` that a conditional jump can reach.
    fn near(&mut self, target: Address) -> Address {
        let distance = self.here() - target;
        if distance <= NEAR { target } else { self.emit(libc::BPF_JMP | libc::BPF_JA, 0, 0, distance as u32) }
    }

    fn branch(&mut self, test: u32, k: u32, yes: Address, no: Address) -> Address {
        let (yes, no) = (self.near(yes), self.near(no));
        let here = self.here();
        self.emit(libc::BPF_JMP | libc::BPF_K | test, here - yes, here - no, k)
    }

    /// Ends the program with `action`; shared with an earlier end when that is near.
    fn finish(&mut self, action: u32) -> Address {
        let here = self.here();
        match self.finished.iter_mut().find(|(known, _)| *known == action) {
            Some((_, at)) if here - *at <= NEAR => return *at,
            Some((_, at)) => *at = here + 1,
            None => self.finished.push((action, here + 1)),
        }
        self.emit(libc::BPF_RET | libc::BPF_K, 0, 0, action)
    }

    /// Finds the range of the number in the accumulator, by halves.
    fn search(&mut self, ranges: &[Range]) -> Address {
        match ranges {
            [] => self.here(),
            [range] => self.outcome(range),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let above = self.search(high);
                let below = self.search(low);
                self.branch(libc::BPF_JGE, high[0].first, above, below)
            }
        }
    }

    fn outcome(&mut self, range: &Range) -> Address {
        let (rules, otherwise) = match &range.outcome {
            Outcome::Always(action) => return self.finish(*action),
            Outcome::FirstOf(rules, otherwise) => (rules, otherwise),
        };
        let mut next = self.finish(*otherwise);
        for rule in rules.iter().rev() {
            let mut met = self.finish(rule.action);
            for condition in rule.conditions.iter().rev() {
                met = self.condition(condition, range.wide, met, next);
            }
            next = met;
        }
        next
    }

    /// Compares an argument, upper half first; BPF knows 32 bits only.
    fn condition(&mut self, c: &Condition, wide: bool, met: Address, missed: Address) -> Address {
        let (yes, no) = if c.negated { (missed, met) } else { (met, missed) };
        let test = match c.test {
            Test::Equal => libc::BPF_JEQ,
            Test::Greater => libc::BPF_JGT,
            Test::GreaterOrEqual => libc::BPF_JGE,
        };
        let at = ARGUMENTS + 8 * c.argument;
        let (lower, upper) = if cfg!(target_endian = "big") { (at + 4, at) } else { (at, at + 4) };

        self.branch(test, c.value as u32, yes, no);
        let compare_lower = self.half(lower, c.mask as u32);
        if !wide {
            return compare_lower;
        }
        let mut differs = no;
        if c.test != Test::Equal {
            differs = self.branch(libc::BPF_JGT, (c.value >> 32) as u32, yes, no);
        }
        self.branch(libc::BPF_JEQ, (c.value >> 32) as u32, compare_lower, differs);
        self.half(upper, (c.mask >> 32) as u32)
    }

    /// Loads half of an argument, masked.
    fn half(&mut self, offset: u32, mask: u32) -> Address {
        if mask != u32::MAX {
            self.emit(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask);
        }
        self.load(offset)
    }
}
