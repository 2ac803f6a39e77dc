//! From a process inside the sandbox to the job: limits, identity, rights, filter, exec.
//!
//! The order is the kernel's. Limits and scheduling need root. The bounding set must be emptied before the capability
//! to do so goes. The ids change with the permitted set kept, then the capability sets take their final values. A
//! seccomp filter needs either no_new_privs or CAP_SYS_ADMIN, so without the former it comes before the last
//! capability change; in both cases as little as possible happens after it, since it may deny anything.

use super::channel::{Channel, Note};
use super::command::Command;
use super::procfs::Proc;
use super::seccomp::Filter;
use super::{caps, identity, labels, rlimits, scheduling};
use crate::error::{Error, Result};
use ckrun_virt::Doing;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::unistd::{chdir, getcwd};
use oci_spec::runtime::{Process, Spec};
use std::convert::Infallible;
use std::os::fd::{AsRawFd, RawFd};

/// What a process of the container is to become.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The container's configuration.
    pub spec: &'a Spec,
    /// Its entry in config.json, or the one given to `ckrun exec`.
    pub process: &'a Process,
    /// The host's procfs, in which `self` is still this process.
    pub proc: &'a Proc,
    /// The compiled filter.
    pub seccomp: Option<&'a Filter>,
    /// The descriptors that it keeps besides the standard streams.
    pub keep_fds: &'a [RawFd],
    /// Environment variables besides the configured ones.
    pub more_env: &'a [String],
}

/// A process that is the job but for the start.
#[derive(Debug)]
pub struct Prepared<'a> {
    job: Job<'a>,
    command: Command,
    /// Those still to be taken on.
    capabilities: Option<caps::Sets>,
    /// The filter is loaded.
    confined: bool,
}

impl<'a> Job<'a> {
    /// Takes on the job's limits, identity and rights and finds its command. What is left for later must not fail for
    /// a reason that could have been known now: a client wants to hear of it from `create`, not from `start`.
    pub fn prepare(self) -> Result<Prepared<'a>> {
        let process = self.process;
        let nnp = process.no_new_privileges().unwrap_or(false);
        let sets = process.capabilities().as_ref().map_or_else(caps::Sets::none, caps::Sets::new);
        scheduling::schedule(process)?;
        scheduling::domain_and_memory(self.spec)?;
        identity::own_streams(process.user())?;
        rlimits::set(process.rlimits().as_deref().unwrap_or_default(), None)?;
        sets.drop_bounding()?;
        sets.keep()?;
        identity::assume(process.user())?;
        identity::set_umask(process.user());
        enter_cwd(process)?;
        let mut command = Command::find(process, self.more_env)?;
        command.default_home(process.user().uid());
        let later = if nnp || self.seccomp.is_none() {
            sets.apply()?;
            None
        } else {
            // Loading the filter will need CAP_SYS_ADMIN.
            sets.begin()?;
            Some(sets)
        };
        if nnp {
            prctl::set_no_new_privs().doing(|| "set no_new_privs")?;
        }
        Ok(Prepared { job: self, command, capabilities: later, confined: false })
    }
}

impl Prepared<'_> {
    /// Loads the filter now if an agent is to have its listener: clients expect that to be done by `create`. Any other
    /// filter waits until the last moment.
    pub fn introduce(&mut self, channel: &Channel) -> Result<()> {
        if self.job.seccomp.is_some_and(Filter::notifies) { self.confine(channel) } else { Ok(()) }
    }

    /// Becomes the job.
    pub fn run(mut self, channel: &Channel) -> Result<Infallible> {
        if !self.confined {
            self.confine(channel)?;
        }
        self.capabilities.map_or(Ok(()), |sets| sets.finish())?;
        self.command.exec()
    }

    fn confine(&mut self, channel: &Channel) -> Result<()> {
        self.confined = true;
        labels::enter_profile(self.job.process, self.job.proc)?;
        labels::label_next_exec(self.job.process, self.job.proc)?;
        hide_descriptors(self.job.keep_fds)?;
        let Some(filter) = self.job.seccomp else { return Ok(()) };
        let loaded = filter.load().map_err(|e| Error::config("linux.seccomp", e.to_string()))?;
        let Some(listener) = loaded else { return Ok(()) };
        channel.send(&Note::Listener(listener.as_raw_fd()))?;
        channel.expect(&Note::Continue)
    }
}

