//! What is seen of a job: of a stopped one, or by /proc of a running one, which goes on meanwhile. What ends or begins while
//! that is looked at may be missing.

use super::{HostTask, Pair, Seen, SeenDescriptor, SeenTask, Time};
use crate::image::Bytes;
use crate::proc::{Stat, is_gone};
use crate::seize::Frozen;
use crate::status::Status;
use crate::tree::Member;
use crate::{Doing, Failure, sys};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{read_dir, read_link};
use std::time::{Duration, SystemTime};

/// How many pid namespaces lie between ckrun's own and the one of `init`, which is the job's: 0 when they share one.
///
/// # Errors
/// There is no such process.
pub fn depth(init: Pid) -> Result<usize, Failure> {
    Ok(status(&format!("/proc/{init}"))?.ns_pid.len().saturating_sub(1))
}

/// The processes of the job whose first is `init`, for a job without a cgroup that would list them: all in its pid
/// namespace, unless that is ckrun's own, and all that descend from them.
///
/// # Errors
/// /proc can't be read.
pub fn processes(init: Pid) -> Result<Vec<Pid>, Failure> {
    let namespace = |pid: Pid| read_link(format!("/proc/{pid}/ns/pid")).ok();
    let (own, jobs) = (namespace(Pid::this()), namespace(init));
    let all: Vec<Pid> = numbers("/proc")?.into_iter().map(Pid::from_raw).collect();
    let inside = |pid: Pid| pid == init || (jobs != own && jobs.is_some() && namespace(pid) == jobs);
    let mut found: BTreeSet<Pid> = all.iter().copied().filter(|pid| inside(*pid)).collect();
    let parents: Vec<(Pid, Pid)> =
        all.iter().filter_map(|pid| Some((*pid, Stat::of(*pid)?.parent))).collect();
    // Ids wrap around, so a child's may be below its parent's: look until there is nothing new.
    let mut before = 0;
    while found.len() > before {
        before = found.len();
        let children = parents.iter().filter(|(_, parent)| found.contains(parent)).map(|(pid, _)| *pid);
        found.extend(children.collect::<Vec<_>>());
    }
    Ok(found.into_iter().collect())
}

/// Looks at these processes (ids of ckrun's pid namespace), whose job's pid namespace is `depth` below ckrun's. One that
/// has no id there, or has ended, is left out.
///
/// # Errors
/// /proc can't be read: by the rights of the caller, for example.
pub fn look(processes: &[Pid], depth: usize) -> Result<Seen, Failure> {
    let mut seen = Seen::begin();
    let mut known = Descriptions::default();
    for process in processes {
        match look_at(*process, depth, &mut seen, &mut known) {
            Err(failure) if is_gone(&failure, *process) => {}
            looked => looked?,
        }
    }
    seen.descriptions = known.what;
    // A process whose end came in between may have left some of its threads, or descriptors without it.
    let leaders: BTreeSet<i32> =
        seen.tasks.iter().filter(|task| task.process == task.thread).map(|task| task.process).collect();
    seen.tasks.retain(|task| leaders.contains(&task.process));
    seen.descriptors.retain(|descriptor| leaders.contains(&descriptor.process));
    Ok(seen)
}

fn look_at(host: Pid, depth: usize, seen: &mut Seen, known: &mut Descriptions) -> Result<(), Failure> {
    let Some(stat) = Stat::of(host) else { return Ok(()) };
    let mut process = None;
    for thread in numbers(&format!("/proc/{host}/task"))? {
        let status = match status(&format!("/proc/{host}/task/{thread}")) {
            Err(failure) if is_gone(&failure, host) => continue,
            status => status?,
        };
        if let Some(task) = SeenTask::of(&status, depth, stat.started) {
            process = Some(task.process);
            seen.tasks.push(task);
        }
    }
    let Some(process) = process.filter(|_| !stat.ended()) else { return Ok(()) };
    for fd in numbers(&format!("/proc/{host}/fd"))? {
        // Closed since.
        let Ok(what) = read_link(format!("/proc/{host}/fd/{fd}")) else { continue };
        let description = known.number(what.into_os_string(), host, fd);
        seen.descriptors.push(SeenDescriptor { process, fd, description });
    }
    Ok(())
}

impl Seen {
    /// A look at a job that begins now, and has seen nothing yet.
    pub fn begin() -> Seen {
        let up = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        Seen { booted: SystemTime::now().checked_sub(up).map(Time::from), ..Seen::default() }
    }

    /// Adds a descriptor of a process, and, if it is the first that leads to `description`, what that is for people: a path,
    /// `pipe:[4711]`.
    pub fn add_descriptor(&mut self, process: i32, fd: i32, description: u32, what: impl FnOnce() -> Bytes) {
        self.descriptors.push(SeenDescriptor { process, fd, description });
        self.descriptions.entry(description).or_insert_with(what);
    }

    /// The tasks of a job that has just been made as its members say. Each comes with its id in ckrun's pid namespace and the
    /// ids of its other threads in the job's and in ckrun's.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn made<'m>(
        processes: impl Iterator<Item = (&'m Member, Pid, Vec<(i32, Pid)>)>,
    ) -> Result<Seen, Failure> {
        let mut seen = Seen::begin();
        for (member, host, others) in processes {
            let gone = || Failure::new(format!("look at process {host}"), Errno::ESRCH);
            let Stat { started, session, group, .. } = Stat::of(host).ok_or_else(gone)?;
            let leader = SeenTask {
                process: member.pid,
                thread: member.pid,
                host: HostTask { id: host.as_raw(), started },
                session: Pair { id: member.session, host: session },
                group: Pair { id: member.group, host: group },
            };
            let thread = |(tid, host): (i32, Pid)| SeenTask {
                thread: tid,
                host: HostTask { id: host.as_raw(), started },
                ..leader
            };
            seen.tasks.push(leader);
            seen.tasks.extend(others.into_iter().map(thread));
        }
        Ok(seen)
    }

