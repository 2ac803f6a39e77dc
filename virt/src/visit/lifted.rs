//! Limits of a visited process that are out of force for a moment: it may have all the memory, or all the processes, that it
//! is allowed, and ckrun needs some more.

use super::AREA;
use crate::capabilities::CAP_SYS_RESOURCE;
use crate::resource::{Blocker, Stopped};
use crate::status::Status;
use crate::sys::Undo;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;

/// What bounds a new mapping: the address space, the private memory that is writable, and, where all new mappings are locked
/// (mlockall(2)), what is locked.
const MEMORY: [u32; 3] = [libc::RLIMIT_AS, libc::RLIMIT_DATA, libc::RLIMIT_MEMLOCK];
const PROCESSES: [u32; 1] = [libc::RLIMIT_NPROC];

/// They are in force again when this is dropped, and when ckrun is killed.
#[derive(Debug)]
pub(crate) struct Lifted(#[expect(dead_code, reason = "it is dropped")] Undo);

impl Lifted {
    /// Those of memory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn memory(process: Pid) -> Result<Lifted, Failure> {
        Lifted::of(process, &MEMORY)
    }

    /// That of processes of its user.
    ///
    /// # Errors
    /// The kernel's.
    pub fn processes(process: Pid) -> Result<Lifted, Failure> {
        Lifted::of(process, &PROCESSES)
    }

    fn of(process: Pid, kinds: &[u32]) -> Result<Lifted, Failure> {
        let what = || format!("lift the limits of process {process}");
        let mut undo = Undo::default();
        for &kind in kinds {
            let old = undo.note_limit(process, kind).doing(what)?;
            // To raise the hard limit takes CAP_SYS_RESOURCE.
            match set(process, kind, libc::RLIM_INFINITY) {
                Err(Errno::EPERM) => set(process, kind, old.rlim_max).doing(what)?,
                done => done.doing(what)?,
            }
        }
        Ok(Lifted(undo))
    }
}

fn set(process: Pid, kind: u32, amount: u64) -> Result<(), Errno> {
    let limit = libc::rlimit { rlim_cur: amount, rlim_max: amount };
    // SAFETY: the kernel reads the limit; the old one is not wanted.
    let set = unsafe { libc::prlimit(process.as_raw(), kind, &raw const limit, std::ptr::null_mut()) };
    Errno::result(set).map(drop)
}

/// Names a limit that leaves ckrun no room in a process, and that it can't lift. (What is locked can't be told beforehand.)
///
/// # Errors
/// The kernel's.
pub(crate) fn blocker(task: &Stopped) -> Result<Option<Blocker>, Failure> {
    let kinds = [
        (libc::RLIMIT_AS, task.status.mapped, "Max address space", "RLIMIT_AS"),
        (libc::RLIMIT_DATA, task.status.data, "Max data size", "RLIMIT_DATA"),
    ];
    for (kind, used, line, name) in kinds {
        let need = (used << 10).saturating_add(AREA);
        let most = most(task, kind, line, need)?;
        if most < need {
            return Ok(Some(Blocker {
                pid: task.pid,
                comm: task.comm(),
                what: "memory".into(),
                why: format!(
                    "it has all that its limit allows ({name}: {most}), ckrun needs {} KiB more in it for a moment, and \
                     raising the limit takes CAP_SYS_RESOURCE",
                    AREA >> 10
                ),
                remedy: Some("raise the limit".into()),
            }));
        }
    }
    Ok(None)
}

/// How far ckrun can raise the limit that `line` of `/proc/PID/limits` shows, if it has to.
fn most(task: &Stopped, kind: u32, line: &str, need: u64) -> Result<u64, Failure> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel stores the limit; there is no new one.
    let got = unsafe { libc::prlimit(task.host.as_raw(), kind, std::ptr::null(), &raw mut limit) };
    match Errno::result(got) {
        Ok(_) if limit.rlim_max >= need => Ok(limit.rlim_max),
        Ok(_) => {
            let path = "/proc/thread-self/status";
            let own = Status::parse(&crate::proc::read(path).doing(|| format!("read {path}"))?);
            let all = own.cap_eff >> CAP_SYS_RESOURCE & 1 == 1;
            Ok(if all { libc::RLIM_INFINITY } else { limit.rlim_max })
        }
        // It is another user's, and ckrun lacks the capability.
        Err(Errno::EPERM) => {
            let limits = task.read("limits")?;
            let text = String::from_utf8_lossy(&limits);
            let soft = text.lines().find_map(|found| found.strip_prefix(line)?.split_whitespace().next());
            Ok(soft.and_then(|soft| soft.parse().ok()).unwrap_or(libc::RLIM_INFINITY))
        }
        Err(errno) => Err(Failure::new(format!("get the limits of process {}", task.pid), errno)),
    }
}
