//! Signals that came when those of their process had been read already: the job stands still, and somebody outside has sent
//! them, or something about which the job is told by a signal.

use crate::Failure;
use crate::job::Job;
use crate::seize::Frozen;
use crate::signals::{Queued, read_queue};

/// Adds them to those that wait, when everything else has been read. A timer's are left out: it was asked when the others
/// were read, and what was to come then is still to come.
///
/// # Errors
/// The kernel's.
pub(crate) fn note(frozen: &Frozen, job: &mut Job) -> Result<(), Failure> {
    for process in &frozen.processes {
        let Some(leader) = process.leader() else { continue };
        for thread in &process.threads {
            if let Some(known) = job.threads.pending.get_mut(&thread.stopped.tid) {
                add(&mut known.0, read_queue(thread.stopped.host, false)?);
            }
        }
        if let Some(known) = job.processes.pending.get_mut(&process.pid) {
            add(&mut known.0, read_queue(leader.stopped.host, true)?);
        }
    }
    Ok(())
}

/// Signals of the same number wait in the order in which they have come, and none of them has been taken.
fn add(known: &mut Vec<Queued>, now: Vec<Queued>) {
    let mut new = Vec::new();
    let mut seen = [0_usize; 65];
    let at = |queued: &Queued| usize::try_from(queued.signal).unwrap_or(0).min(64);
    for queued in known.iter().filter(|queued| !queued.is_of_timer()) {
        seen[at(queued)] += 1;
    }
    for queued in now.into_iter().filter(|queued| !queued.is_of_timer()) {
        match &mut seen[at(&queued)] {
            0 => new.push(queued),
            some => *some -= 1,
        }
    }
    known.append(&mut new);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::Hex;

    fn queued(signal: i32, code: i32, value: u64) -> Queued {
        Queued { signal, errno: 0, code, fields: [Hex(0), Hex(value), Hex(0), Hex(0)] }
    }

    #[test]
    fn what_is_behind_the_known_ones_is_new() {
        let old = [queued(40, -1, 1), queued(libc::SIGHUP, 0, 0), queued(40, -1, 2)];
        let late = [queued(40, -1, 3), queued(libc::SIGUSR1, 0, 0), queued(40, -1, 4)];
        let of_timers = [queued(40, libc::SI_TIMER, 9), queued(libc::SIGALRM, 0x80, 0)];
        let mut known = old.to_vec();
        add(&mut known, [&old[..], &of_timers, &late].concat());
        assert_eq!(known, [old, late].concat());
        add(&mut known, [old, late].concat());
        assert_eq!(known.len(), 6);
    }

    #[test]
    fn a_signal_that_was_only_noted_is_known() {
        let mut known = vec![queued(libc::SIGUSR2, 0, 0)];
        add(&mut known, Vec::new());
        assert_eq!(known.len(), 1);
    }
}
