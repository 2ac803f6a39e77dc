//! What no image can hold yet, by name.

use super::capture::Job;
use super::graph::Member;
use super::seen::Seen;
use super::{Refusal, Trouble};
use crate::Error;
use crate::resource::Blocker;
use rustix::fs::FileType;

/// Of a pipe or a FIFO.
pub(super) const OTHER_END: &str = "its other end is outside of the job";

/// All that is refused.
#[derive(Debug, Default)]
pub struct Refused {
    /// What stays so.
    pub lasting: Vec<Blocker>,
    /// What will be over when the job has run on a little.
    pub passing: Vec<Blocker>,
}

impl Refused {
    pub(super) fn add(&mut self, member: &Member, refusal: Refusal) {
        let Refusal { what, why, remedy, passing } = refusal;
        let list = if passing { &mut self.passing } else { &mut self.lasting };
        list.push(Blocker { pid: member.pid, comm: member.comm.clone(), what, why, remedy });
    }

    /// Whether nothing is.
    pub(super) fn is_empty(&self) -> bool {
        self.lasting.is_empty() && self.passing.is_empty()
    }

    /// Leaves out what another look did not find.
    pub(super) fn retain(&mut self, again: &Refused) {
        self.lasting.retain(|blocker| again.lasting.contains(blocker));
        self.passing.retain(|blocker| again.passing.contains(blocker));
    }

    /// What is refused for this reason will be over.
    pub(super) fn let_pass(&mut self, why: &str) {
        let (passing, lasting) =
            std::mem::take(&mut self.lasting).into_iter().partition(|one| one.why == why);
        self.passing.extend::<Vec<_>>(passing);
        self.lasting = lasting;
    }

    /// Checks that nothing is.
    ///
    /// # Errors
    /// [`Error::Blocked`], or [`Error::Passing`] if all of it passes.
    pub(crate) fn none(self) -> Result<(), Error> {
        match self {
            all if all.is_empty() => Ok(()),
            Refused { lasting, passing } if lasting.is_empty() => Err(Error::Passing(passing)),
            Refused { lasting, passing } => Err(Error::Blocked([lasting, passing].concat())),
        }
    }
}

/// Most programs that use io_uring ask whether there is one: it is often forbidden in containers.
const WITHOUT_IO_URING: &str =
    "most programs do without it where linux.seccomp in config.json lets io_uring_setup fail";

/// The refusal of something that has no room of its own.
pub(super) fn refuse(job: &Job<'_>, node: usize) -> Trouble {
    let seen = &job.graph.nodes[node].seen;
    let (what, why) = reason(seen);
    let refused = Trouble::refused(what, why);
    if seen.anonymous() == Some(b"io_uring") { refused.or(WITHOUT_IO_URING.into()) } else { refused }
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
        b"bpf-prog" => (
            "BPF program".into(),
            "it was checked and translated by this kernel, which does not tell the original",
        ),
        b"seccomp notify" => ("seccomp listener".into(), "system calls are answered by the job itself"),
        _ => plain(&String::from_utf8_lossy(name)),
    }
}
