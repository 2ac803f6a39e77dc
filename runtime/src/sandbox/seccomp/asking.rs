//! Filters that ask a listener about some calls, and let all others through.

use super::bpf::{self, Condition, Convention, Outcome, Range, Rule, Test};
use super::{Filter, calls};
use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF};

/// A system call that a listener is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `SYS_*`.
    pub number: libc::c_long,
    /// Only if the lower half of this argument is one of these.
    pub among: Option<(u32, Vec<u32>)>,
}

impl Asked {
    /// Whatever its arguments are.
    pub fn always(number: libc::c_long) -> Asked {
        Asked { number, among: None }
    }

    fn outcome(&self) -> Outcome {
        let Some((argument, values)) = &self.among else { return Outcome::Always(SECCOMP_RET_USER_NOTIF) };
        let rule = |value: &u32| Rule {
            conditions: vec![Condition {
                argument: *argument,
                test: Test::Equal,
                negated: false,
                mask: u64::from(u32::MAX),
                value: u64::from(*value),
            }],
            action: SECCOMP_RET_USER_NOTIF,
        };
        Outcome::FirstOf(values.iter().map(rule).collect(), SECCOMP_RET_ALLOW)
    }
}

impl Filter {
    /// A filter about `asked`, each number once. Only calls of this machine's own convention are seen. A task that waits
    /// for an answer can only be killed, once its call has been received: nothing is done twice.
    pub fn asking(mut asked: Vec<Asked>) -> Filter {
        asked.sort_by_key(|asked| asked.number);
        let allow = |first| Range { first, wide: false, outcome: Outcome::Always(SECCOMP_RET_ALLOW) };
        let mut ranges = vec![allow(0)];
        for asked in &asked {
            let first = asked.number as u32;
            // The range before it ends at once if the numbers are neighbours.
            if ranges.last().is_some_and(|last| last.first == first) {
                ranges.pop();
            }
            ranges.push(Range { first, wide: false, outcome: asked.outcome() });
            ranges.push(allow(first + 1));
        }
        let native = Convention { audit_arch: calls::FAMILY[0].arch as u32, ranges };
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
            | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
            | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        Filter { program: bpf::assemble(&[native], SECCOMP_RET_ALLOW), flags }
    }

    /// Its instructions: code, skip if true, skip if false, operand.
    pub fn code(&self) -> Vec<(u16, u8, u8, u32)> {
        self.program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
    }
}