    /// The tasks of a stopped job; its descriptors are added by those who know them ([`Seen::add_descriptor`]).
    pub fn stopped(job: &Frozen) -> Seen {
        let mut seen = Seen::begin();
        for process in &job.processes {
            let threads = process.threads.iter().map(|thread| &thread.stopped.status);
            // A zombie has no thread that could be stopped.
            let ended = process.threads.is_empty().then_some(&process.stopped.status);
            let tasks = threads.chain(ended).filter_map(|status| {
                SeenTask::of(status, status.ns_pid.len().checked_sub(1)?, process.stat.started)
            });
            seen.tasks.extend(tasks);
        }
        seen
    }
}

impl SeenTask {
    /// A thread of a process that started at `started`; None when it has no id at that depth.
    pub fn of(status: &Status, depth: usize, started: u64) -> Option<SeenTask> {
        let pair = |ids: &[i32]| Some(Pair { id: *ids.get(depth)?, host: *ids.first()? });
        Some(SeenTask {
            process: *status.ns_tgid.get(depth)?,
            thread: *status.ns_pid.get(depth)?,
            host: HostTask { id: *status.ns_pid.first()?, started },
            session: pair(&status.ns_sid)?,
            group: pair(&status.ns_pgid)?,
        })
    }
}

/// The open file descriptions that were met, by what they are: only those can be the same.
#[derive(Default)]
struct Descriptions {
    met: HashMap<OsString, Vec<(Pid, i32, u32)>>,
    what: BTreeMap<u32, Bytes>,
}

impl Descriptions {
    /// The number of the description that `fd` of `process` leads to.
    fn number(&mut self, what: OsString, process: Pid, fd: i32) -> u32 {
        let met = self.met.entry(what.clone()).or_default();
        // A kernel without kcmp(2) (CONFIG_KCMP) shows each descriptor as if it had a description of its own.
        let same =
            met.iter().find(|(other, its, _)| sys::same_file(process, fd, *other, *its).unwrap_or(false));
        if let Some((.., number)) = same {
            return *number;
        }
        let number = u32::try_from(self.what.len()).unwrap_or(u32::MAX);
        met.push((process, fd, number));
        self.what.insert(number, what.into());
        number
    }
}

fn status(dir: &str) -> Result<Status, Failure> {
    let path = format!("{dir}/status");
    crate::proc::read(&path).doing(|| format!("read {path}")).map(|text| Status::parse(&text))
}

/// The numbers that a directory's entries are, ascending.
fn numbers(dir: &str) -> Result<Vec<i32>, Failure> {
    let listing = read_dir(dir).doing(|| format!("list {dir}"))?;
    let mut numbers: Vec<i32> =
        listing.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    #[test]
    fn a_shared_description_is_seen_as_one() {
        let first = tempfile::tempfile().unwrap();
        let shared = first.try_clone().unwrap();
        let again = std::fs::File::open(format!("/proc/self/fd/{}", first.as_raw_fd())).unwrap();
        let this = Pid::this();
        let seen = look(&[this], depth(this).unwrap()).unwrap();
        let of = |file: &std::fs::File| {
            let fd = file.as_raw_fd();
            seen.descriptors.iter().find(|descriptor| descriptor.fd == fd).unwrap().description
        };
        assert_eq!(of(&first), of(&shared));
        assert_ne!(of(&first), of(&again), "the same file, opened twice");
        assert_eq!(seen.descriptions[&of(&first)], seen.descriptions[&of(&again)]);
        let own = seen.tasks.iter().find(|task| task.thread == this.as_raw()).unwrap();
        assert_eq!(own.host, HostTask { id: this.as_raw(), started: Stat::of(this).unwrap().started });
        // SAFETY: they only ask.
        let ids = unsafe { (libc::getsid(0), libc::getpgrp()) };
        assert_eq!((own.session.host, own.group.host), ids);
    }

    #[test]
    fn a_stopped_job_is_seen_as_a_running_one_is() {
        // A session of its own, so that there is a leader to be seen.
        let script = "sleep infinity & echo up; wait";
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        let init = Pid::from_raw(child.id().cast_signed());
        let depth = depth(init).unwrap();
        let mut running = look(&processes(init).unwrap(), depth).unwrap().tasks;
        let frozen = Frozen::stop(init, crate::listing::list(init), || Ok(())).unwrap();
        let mut stopped = Seen::stopped(&frozen).tasks;
        let sleep = stopped.iter().find(|task| task.host.id != init.as_raw()).unwrap().host.id;
        frozen.release();
        for pid in [Pid::from_raw(sleep), init] {
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        child.wait().unwrap();
        running.sort_by_key(|task| task.thread);
        stopped.sort_by_key(|task| task.thread);
        assert_eq!(running, stopped);
        assert_eq!(running.len(), 2);
        assert!(running.iter().all(|task| task.session.host == init.as_raw()));
    }
}
