//! How a supervisor is started, found again, and seen to its end.

use super::client::Client;
use super::names;
use super::record::Record;
use super::request::Request;
use crate::error::{Error, Result};
use crate::plugin::failed::seconds;
use crate::state::InitProcess;
use ckrun_plugin::Event;
use ckrun_plugin::message::{Id, Message};
use ckrun_plugin::wire::Wire;
use ckrun_virt::{Doing, Failure, Process};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket, sockopt,
};
use nix::unistd::{ForkResult, Pid, fork, geteuid, setsid};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The descriptor of a new supervisor that leads to the verb.
pub const NUMBER: RawFd = 3;

/// How much longer than its plugins may take a supervisor may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// Starts a supervisor for the container in `home`.
///
/// # Errors
/// The kernel's.
pub fn start(home: &Path) -> Result<Client> {
    let doing = || "start the supervisor of the job's plugins";
    let (ours, theirs) = UnixStream::pair().doing(doing)?;
    let path = home.join(names::LOG);
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let log = log.map_err(|e| Error::file(&path, &e))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("ckrun").arg("supervise").arg(home).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let socket = theirs.as_raw_fd();
    // SAFETY: between fork and exec there is one thread, as there was before, so that no lock is held by another.
    unsafe { command.pre_exec(move || Ok(leave(socket)?)) };
    let mut child = command.spawn().doing(doing)?;
    // Only the one between: the supervisor is nobody's.
    child.wait().doing(doing)?;
    Ok(Client::new(ours.into()))
}

/// What the child does before the exec: it leaves the caller's session, and its parent.
fn leave(socket: RawFd) -> Result<(), Errno> {
    setsid()?;
    // SAFETY: both sides are single-threaded; the one that stays does nothing but end.
    if let ForkResult::Parent { .. } = unsafe { fork() }? {
        // SAFETY: ends this process without running anything of the caller's.
        unsafe { libc::_exit(0) };
    }
    // A ckrun in the foreground holds signals back, and a mask is inherited.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    if socket == NUMBER {
        // SAFETY: changes the flags of a descriptor of ours; dup2(2) would leave them as they are.
        Errno::result(unsafe { libc::fcntl(NUMBER, libc::F_SETFD, 0) })?;
    } else {
        // SAFETY: replaces a descriptor of the child, which execs next and uses none by number but this. It is not the pipe
        // by which the standard library reports a failed exec: before the spawn the lowest free numbers were taken.
        Errno::result(unsafe { libc::dup2(socket, NUMBER) })?;
    }
    // Closed by the exec and not now, for the sake of that pipe.
    // SAFETY: only sets flags.
    Errno::result(unsafe {
        libc::close_range(4, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int)
    })?;
    Ok(())
}

/// A socket's address holds 108 bytes (unix(7)); the path to the store may be longer, so it goes through a descriptor.
fn with_address<T>(home: &Path, call: impl FnOnce(&UnixAddr) -> nix::Result<T>) -> Result<T, Errno> {
    let dir = File::open(home).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    let short = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), names::SOCKET);
    UnixAddr::new(short.as_str()).and_then(|address| call(&address))
}

fn stream() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

/// Makes the socket at which a supervisor can be reached. One of a supervisor that was killed is replaced.
///
/// # Errors
/// The kernel's.
pub fn open(home: &Path) -> Result<OwnedFd> {
    let path = home.join(names::SOCKET);
    let _ = std::fs::remove_file(&path);
    let make = || -> Result<OwnedFd, Errno> {
        let fd = stream()?;
        with_address(home, |address| bind(fd.as_raw_fd(), address))?;
        listen(&fd, Backlog::MAXCONN)?;
        Ok(fd)
    };
    Ok(make().doing(|| format!("listen on {}", path.display()))?)
}

/// Those who connect find this process at the other end (SO_PEERCRED): it is that which has last called listen(2).
///
/// # Errors
/// The kernel's.
pub fn own(socket: &OwnedFd) -> Result<()> {
    Ok(listen(socket, Backlog::MAXCONN).doing(|| "listen for verbs")?)
}

/// The id of the process at the other end of a socket, if it is one of the same user or of root.
fn trusted(socket: impl AsFd) -> Option<Pid> {
    let credentials = getsockopt(&socket, sockopt::PeerCredentials).ok()?;
    let trusted = credentials.uid() == 0 || credentials.uid() == geteuid().as_raw();
    trusted.then(|| Pid::from_raw(credentials.pid()))
}

