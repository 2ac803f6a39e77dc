//! What stands in the way of a checkpoint, as far as the kernel shows it while the job runs on.
//!
//! Whatever is looked at here is looked at again when the job stands still. Only then can be seen what a thread has in
//! the CPU, what its filters do, and whether Landlock confines it.

use crate::checkpoint::{DELETED, Options};
use crate::cpu::registers;
use crate::fd::Refused;
use crate::memory::{self, Census};
use crate::namespace::Common;
use crate::proc::Stat;
use crate::resource::{Blocker, Stopped};
use crate::seize::{self, descendants};
use crate::status::Status;
use crate::sysv::posix;
use crate::timers::PosixTimers;
use crate::{Error, Failure, fd, mounts, network, sched, seccomp, signals, tmpfs, unusual};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often, and after what time, to look again at what may be in the way for a moment.
const LOOKS: u32 = 5;
const MOMENT: Duration = Duration::from_millis(2);

/// Names everything that stands in the way of a checkpoint, as far as the options say what the caller knows of the job:
/// its processes, whether it has a filter with a listener, and what somebody else answers for.
///
/// # Errors
/// The kernel's.
pub fn survey(init: Pid, options: &Options) -> Result<Refused, Error> {
    let mounted = fd::mounts(init)?;
    let processes = descendants(init);
    let residents = mounts::Space::first_of_each(&processes)?;
    let changed = mounts::survey(&residents, &mounted, options.places.as_ref(), &[])?;
    let mut blockers = tmpfs::survey(init, &mounted, &changed.devices)?;
    blockers.extend(changed.blockers);
    if let Some(given) = &options.network {
        blockers.extend(network::survey(init, &processes, &mounted, given)?);
    }
    blockers.extend(strangers(init, &options.members));
    blockers.extend(posix::survey(init)?);
    let Refused { lasting: descriptors, passing } = fd::survey(&processes, &options.owned())?;
    blockers.extend(descriptors);
    blockers.extend(lasting(|| {
        let mut found = shapes(&processes)?;
        for &host in &processes {
            found.extend(threads(host)?);
        }
        Ok(found)
    })?);
    let mut census = Census::new(&residents, DELETED)?;
    let namespaces = Common::of(init)?;
    for host in processes {
        let Some(task) = look(host) else { continue };
        if options.listener && host == init && task.status.seccomp != 0 {
            blockers.push(seccomp::listened(&task));
        }
        match process(&task, &mut census, &namespaces) {
            Ok(found) => blockers.extend(found),
            // One that has ended meanwhile, or is about to, is in nobody's way.
            Err(e) if is_gone(&e) || Stat::of(host).is_none_or(|stat| stat.ended()) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Refused { lasting: blockers, passing })
}

/// What a running process is, unless it has ended.
fn look(host: Pid) -> Option<Stopped> {
    let task = seize::look(host, 0).ok()?;
    let pid = task.status.ns_tgid.last().copied().unwrap_or(0);
    (!matches!(task.status.state, 'Z' | 'X')).then_some(Stopped { pid, ..task })
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

/// What is seen of a process's threads.
fn threads(host: Pid) -> Result<Vec<Blocker>, Error> {
    let mut found = Vec::new();
    for task in seize::threads(host).into_iter().filter_map(look) {
        found.extend(tracer(&task));
        found.extend(signals::blocker(&task));
        match sched::blocker(&task) {
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
        let task = look(host)?;
        // A child that was made since the list was read has a parent in the job all the same.
        if Status::parse(&std::fs::read(format!("/proc/{}/status", stat.parent)).ok()?).ns_pid.len()
            >= task.status.ns_pid.len()
        {
            return None;
        }
        Some(Blocker {
            pid: task.pid,
            comm: task.comm(),
            what: "its parent".into(),
            why: "it is outside the container, as that of whatever `ckrun exec` starts".into(),
            remedy: Some("wait for its end, or end it".into()),
        })
    };
    members.iter().filter_map(stranger).collect()
}

/// A process that has just been made by vfork(2) has its parent's memory only until it executes another program.
fn shapes(processes: &[Pid]) -> Result<Vec<Blocker>, Error> {
    let named = |&host: &Pid| {
        let task = seize::look(host, 0).ok()?;
        Some((host, task.status.ns_tgid.last().copied().unwrap_or(0), task.comm()))
    };
    Ok(unusual::blockers(&processes.iter().filter_map(named).collect::<Vec<_>>())?)
}

/// What every one of several looks finds.
fn lasting(mut look: impl FnMut() -> Result<Vec<Blocker>, Error>) -> Result<Vec<Blocker>, Error> {
    let mut found = look()?;
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
