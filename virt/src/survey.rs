//! What stands in the way of a checkpoint, as far as the kernel shows it while the job runs on.
//!
//! Whatever is looked at here is looked at again when the job stands still. Only then can be seen what a thread has in
//! the CPU, what its filters do, and whether Landlock confines it.

use crate::checkpoint::{DELETED, Options};
use crate::cpu::registers;
use crate::fd::Refused;
use crate::halves::both;
use crate::listing::{Listed, Sight, look, see};
use crate::memory::{self, Census};
use crate::namespace::Common;
use crate::proc::{Stat, is_gone};
use crate::resource::{Blocker, Stopped};
use crate::status::Status;
use crate::sysv::posix;
use crate::timers::PosixTimers;
use crate::{Error, Failure, cgroups, fd, mounts, network, sched, seccomp, signals, tmpfs, unusual, visit};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How often, and after what time, to look again at what may be in the way for a moment.
const LOOKS: u32 = 5;
const MOMENT: Duration = Duration::from_millis(2);

/// Names everything that stands in the way of a checkpoint of the processes in `listed`, as far as the options say what the
/// caller knows of the job: its processes, whether it has a filter with a listener, and what somebody else answers for. In
/// `haste` the flags of a large job's mappings are left for the stop (a protection key, say).
///
/// # Errors
/// The kernel's.
pub fn survey(init: Pid, listed: &[Listed], options: &Options, haste: bool) -> Result<Refused, Error> {
    let processes: Vec<Pid> = listed.iter().map(|process| process.host).collect();
    let spaces = mounts::Space::all(&processes)?;
    let seen = see(listed);
    let haste = haste && Status::are_large(seen.iter().map(|sight| &sight.leader.status));
    let (listener, owned) = (options.listener, options.owned());
    let many = listed.iter().map(|process| process.threads.len()).sum();
    // A process that is about to execute another program is without its vDSO for a moment, or has its parent's memory.
    let each = || {
        let look = |seen: &[Sight]| -> Result<Vec<Blocker>, Error> {
            let mut found = threads(seen)?;
            found.extend(each(init, seen, &spaces, listener, haste)?);
            Ok(found)
        };
        lasting(look(&seen)?, || look(&see(listed)))
    };
    let all = || -> Result<Refused, Error> {
        let mounted = spaces.first().map_or_else(Vec::new, |space| fd::mounted(space));
        let changed = mounts::survey(init, &spaces, &mounted, options.places.as_ref(), &[])?;
        let mut blockers = tmpfs::survey(init, &mounted, &changed.devices)?;
        blockers.extend(changed.blockers);
        blockers.extend(cgroups::survey(&processes, &options.cgroups)?);
        if let Some(given) = &options.network {
            blockers.extend(network::survey(init, &processes, &mounted, given)?);
        }
        blockers.extend(strangers(&processes, &options.members));
        blockers.extend(posix::survey(init)?);
        let mut refused = fd::survey(&seen, &spaces, &owned)?;
        refused.lasting.splice(..0, blockers);
        Ok(refused)
    };
    let (each, all) = both(many, each, all);
    let mut refused = all?;
    refused.lasting.extend(each?);
    Ok(refused)
}

/// What is in the way in each process by itself.
fn each(
    init: Pid,
    seen: &[Sight],
    spaces: &[Arc<mounts::Space>],
    listener: bool,
    haste: bool,
) -> Result<Vec<Blocker>, Error> {
    let mut blockers = Vec::new();
    let mut census = Census::new(init, spaces, DELETED)?;
    let namespaces = Common::of(init)?;
    for task in seen.iter().filter_map(Sight::running) {
        if listener && task.host == init && task.status.seccomp != 0 {
            blockers.push(seccomp::listened(task));
        }
        match process(task, &mut census, &namespaces, haste) {
            Ok(found) if found.is_empty() || !executes(task) => blockers.extend(found),
            // What its new program will have is seen when it stands still.
            Ok(_) => {}
            // One that has ended meanwhile, or is about to, is in nobody's way.
            Err(e) if is_gone(&e, task.host) || Stat::of(task.host).is_none_or(|stat| stat.ended()) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(blockers)
}

/// It is on the way to another program, for which the kernel has not written the auxiliary vector yet: that comes last, when
/// everything is mapped.
fn executes(task: &Stopped) -> bool {
    task.read("auxv").is_ok_and(|auxv| auxv.iter().all(|&byte| byte == 0))
}

fn process(
    task: &Stopped,
    census: &mut Census,
    namespaces: &Common,
    haste: bool,
) -> Result<Vec<Blocker>, Failure> {
    let comm = task.comm();
    let mut found: Vec<_> = namespaces.left_by(task.host, task.pid, || comm.clone())?.into_iter().collect();
    found.extend(registers::program(task));
    found.extend(visit::blocker(task)?);
    found.extend(PosixTimers::blockers(task, &PosixTimers::list(task)?));
    found.extend(memory::survey(task.host, task.pid, &comm, census, haste)?);
    Ok(found)
}

/// What is in the way by the shape of a process, or of one of its threads.
fn threads(seen: &[Sight]) -> Result<Vec<Blocker>, Error> {
    let mut found = unusual::blockers(seen.iter().map(|sight| &sight.leader))?;
    for task in seen.iter().flat_map(|sight| sight.running().cloned().into_iter().chain(sight.others())) {
        found.extend(tracer(&task));
        found.extend(signals::blocker(&task));
        match sched::blocker(&task) {
            Err(e) if is_gone(&e, task.host) => {}
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
fn strangers(descendants: &[Pid], members: &[Pid]) -> Vec<Blocker> {
    let set = |ids: &[Pid]| ids.iter().copied().collect::<BTreeSet<Pid>>();
    let (descendants, known) = (set(descendants), set(members));
    let stranger = |&host: &Pid| {
        let stat = Stat::of(host).filter(|stat| !stat.ended() && !known.contains(&stat.parent))?;
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
    members.iter().filter(|host| !descendants.contains(host)).filter_map(stranger).collect()
}

/// What of `found` several more looks find, too.
fn lasting(
    mut found: Vec<Blocker>,
    look: impl Fn() -> Result<Vec<Blocker>, Error>,
) -> Result<Vec<Blocker>, Error> {
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
