//! Landlock: is a task confined by it?
//!
//! Per thread. A restarted task could not be confined again, because the kernel shows nothing of a domain: neither its
//! rules nor that it exists. But every domain, whatever it handles, keeps a task from looking at a process outside of
//! it. So ckrun makes such a process, a [`Witness`], that every other rule allows the task to look at, and has the task
//! try. Where ckrun is confined itself, its witness is too, and only what is confined further is found.

use crate::program::{Call, Program};
use crate::resource::{Blocker, Stopped};
use crate::status::Status;
use crate::sys::ptrace::{self, Change};
use crate::sys::{Clone3, Cloned};
use crate::{Doing, Failure, Process};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::{PidfdFlags, pidfd_open};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

/// `linux/kcmp.h`: compare two processes' memories.
const KCMP_VM: u64 = 1;
/// `linux/landlock.h`: ask for the version.
const CREATE_RULESET_VERSION: u32 = 1;
/// `linux/securebits.h`: root gets no capabilities by execve; a change of user ids does not touch them.
const SECBIT_NOROOT: u64 = 1 << 0;
const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
/// Every namespace that a process can enter but its user namespace, which comes later, and the pid namespace, which it is
/// born in.
const ALL_BUT_USER: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Witnesses for the tasks of a job, which are all in the same user and pid namespaces. They end with it.
#[derive(Debug, Default)]
pub struct Witnesses {
    made: Vec<Witness>,
}

/// A process that does nothing, in the namespaces of some tasks and with their ids.
#[derive(Debug)]
pub struct Witness {
    process: Process,
    identity: Identity,
    /// Its id in its pid namespace.
    pid: i32,
}

/// What has to be equal for the rules of ptrace(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    uid: u32,
    gid: u32,
}

impl Witnesses {
    /// The witness for `task`, made if there is none yet. None when this kernel has no Landlock.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(&mut self, task: &Stopped) -> Result<Option<&Witness>, Failure> {
        if self.made.is_empty() && !supported() {
            return Ok(None);
        }
        let identity = Identity { uid: task.status.uid[0], gid: task.status.gid[0] };
        let known = self.made.iter().position(|witness| witness.identity == identity);
        let index = known.map_or_else(
            || {
                self.made.push(Witness::make(task, identity)?);
                Ok(self.made.len() - 1)
            },
            Ok,
        )?;
        Ok(self.made.get(index))
    }
}

fn supported() -> bool {
    // SAFETY: without attributes and with this flag the call only answers a number.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, CREATE_RULESET_VERSION)
    };
    version > 0
}

impl Witness {
    /// Has the task try to look at the witness.
    pub fn ask(&self, program: &mut Program) -> Call {
        let args = [self.pid.into(), self.pid.into(), KCMP_VM.into(), 0.into(), 0.into()];
        program.attempt("look at another process", libc::SYS_kcmp, &args)
    }

    fn make(task: &Stopped, identity: Identity) -> Result<Witness, Failure> {
        let what = || format!("make a process that task {} may look at", task.tid);
        let open = |pid: &str, name: &str| {
            let path = format!("/proc/{pid}/ns/{name}");
            File::open(&path).doing(|| format!("open {path}"))
        };
        let (own, theirs) = (open("self", "pid")?, open(&task.host.to_string(), "pid")?);
        // Only a process, not a thread, can be a model for setns(2).
        let host = rustix::process::Pid::from_raw(task.status.tgid).ok_or(Errno::ESRCH).doing(what)?;
        let model = pidfd_open(host, PidfdFlags::empty()).doing(what)?;
        let plan = Plan {
            identity,
            model,
            other_user_namespace: user_namespace("self")? != user_namespace(&task.host.to_string())?,
            label: label_to_take(task),
            image: image().doing(what)?,
        };
        setns(&theirs, CloneFlags::CLONE_NEWPID).doing(what)?;
        // SAFETY: ckrun has one thread. The child makes nothing but system calls on what it has inherited.
        let cloned = unsafe { Clone3::default().call() };
        if let Ok(Cloned::Child) = cloned {
            let errno = plan.carry_out().err().unwrap_or(Errno::ENOEXEC);
            // SAFETY: ends the process without running anything of ckrun's; errno values are below 256.
            unsafe { libc::_exit(errno as i32) }
        }
        setns(&own, CloneFlags::CLONE_NEWPID).doing(|| "return to the own pid namespace")?;
        let Ok(Cloned::Parent(pid, fd)) = cloned else {
            return Err(Failure::new(what(), cloned.err().unwrap_or(Errno::EAGAIN)));
        };
        let mut witness = Witness { process: Process::from_clone(pid, fd), identity, pid: 0 };
        match ptrace::wait(pid, 0).doing(what)? {
            // The stop after a traced process's execve.
            Some((_, Change::Signal(libc::SIGTRAP))) => {
                ptrace::set_options(pid, libc::PTRACE_O_EXITKILL).doing(what)?;
            }
            Some((_, Change::Ended(status))) => {
                return Err(Failure::new(what(), Errno::from_raw(libc::WEXITSTATUS(status))));
            }
            _ => return Err(Failure::new(what(), Errno::ECHILD)),
        }
        let status = std::fs::read(format!("/proc/{pid}/status")).doing(what)?;
        witness.pid = Status::parse(&status).ns_pid.last().copied().ok_or(Errno::ESRCH).doing(what)?;
        Ok(witness)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if self.process.signal(Signal::SIGKILL).is_ok() {
            let _ = ptrace::wait(self.process.pid(), 0);
        }
    }
}

