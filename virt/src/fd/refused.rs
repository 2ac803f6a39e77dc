//! What no image can hold yet, by name.

use super::Trouble;
use super::capture::Job;
use super::seen::Seen;
use rustix::fs::FileType;

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
