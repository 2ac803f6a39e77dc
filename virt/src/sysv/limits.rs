//! Limits of an IPC namespace, those of POSIX message queues among them: a job that may write to `/proc/sys` may have
//! changed them.

use crate::{Doing, Failure};
use std::collections::BTreeMap;

/// Below `/proc/sys`: numbers, each the most that there may be of something, with what a new namespace has
/// (`linux/shm.h`, `linux/msg.h`, `linux/sem.h`, `linux/ipc_namespace.h`).
const MOST: [(&str, &str); 12] = [
    ("kernel/shmmax", "18446744073692774399"),
    ("kernel/shmall", "18446744073692774399"),
    ("kernel/shmmni", "4096"),
    ("kernel/msgmax", "8192"),
    ("kernel/msgmnb", "16384"),
    ("kernel/msgmni", "32000"),
    ("kernel/sem", "32000\t1024000000\t500\t32000"),
    ("fs/mqueue/queues_max", "256"),
    ("fs/mqueue/msg_max", "10"),
    ("fs/mqueue/msgsize_max", "8192"),
    ("fs/mqueue/msg_default", "10"),
    ("fs/mqueue/msgsize_default", "8192"),
];
/// What would be in the way of making things, and is not to be raised: whether segments that nobody has attached go with
/// those who made them, and the ids that the next things are to have.
const LAST: [(&str, &str); 4] = [
    ("kernel/shm_rmid_forced", "0"),
    ("kernel/shm_next_id", "-1"),
    ("kernel/sem_next_id", "-1"),
    ("kernel/msg_next_id", "-1"),
];

/// What stands in each file in which something else stands than in a new namespace's.
pub type Limits = BTreeMap<String, String>;

/// Those of the namespace that this thread is in. A kernel may lack some.
pub(super) fn here() -> Limits {
    let all = MOST.into_iter().chain(LAST);
    let changed = all.filter_map(|(name, new)| Some((name.to_owned(), read(name).filter(|now| now != new)?)));
    changed.collect()
}

/// Makes room in the namespace that this thread is in for what is allowed by `limits`.
///
/// # Errors
/// As [`set`].
pub(super) fn raise(limits: &Limits) -> Result<(), Failure> {
    for (name, _) in MOST {
        let Some(wanted) = limits.get(name) else { continue };
        if let Some(now) = read(name) {
            let numbers = |text: &str| -> Vec<u64> {
                text.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0)).collect()
            };
            let pairs = numbers(wanted).into_iter().zip(numbers(&now));
            let more: Vec<String> = pairs.map(|(wanted, now)| wanted.max(now).to_string()).collect();
            write(name, &more.join("\t"), &now)?;
        }
    }
    Ok(())
}

/// Gives them to the namespace that this thread is in; what there is already may be more.
///
/// # Errors
/// `EINVAL` (no value for this kernel), `EPERM`.
pub(super) fn set(limits: &Limits) -> Result<(), Failure> {
    for (name, _) in MOST.into_iter().chain(LAST) {
        let Some(wanted) = limits.get(name) else { continue };
        if let Some(now) = read(name) {
            write(name, wanted, &now)?;
        }
    }
    Ok(())
}

fn read(name: &str) -> Option<String> {
    // In one read: the kernel gives nothing to a second one.
    let text = crate::proc::read(&format!("/proc/sys/{name}")).ok()?;
    Some(String::from_utf8_lossy(text.trim_ascii_end()).into_owned())
}

fn write(name: &str, wanted: &str, now: &str) -> Result<(), Failure> {
    if wanted == now {
        return Ok(());
    }
    let path = format!("/proc/sys/{name}");
    std::fs::write(&path, wanted).doing(|| format!("write {wanted:?} to {path}"))
}
