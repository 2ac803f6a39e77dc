//! Limits of an IPC namespace, those of POSIX message queues among them: a job that may write to `/proc/sys` may have
//! changed them.

use crate::{Doing, Failure};
use std::collections::BTreeMap;

/// Below `/proc/sys`: numbers, each the most that there may be of something.
const MOST: [&str; 12] = [
    "kernel/shmmax",
    "kernel/shmall",
    "kernel/shmmni",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "fs/mqueue/queues_max",
    "fs/mqueue/msg_max",
    "fs/mqueue/msgsize_max",
    "fs/mqueue/msg_default",
    "fs/mqueue/msgsize_default",
];
/// What would be in the way of making things, and is not to be raised: whether segments that nobody has attached go with
/// those who made them, and the ids that the next things are to have.
const LAST: [&str; 4] =
    ["kernel/shm_rmid_forced", "kernel/shm_next_id", "kernel/sem_next_id", "kernel/msg_next_id"];

/// What stands in each file.
pub type Limits = BTreeMap<String, String>;

/// Those of the namespace that this thread is in. A kernel may lack some.
pub(super) fn here() -> Limits {
    let all = MOST.into_iter().chain(LAST);
    all.filter_map(|name| Some((name.to_owned(), read(name)?))).collect()
}

/// Makes room in the namespace that this thread is in for what is allowed by `limits`.
///
/// # Errors
/// As [`set`].
pub(super) fn raise(limits: &Limits) -> Result<(), Failure> {
    for name in MOST {
        if let (Some(wanted), Some(now)) = (limits.get(name), read(name)) {
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
    for name in MOST.into_iter().chain(LAST) {
        if let (Some(wanted), Some(now)) = (limits.get(name), read(name)) {
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
