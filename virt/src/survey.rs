//! What stands in the way of a checkpoint, as far as the kernel shows it while the job runs on.
//!
//! Whatever is looked at here is looked at again when the job stands still. Only then can be seen what a thread has in
//! the CPU, what its filters do, and whether Landlock confines it.

use crate::checkpoint::{DELETED, Options};
use crate::cpu::registers;
use crate::fd::Refused;
use crate::listing::{Listed, Sight, look, see};
use crate::memory::{self, Census};
use crate::namespace::Common;
use crate::proc::Stat;
use crate::resource::{Blocker, Stopped};
use crate::sysv::posix;
use crate::timers::PosixTimers;
use crate::{Error, Failure, cgroups, fd, mounts, network, sched, seccomp, signals, tmpfs, unusual};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often, and after what time, to look again at what may be in the way for a moment.
const LOOKS: u32 = 5;
const MOMENT: Duration = Duration::from_millis(2);

/// Names everything that stands in the way of a checkpoint of the processes in `listed`, as far as the options say what the
/// caller knows of the job: its processes, whether it has a filter with a listener, and what somebody else answers for.
///
/// # Errors
/// The kernel's.
pub fn survey(init: Pid, listed: &[Listed], options: &Options) -> Result<Refused, Error> {
    let mounted = fd::mounts(init)?;
    let processes: Vec<Pid> = listed.iter().map(|process| process.host).collect();
    let residents = mounts::Space::first_of_each(&processes)?;
    let changed = mounts::survey(&residents, &mounted, options.places.as_ref(), &[])?;
    let mut blockers = tmpfs::survey(init, &mounted, &changed.devices)?;
    blockers.extend(changed.blockers);
    blockers.extend(cgroups::survey(&processes, &options.cgroups)?);
    if let Some(given) = &options.network {
        blockers.extend(network::survey(init, &processes, &mounted, given)?);
    }
    blockers.extend(strangers(init, &options.members));
    blockers.extend(posix::survey(init)?);
    let seen = see(listed);
    let Refused { lasting: descriptors, passing } = fd::survey(&seen, &options.owned())?;
    blockers.extend(descriptors);
    blockers.extend(lasting(momentary(&seen)?, || momentary(&see(listed)))?);
    let mut census = Census::new(&residents, DELETED)?;
    let namespaces = Common::of(init)?;
    for task in seen.iter().filter_map(Sight::running) {
        if options.listener && task.host == init && task.status.seccomp != 0 {
            blockers.push(seccomp::listened(task));
        }
        let mut look = || process(task, &mut census, &namespaces);
        // One that executes a program has for a moment neither the old mappings nor all of the new ones.
        match look().and_then(|found| lasting(found, look)) {
            Ok(found) => blockers.extend(found),
            // One that has ended meanwhile, or is about to, is in nobody's way.
            Err(e) if is_gone(&e) || Stat::of(task.host).is_none_or(|stat| stat.ended()) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Refused { lasting: blockers, passing })
}

fn is_gone(failure: &Failure) -> bool {
    matches!(failure.errno, Errno::ENOENT | Errno::ESRCH)
}

fn process(task: &Stopped, census: &mut Census, namespaces: &Common) -> Result<Vec<Blocker>, Failure> {
    let comm = task.comm();
    let mut found: Vec<_> = namespaces.left_by(task.host, task.pid, || comm.clone())?.into_iter().collect();
    found.extend(registers::program(task));
    found.extend(PosixTimers::blockers(task, &PosixTimers::list(task)?));
    found.extend(memory::survey(task.host, task.pid, &comm, census)?);
    Ok(found)
}

/// What may be in the way for a moment: a process that has just been made by vfork(2) has its parent's memory until it
/// executes another program.
fn momentary(seen: &[Sight]) -> Result<Vec<Blocker>, Error> {
    let mut found = unusual::blockers(seen.iter().map(|sight| &sight.leader))?;
    for task in seen.iter().flat_map(|sight| &sight.threads) {
        found.extend(tracer(task));
        found.extend(signals::blocker(task));
        match sched::blocker(task) {
            Err(e) if is_gone(&e) => {}
            answer => found.extend(answer?),
        }
    }
    Ok(found)
}

/// A thread has one tracer, and that has to be ckrun.
fn tracer(task: &Stopped) -> Option<Blocker> {
    let tracer = task.status.tracer;
    (tracer != 0).then(|| Blocker {
        pid: task.pid,
        comm: task.comm(),
        what: format!("thread {}: it is being debugged", task.tid),
        why: format!("host process {tracer} traces it, and ckrun would have to"),
        remedy: Some("end the debugger".into()),
    })
}

/// Processes that were brought in from outside: their parent would not be there at a restart.
fn strangers(init: Pid, members: &[Pid]) -> Vec<Blocker> {
    let known: BTreeSet<Pid> = members.iter().copied().collect();
    let stranger = |&host: &Pid| {
        let stat =
            Stat::of(host).filter(|stat| !stat.ended() && host != init && !known.contains(&stat.parent))?;
        let task = look(host, host, 0).ok()?;
        // A child that was made since the list was read has a parent in the job all the same.
        if look(stat.parent, stat.parent, 0).ok()?.status.ns_pid.len() >= task.status.ns_pid.len() {
            return None;
        }
        Some(Blocker {
            pid: task.tid,
            comm: task.comm(),
            what: "its parent".into(),
            why: "it is outside the container, as that of whatever `ckrun exec` starts".into(),
            remedy: Some("wait for its end, or end it".into()),
        })
    };
    members.iter().filter_map(stranger).collect()
}

/// What of `found` several more looks find, too.
fn lasting<E>(
    mut found: Vec<Blocker>,
    mut look: impl FnMut() -> Result<Vec<Blocker>, E>,
) -> Result<Vec<Blocker>, E> {
    for _ in 0..LOOKS {
        if found.is_empty() {
            break;
        }
        std::thread::sleep(MOMENT);
        let still = look()?;
        found.retain(|blocker| still.contains(blocker));
    }
    Ok(found)
}