fn user_namespace(process: &str) -> Result<(u64, u64), Failure> {
    let path = format!("/proc/{process}/ns/user");
    let stat = rustix::fs::stat(&path).doing(|| format!("look at {path}"))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// How a copy of ckrun becomes a witness.
///
/// Others in the job's namespaces can look at it as well, and not all of them need be stopped. So nothing of the host's
/// may be left: it has the job's namespaces and root, no descriptors, and executes a file that holds nothing. It is
/// traced and never runs, so that whoever changes its memory does not get a task without the job's filters.
struct Plan {
    identity: Identity,
    model: OwnedFd,
    other_user_namespace: bool,
    label: Option<Vec<u8>>,
    image: OwnedFd,
}

impl Plan {
    fn carry_out(&self) -> Result<(), Errno> {
        let call = |nr, args: [u64; 5]| {
            let [a, b, c, d, e] = args;
            // SAFETY: the callers below pass numbers, or the addresses of what lives through the call.
            Errno::result(unsafe { libc::syscall(nr, a, b, c, d, e) }).map(drop)
        };
        let prctl = |option: i32, value: u64| call(libc::SYS_prctl, [option as u64, value, 0, 0, 0]);
        nix::sys::ptrace::traceme()?;
        if let Some(label) = &self.label {
            // If that is not allowed, the task is allowed less than Landlock alone would allow it, and is refused.
            let file = File::options().write(true).open("/proc/thread-self/attr/current");
            let _ = file.and_then(|mut file| file.write_all(label));
        }
        setns(&self.model, CloneFlags::from_bits_retain(ALL_BUT_USER))?;
        prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)?;
        call(libc::SYS_setresgid, [self.identity.gid.into(); 5])?;
        call(libc::SYS_setresuid, [self.identity.uid.into(); 5])?;
        if self.other_user_namespace {
            setns(&self.model, CloneFlags::CLONE_NEWUSER)?;
        }
        // A task may look only at who has no more capabilities than it; root must not get them back by execve.
        prctl(libc::PR_SET_SECUREBITS, SECBIT_NOROOT)?;
        let (header, none) = ([CAPABILITY_VERSION_3, 0], [0_u32; 6]);
        call(libc::SYS_capset, [header.as_ptr().addr() as u64, none.as_ptr().addr() as u64, 0, 0, 0])?;
        prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64)?;
        call(libc::SYS_close_range, [0, u32::MAX.into(), libc::CLOSE_RANGE_CLOEXEC.into(), 0, 0])?;
        let (path, end) = (c"".as_ptr().addr() as u64, [std::ptr::null::<u8>()]);
        let end = end.as_ptr().addr() as u64;
        let flags = libc::AT_EMPTY_PATH as u64;
        call(libc::SYS_execveat, [self.image.as_raw_fd() as u64, path, end, end, flags])
    }
}

/// An executable of one page that is never run.
fn image() -> Result<OwnedFd, rustix::io::Errno> {
    let word = |number: u64| number.to_le_bytes();
    let mut elf = Vec::with_capacity(128);
    // The identification; type EXEC, machine x86-64, version; entry, program headers right after this header, no
    // sections; flags, the sizes of the headers, one program header.
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    elf.extend([word(0x40_0078), word(64), word(0)].concat());
    elf.extend(b"\0\0\0\0\x40\0\x38\0\x01\0\x40\0\0\0\0\0");
    // PT_LOAD, readable and executable: the whole file.
    elf.extend(b"\x01\0\0\0\x05\0\0\0");
    elf.extend([word(0), word(0x40_0000), word(0x40_0000), word(122), word(122), word(0x1000)].concat());
    // ud2
    elf.extend(b"\x0f\x0b");
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create(c"ckrun-witness", flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 nobody had to say so.
        Err(rustix::io::Errno::INVAL) => memfd_create(c"ckrun-witness", flags)?,
        file => file?,
    };
    rustix::io::write(&file, &elf)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// What to write to attr/current to have the label that the task has, if it has another one than ckrun: a security
/// module lets tasks look at their like.
fn label_to_take(task: &Stopped) -> Option<Vec<u8>> {
    let label = task.read("attr/current").ok()?;
    let own = std::fs::read("/proc/thread-self/attr/current").ok()?;
    let label = label.trim_ascii_end();
    if label.is_empty() || label == own.trim_ascii_end() {
        return None;
    }
    // AppArmor shows `PROFILE (MODE)` and takes a command.
    let profile = label.windows(2).position(|pair| pair == b" (").map(|end| &label[..end]);
    Some(profile.map_or_else(|| label.to_vec(), |profile| [b"changeprofile ", profile].concat()))
}

/// Judges a task by its answer to [`Witness::ask`].
pub fn blocker(task: &Stopped, answer: Result<i64, Errno>) -> Option<Blocker> {
    let refuse = |why: &str| Blocker {
        pid: task.pid,
        comm: task.comm(),
        what: format!("thread {}: Landlock", task.tid),
        why: why.to_owned(),
        remedy: None,
    };
    match answer {
        Ok(_) => None,
        Err(Errno::EPERM) => {
            Some(refuse("it is confined, and the kernel does not tell how: it would be free after a restart"))
        }
        Err(errno) => {
            Some(refuse(&format!("can't tell whether it is confined: {}", crate::error::text(errno))))
        }
    }
}
