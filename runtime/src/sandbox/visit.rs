//! A further process in a running container: `ckrun exec`.

use super::channel::{self, Channel, Note};
use super::console::Console;
use super::init::announce_failure;
use super::job::{Inherited, Job, reset_signals};
use super::namespaces::{flag, spawn};
use super::procfs::Proc;
use super::root::Root;
use super::seccomp::Filter;
use super::{keyring, labels, oom, scheduling};
use crate::cgroup::{self, Cgroups};
use crate::config::Ask;
use crate::error::{Error, Result};
use crate::state::State;
use ckrun_virt::sys::Clone3;
use ckrun_virt::{Doing, Process};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Uid, setresgid, setresuid, setsid};
use oci_spec::runtime::{LinuxNamespaceType as Kind, Process as Entry, Spec};
use std::convert::Infallible;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What is to run, and where.
#[derive(Debug)]
pub struct Visit<'a> {
    /// The container's configuration.
    pub spec: &'a Spec,
    /// What is known of the container.
    pub state: &'a State,
    /// The container's init.
    pub init: &'a Process,
    /// The new process.
    pub process: &'a Entry,
    /// Where the master of its terminal goes.
    pub console: Option<OwnedFd>,
    /// Descriptors of the caller that it keeps.
    pub inherited: Inherited,
    /// Cgroups below the container's own to run in, see [`Cgroups::within`].
    pub cgroups: &'a [String],
}

impl Visit<'_> {
    /// Starts the process; it is our child, and its program has been executed when this returns.
    ///
    /// Afterwards ckrun itself is half in the container: what it needs of the host must be open before.
    pub fn start(mut self) -> Result<Process> {
        let seccomp = self.spec.lx().and_then(|l| l.seccomp().as_ref()).map(Filter::compile).transpose()?;
        let (ours, theirs) = channel::pair()?;
        let cgroups = self.state.cgroups.within(self.cgroups)?;
        let doors = Doors::open(self.spec, self.init)?;
        let proc = Proc::open()?;
        doors.before_clone(self.init)?;
        let mut console = self.console.take();
        let mut cgroup_doors = cgroups.doors()?;
        let parents_end = ours.as_fd().as_raw_fd();
        let mut child_main = || {
            // Else we would not see ckrun's death.
            let _ = nix::unistd::close(parents_end);
            let Err(e) =
                self.enter(&doors, &mut cgroup_doors, &proc, &theirs, seccomp.as_ref(), console.take());
            announce_failure(&theirs, &e)
        };
        let mut cgroup = cgroups.clone_target();
        let born_in_v2 = cgroup.is_some();
        let child = match spawn(&clone_into(&cgroup), &mut child_main) {
            // A container that divides its cgroup, as a systemd in it does, leaves no place in the cgroup itself.
            Err(Error::Sys(e)) if e.errno == Errno::EBUSY && self.cgroups.is_empty() => {
                cgroup = cgroups.clone_target_beside(self.init.pid());
                spawn(&clone_into(&cgroup), &mut child_main)
            }
            spawned => spawned,
        }?;
        drop(theirs);
        match self.serve(&ours, &child, &cgroups, born_in_v2) {
            Ok(()) => Ok(child),
            Err(e) => {
                let e = ours.last_words().unwrap_or(e);
                child.signal(Signal::SIGKILL)?;
                let _ = waitpid(child.pid(), None);
                Err(e)
            }
        }
    }

    fn serve(&self, channel: &Channel, child: &Process, cgroups: &Cgroups, born_in_v2: bool) -> Result<()> {
        cgroups.join(child.pid(), born_in_v2)?;
        channel.send(&Note::Enter)?;
        loop {
            match channel.receive()? {
                None => return Ok(()),
                Some(Note::Failed(why)) => return Err(Error::Init(why)),
                Some(Note::Listener(number)) => {
                    super::build::answer_listener(self.spec, self.state, child, number)?;
                    channel.send(&Note::Continue)?;
                }
                Some(other) => {
                    return Err(Error::Init(format!("the new process said {other:?} out of turn")));
                }
            }
        }
    }

    fn enter(
        &self,
        doors: &Doors,
        cgroups: &mut cgroup::Doors,
        proc: &Proc,
        channel: &Channel,
        seccomp: Option<&Filter>,
        console: Option<OwnedFd>,
    ) -> Result<Infallible> {
        prctl::set_pdeathsig(Signal::SIGKILL).doing(|| "ask for a signal at ckrun's death")?;
        reset_signals()?;
        oom::set(self.process, self.state.rootless, proc)?;
        let affinity = self.process.exec_cpu_affinity().as_ref();
        affinity.map_or(Ok(()), scheduling::initial_cpus)?;
        // A cgroup namespace is entered like the others; its root is the init's, not ours.
        channel.expect(&Note::Enter)?;
        cgroups.enter()?;
        doors.enter(self.spec, self.init)?;
        setsid().doing(|| "start a session")?;
        if self.state.own_keyring {
            let join = || keyring::join(&self.state.id, self.spec.namespace(Kind::User).is_some());
            labels::labelling_keys(self.process, proc, join)?;
        }
        if let Some(sink) = console {
            let root = Root::new(File::open("/").doing(|| "open the container's root")?.into());
            let console = Console::open(&root, self.process)?;
            console.send_master(sink.as_fd())?;
            console.take()?;
        }
        let job = Job {
            spec: self.spec,
            proc,
            process: self.process,
            seccomp,
            keep_fds: &self.inherited.fds,
            more_env: &[],
        };
        let prepared = job.prepare()?;
        affinity.map_or(Ok(()), scheduling::final_cpus)?;
        prctl::set_pdeathsig(None).doing(|| "outlive ckrun")?;
        prepared.run(channel)
    }
}