/// The process at the other end of a socket, likewise; None if it has gone.
pub fn peer(socket: impl AsFd) -> Option<Process> {
    Process::open_now(trusted(socket)?)
}

/// A connection to the supervisor of the container in `home`, and its process unless its keeper is about to start another;
/// None when there is neither.
fn reach(home: &Path) -> Result<Option<(OwnedFd, Option<Process>)>> {
    let connected =
        stream().and_then(|fd| with_address(home, |address| connect(fd.as_raw_fd(), address)).map(|()| fd));
    match connected {
        Ok(fd) => Ok(trusted(&fd).map(|pid| (fd, Process::open_now(pid)))),
        Err(Errno::ENOENT | Errno::ECONNREFUSED) => Ok(None),
        Err(e) => Err(Failure::new(format!("connect to {}", home.join(names::SOCKET).display()), e).into()),
    }
}

/// Finds the supervisor of a container; None when it has ended or was killed.
///
/// # Errors
/// The kernel's.
pub fn find(home: &Path) -> Result<Option<Client>> {
    Ok(reach(home)?.map(|(fd, _)| Client::new(fd)))
}

/// Whether a container has one.
pub fn lives(home: &Path) -> bool {
    matches!(reach(home), Ok(Some(_)))
}

/// Sees the supervisor of a container whose job is gone to its end, or kills it, and what plugins a killed one has left.
///
/// # Errors
/// The kernel's.
pub fn part(home: &Path) -> Result<()> {
    let limit = limit(home);
    let keeper = || record(home).and_then(|record| record.keeper).and_then(held);
    if let Some((fd, process)) = reach(home)? {
        let (method, params) = Request::End {}.words();
        let message = Message::Request { id: Id::Number(1), method, params, fds: 0 };
        let mut wire = Wire::new(fd);
        // One that does not listen is about to end, or will be killed.
        let _ = wire.queue(&message, Vec::new()).and_then(|()| wire.flush(true));
        // It is the keeper that ends last. One that was killed has left a supervisor alone.
        for process in process.into_iter().chain(keeper()) {
            if !process.wait(limit)? {
                log::warn!(
                    "the supervisor of the job's plugins had not ended within {} s: killed",
                    seconds(limit)
                );
                keeper().map_or(Ok(()), |keeper| kill(&keeper))?;
                kill(&process)?;
            }
        }
    }
    sweep(home)
}

fn kill(process: &Process) -> Result<()> {
    process.signal(Signal::SIGKILL)?;
    process.wait(GRACE)?;
    Ok(())
}

fn held(process: InitProcess) -> Option<Process> {
    Process::open(Pid::from_raw(process.pid), process.started)
}

/// Kills what a supervisor that was killed has left.
///
/// # Errors
/// The kernel's.
pub fn sweep(home: &Path) -> Result<()> {
    let Some(record) = record(home) else { return Ok(()) };
    if let Some(keeper) = record.keeper.and_then(held)
        && !keeper.wait(GRACE)?
    {
        kill(&keeper)?;
    }
    sweep_plugins(&record)
}

/// Likewise, of its plugins.
///
/// # Errors
/// The kernel's.
pub fn sweep_plugins(record: &Record) -> Result<()> {
    let processes = record.plugins.iter().filter_map(|plugin| plugin.process);
    for process in processes.filter_map(held) {
        // Its socket is closed: it is about to end, or does not know how.
        if !process.wait(Duration::from_millis(500))? {
            kill(&process)?;
        }
    }
    Ok(())
}

/// How long the plugins may take for their end.
fn limit(home: &Path) -> Duration {
    let exit = |plugin: &super::record::Plugin| {
        let asked = plugin.manifest.deadlines.get(&Event::Exit).copied();
        ckrun_plugin::event::duration(asked.or(plugin.exit).unwrap_or_else(|| Event::Exit.deadline()))
    };
    // One after the other is told, and all ends are awaited together.
    let all = record(home).map_or(Duration::ZERO, |r| r.plugins.iter().map(exit).sum::<Duration>());
    all * 2 + GRACE
}

fn record(home: &Path) -> Option<Record> {
    Record::read(home).unwrap_or_else(|e| {
        log::warn!("{e}");
        None
    })
}
