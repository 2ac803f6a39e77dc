//! What no image can hold yet, by name.

use super::capture::Job;
use super::graph::Member;
use super::seen::Seen;
use super::{Refusal, Trouble};
use crate::Error;
use crate::resource::Blocker;
use rustix::fs::FileType;

/// All that is refused.
#[derive(Debug, Default)]
pub(super) struct Refused {
    pub blockers: Vec<Blocker>,
    /// Some of it will not be over soon.
    lasting: bool,
}

impl Refused {
    pub(super) fn add(&mut self, member: &Member, refusal: Refusal) {
        let Refusal { what, why, remedy, passing } = refusal;
        self.blockers.push(Blocker { pid: member.pid, comm: member.comm.clone(), what, why, remedy });
        self.lasting |= !passing;
    }

    /// Nothing is.
    pub(super) fn none(self) -> Result<(), Error> {
        match self {
            Refused { blockers, .. } if blockers.is_empty() => Ok(()),
            Refused { blockers, lasting: true } => Err(Error::Blocked(blockers)),
            Refused { blockers, lasting: false } => Err(Error::Passing(blockers)),
        }
    }
}

/// The refusal of something that has no room of its own.
pub(super) fn refuse(job: &Job<'_>, node: usize) -> Trouble {
    let seen = &job.graph.nodes[node].seen;
    let (what, why) = reason(seen);
    Trouble::refused(what, why)
}

fn reason(seen: &Seen) -> (String, &'static str) {
    let Some(name) = seen.anonymous() else {
        return match seen.type_() {
            FileType::BlockDevice => (seen.name(), "a block device"),
            FileType::Socket => (seen.name(), "a socket's place in the file system, opened"),
            _ => (seen.name(), "a file of an unknown kind"),
        };
    };
    let plain = |text: &str| (text.to_owned(), "can't be checkpointed");
    match name {
        b"io_uring" => ("io_uring".into(), "its rings and its requests are known to the kernel alone"),
        b"userfaultfd" => ("userfaultfd".into(), "page faults are handled by the job itself"),
        b"perf_event" => ("perf event".into(), "a counter of this host"),
        b"fanotify" => ("fanotify".into(), "watches of whole mounts can't be checkpointed yet"),
        b"seccomp notify" => ("seccomp listener".into(), "system calls are answered by the job itself"),
        _ => plain(&String::from_utf8_lossy(name)),
    }
}