fn clone_into(cgroup: &Option<OwnedFd>) -> Clone3<'_> {
    Clone3 { flags: 0, cgroup: cgroup.as_ref().map(AsFd::as_fd) }
}

/// The namespaces of a container as seen from outside.
struct Doors {
    /// Those to enter after the clone.
    later: CloneFlags,
    /// Those that ckrun must be in when it clones: a pid namespace takes effect for children only, and without the
    /// host's root the user namespace is what gives the right to enter any other.
    before: CloneFlags,
    /// For a container without a mount namespace: its root directory.
    root: Option<File>,
}

impl Doors {
    fn open(spec: &Spec, init: &Process) -> Result<Doors> {
        let mut all = CloneFlags::empty();
        for ns in spec.namespaces() {
            all |= flag(ns.typ());
        }
        let before = all & (flag(Kind::Pid) | flag(Kind::User));
        let root = match all.contains(flag(Kind::Mount)) {
            true => None,
            false => {
                let path = format!("/proc/{}/root", init.pid());
                Some(File::open(&path).doing(|| format!("open {path}"))?)
            }
        };
        Ok(Doors { later: all - before, before, root })
    }

    fn before_clone(&self, init: &Process) -> Result<()> {
        join(init, self.before)
    }

    fn enter(&self, spec: &Spec, init: &Process) -> Result<()> {
        join(init, self.later)?;
        if spec.namespace(Kind::User).is_some() {
            let (root, wheel) = (Uid::from_raw(0), Gid::from_raw(0));
            setresgid(wheel, wheel, wheel).doing(|| "become group 0 of the user namespace")?;
            setresuid(root, root, root).doing(|| "become user 0 of the user namespace")?;
            prctl::set_pdeathsig(Signal::SIGKILL).doing(|| "ask for a signal at ckrun's death")?;
        }
        if let Some(root) = &self.root {
            nix::unistd::fchdir(root).doing(|| "enter the container's root")?;
            nix::unistd::chroot(".").doing(|| "chroot into the container's root")?;
        }
        Ok(())
    }
}

/// One call enters several namespaces of the process that a pidfd holds, all of them or none (setns(2), Linux 5.8).
fn join(init: &Process, namespaces: CloneFlags) -> Result<()> {
    if namespaces.is_empty() {
        return Ok(());
    }
    match setns(init.as_fd(), namespaces) {
        Err(Errno::ESRCH) => Err(Error::Init("the container has ended".into())),
        other => Ok(other.doing(|| "enter the container's namespaces")?),
    }
}
