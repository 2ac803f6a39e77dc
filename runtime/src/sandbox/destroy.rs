//! The end of a container.

use super::hooks;
use super::intel_rdt::Group;
use crate::error::Result;
use crate::state::{Entry, InitProcess, State, Store};
use crate::status::Status;
use crate::supervisor::launch;
use ckrun_virt::Process;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::time::Duration;

/// How long a killed process may take to be gone; it may be in the middle of a core dump or of a large munmap.
const PATIENCE: Duration = Duration::from_secs(10);

/// Removes what a container that has ended, or never came to be, leaves on the host, and forgets it.
pub fn forget(entry: Entry, state: &State) -> Result<()> {
    if state.supervised {
        // Its plugins hear of the end, and what they hold outside is let go of, before the container is forgotten.
        launch::part(entry.dir())?;
        log::debug!("the plugins have ended");
    }
    state.cgroups.remove()?;
    log::debug!("removed the cgroups");
    state.rdt.as_ref().map_or(Ok(()), Group::remove)?;
    if let Ok(spec) = entry.spec() {
        hooks::run_leniently(&spec, "poststop", || state.for_hooks(Status::Stopped));
    }
    entry.remove()
}

/// After a failure: nothing of the container stays. What can't be removed is only logged, because the reason of the
/// failure is what the user must hear.
pub fn undo(entry: Entry, state: &State, init: Option<&Process>) {
    if let Some(init) = init {
        if let Err(e) = init.signal(Signal::SIGKILL) {
            log::debug!("{e}");
        }
        reap(init);
    }
    if let Err(e) = forget(entry, state) {
        log::warn!("{e}");
    }
}

/// Waits for the end of a killed init. What we trace of its descendants, after a failed restart, is waited for too, since
/// the kernel ends a pid namespace's init only after all others in it have been (zap_pid_ns_processes).
fn reap(init: &Process) {
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => {}
            Err(_) => return,
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) if pid == init.pid() => return,
            Ok(_) => {}
        }
    }
}

/// Removes what is there of a container whose making was cut short, all of it unfinished. `init` is its init, if there is
/// one that the state does not tell of yet.
pub fn unmake(store: &Store, id: &str, init: Option<InitProcess>) -> Result<()> {
    let entry = store.find(id)?;
    let Some(mut state) = entry.load()? else { return forget_claim(entry) };
    state.init = state.init.or(init);
    kill(&state)?;
    forget(entry, &state)
}

/// Removes what a ckrun has left that was killed before it wrote a state.
pub fn forget_claim(entry: Entry) -> Result<()> {
    launch::part(entry.dir())?;
    entry.remove()
}

/// Kills the init and waits until it is gone. In a pid namespace of its own everything else dies with it
/// (pid_namespaces(7)); what shares the host's is killed with the cgroup.
pub fn kill(state: &State) -> Result<()> {
    let Some(init) = state.process() else { return Ok(()) };
    init.signal(Signal::SIGKILL)?;
    // On cgroup v1 a frozen process does not even die.
    state.cgroups.thaw()?;
    state.cgroups.thaw_to_die();
    init.wait(PATIENCE)?;
    Ok(())
}

/// Whether the container's init ends within this time, by itself.
pub fn ends_within(state: &State, limit: Duration) -> Result<bool> {
    state.process().map_or(Ok(true), |init| Ok(init.wait(limit)?))
}