/// chdir(2) as the job's user, into a directory that is really inside the container: a descriptor of the host that had
/// leaked in could be reached as /proc/self/fd/N and would make the host's files reachable by `..`.
fn enter_cwd(process: &Process) -> Result<()> {
    let cwd = process.cwd();
    if !cwd.is_absolute() {
        return Err(Error::config("process.cwd", format!("{} is not an absolute path", cwd.display())));
    }
    chdir(cwd).doing(|| format!("chdir to process.cwd {}", cwd.display()))?;
    // The kernel shows a place outside the root as "(unreachable)…", which libc turns into ENOENT (getcwd(3)).
    match getcwd() {
        Err(Errno::ENOENT) => {
            Err(Error::config("process.cwd", format!("{} is outside the container", cwd.display())))
        }
        other => other.map(drop).doing(|| "getcwd").map_err(Error::from),
    }
}

/// Marks every descriptor but the standard streams and those in `keep` to be closed by the exec.
fn hide_descriptors(keep: &[RawFd]) -> Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC nothing is closed now, so no owner of a descriptor in this process is wronged.
    let answer = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    Errno::result(answer).doing(|| "mark descriptors close-on-exec")?;
    for number in keep {
        // SAFETY: F_SETFD changes a flag of a number, and the flag of these is ours to change.
        let answer = unsafe { libc::fcntl(*number, libc::F_SETFD, 0) };
        Errno::result(answer).doing(|| format!("pass descriptor {number} on"))?;
    }
    Ok(())
}

/// Gives every signal its default action and unblocks all: the job must not inherit what ckrun or its caller ignored.
pub fn reset_signals() -> Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action runs no code of ours.
        unsafe { sigaction(signal, &default) }.doing(|| format!("reset {signal}"))?;
    }
    // The C library keeps the first two real-time signals to itself, so the kernel is asked: a zeroed kernel sigaction
    // (no more than four words on any architecture) is the default action.
    let zeroes = [0_u64; 4];
    for number in 32..=64 {
        // SAFETY: the kernel only reads the structure, and the default action runs no code of ours.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                zeroes.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
        Errno::result(answer).doing(|| format!("reset signal {number}"))?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).doing(|| "unblock all signals")?;
    Ok(())
}

/// Descriptors of the caller that a job is to have.
#[derive(Debug, Clone, Default)]
pub struct Inherited {
    /// Their numbers.
    pub fds: Vec<RawFd>,
    /// How many of them are for socket activation.
    listen: u32,
}

impl Inherited {
    /// Those of the caller's from 3 up: `LISTEN_FDS` of them for socket activation (sd_listen_fds(3)), if `listen`, and
    /// `preserve` more. Numbers that are not open are left out. It must be asked before ckrun opens anything itself.
    pub fn find(preserve: u32, listen: bool) -> Inherited {
        let count = || std::env::var("LISTEN_FDS").ok()?.parse().ok();
        let listen = if listen { count().unwrap_or(0) } else { 0 };
        let end = 3 + preserve.saturating_add(listen).min(1 << 20).cast_signed();
        // SAFETY: F_GETFD only asks; a number that is not open answers EBADF.
        let open = |number: &RawFd| unsafe { libc::fcntl(*number, libc::F_GETFD) } != -1;
        Inherited { fds: (3..end).filter(open).collect(), listen }
    }

    /// What tells the job of them: it is process 1.
    pub fn env(&self) -> Vec<String> {
        match self.listen {
            0 => Vec::new(),
            count => vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".into()],
        }
    }
}
