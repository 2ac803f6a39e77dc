//! ckrun's half of the building of a sandbox: the story of `create` and `run` (and of a restart).

use super::channel::{self, Channel, Note};
use super::init::Init;
use super::intel_rdt::Group;
use super::namespaces::Namespaces;
use super::procfs::Proc;
use super::seccomp::{self, Filter};
use super::wanted::Wanted;
use super::{Options, destroy, hooks, idmap, knock, mounts, netdev, validate, wanted};
use crate::cgroup::{Cgroups, Request, default_device_rules};
use crate::config::{Ask, Bundle};
use crate::error::{Error, Result};
use crate::state::{Entry, InitProcess, OCI_VERSION, State, Store};
use crate::status::Status;
use ckrun_virt::Process;
use ckrun_virt::proc::Stat;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use oci_spec::runtime::{ContainerProcessState, LinuxDeviceCgroup, LinuxNamespaceType as Kind, Mount, Spec};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::SystemTime;

/// When the job starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// As soon as the sandbox stands (`run`).
    AtOnce,
    /// When `ckrun start` says so (`create`).
    OnDemand,
}

/// A sandbox with its init in it.
#[derive(Debug)]
pub struct Built {
    /// The container's directory, still locked.
    pub entry: Entry,
    /// What is known of it.
    pub state: State,
    /// The init, our child.
    pub init: Process,
}

/// Builds the sandbox for `bundle` under the name `id`.
///
/// On success the init runs the job ([`Start::AtOnce`]) or waits for `ckrun start`. On failure no process, mount,
/// cgroup or state is left behind.
///
/// `console` is where the master of the container's terminal goes, if it is to have one.
pub fn build(
    store: &Store,
    id: &str,
    bundle: &Bundle,
    options: &Options,
    start: Start,
    console: Option<OwnedFd>,
) -> Result<Built> {
    validate::check(bundle)?;
    let rootfs = bundle.rootfs()?;
    let namespaces = Namespaces::of(&bundle.spec)?;
    let wanted = wanted::plan(&bundle.spec, &bundle.dir)?;
    let seccomp = bundle.spec.lx().and_then(|l| l.seccomp().as_ref()).map(Filter::compile).transpose()?;
    log::debug!("checked the bundle {}", bundle.dir.display());

    let entry = store.claim(id)?;
    let state = State {
        id: id.into(),
        bundle: bundle.dir.clone(),
        rootfs,
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        annotations: bundle.spec.annotations().clone(),
        owner: geteuid().as_raw(),
        init: None,
        cgroups: Cgroups::default(),
        rdt: None,
        own_keyring: !options.no_new_keyring,
        rootless: options.rootless,
    };
    let mut site = Site { bundle, options, namespaces, seccomp, entry, state, init: None, born_in_v2: false };
    match site.raise(&wanted, console, start) {
        Ok(init) => Ok(Built { entry: site.entry, state: site.state, init }),
        Err(e) => {
            clear(site.entry, &site.state, site.init.as_ref());
            Err(e)
        }
    }
}

impl Built {
    /// Lets others at the container; for a caller that will wait for it.
    pub fn unlock(mut self) -> Built {
        self.entry.unlock();
        self
    }

    /// Takes it all back: something after the building has failed.
    pub fn abandon(self) {
        clear(self.entry, &self.state, Some(&self.init));
    }
}

/// Gives the listener of a seccomp filter, descriptor `number` of `process`, to the agent that the profile names.
pub fn answer_listener(spec: &Spec, state: &State, process: &Process, number: i32) -> Result<()> {
    let listener = seccomp::notify::fetch(process.as_fd(), number)?;
    let profile = spec.lx().and_then(|l| l.seccomp().as_ref());
    let path = profile.and_then(|p| p.listener_path().as_deref()).ok_or_else(|| {
        Error::config("linux.seccomp.listenerPath", "is missing, and the filter has an SCMP_ACT_NOTIFY")
    })?;
    let mut about = ContainerProcessState::default();
    about
        .set_version(OCI_VERSION.into())
        .set_fds(vec![seccomp::notify::FD_NAME.into()])
        .set_pid(process.pid().as_raw())
        .set_metadata(profile.and_then(|p| p.listener_metadata().clone()))
        .set_state(state.for_agents(Status::Created));
    seccomp::notify::send_listener(path, &about, listener.as_fd())
}

/// Everything is denied but what the configuration allows, in its order, and what every container needs.
fn device_rules(configured: &[LinuxDeviceCgroup]) -> Vec<LinuxDeviceCgroup> {
    let mut deny_all = LinuxDeviceCgroup::default();
    deny_all.set_access(Some("rwm".into()));
    std::iter::once(deny_all).chain(configured.iter().cloned()).chain(default_device_rules()).collect()
}

/// After a failure: nothing of the container stays. What can't be removed is only logged, because the reason of the
/// failure is what the user must hear.
fn clear(entry: Entry, state: &State, init: Option<&Process>) {
    if let Some(init) = init {
        if let Err(e) = init.signal(Signal::SIGKILL) {
            log::debug!("{e}");
        }
        let _ = waitpid(init.pid(), None);
    }
    if let Err(e) = destroy::forget(entry, state) {
        log::warn!("{e}");
    }
}

/// A sandbox while it is being built.
struct Site<'a> {
    bundle: &'a Bundle,
    options: &'a Options,
    namespaces: Namespaces,
    seccomp: Option<Filter>,
    entry: Entry,
    state: State,
    init: Option<Process>,
    born_in_v2: bool,
}

impl Site<'_> {
    fn raise(&mut self, wanted: &[Wanted<'_>], console: Option<OwnedFd>, start: Start) -> Result<Process> {
        self.state.cgroups = self.plan_cgroups()?;
        // From here on `delete --force` can clear up after a crash of ours: it knows the cgroups that we may make.
        self.entry.save_spec(&self.bundle.json)?;
        self.entry.save(&self.state)?;
        log::debug!("claimed the id {}", self.state.id);
        self.state.cgroups.create()?;
        log::debug!("made the cgroups");
        let listener = match start {
            Start::OnDemand => Some(knock::listen(&self.entry)?),
            Start::AtOnce => None,
        };
        let (channel, theirs) = channel::pair()?;
        let pid = self.clone_init(wanted, console, listener, (&channel, theirs))?;
        let served = self.serve(&channel, pid, start).and_then(|()| self.watch(&channel, start));
        served.map_err(|e| channel.last_words().unwrap_or(e))?;
        if start == Start::OnDemand {
            self.entry.save(&self.state)?;
            channel.send(&Note::Continue)?;
        }
        self.init.take().ok_or(Error::InitEnded { during: "its making", how: "without a trace".into() })
    }

    fn plan_cgroups(&self) -> Result<Cgroups> {
        if self.options.no_cgroups {
            return Ok(Cgroups::default());
        }
        let spec = &self.bundle.spec;
        Cgroups::plan(&Request {
            id: &self.state.id,
            path: spec.lx().and_then(|l| l.cgroups_path().as_deref()),
            systemd: self.options.systemd_cgroup,
            rootless: self.options.rootless,
            annotations: spec.annotations().as_ref(),
        })
    }

    fn clone_init(
        &mut self,
        wanted: &[Wanted<'_>],
        console: Option<OwnedFd>,
        start: Option<OwnedFd>,
        (ours, channel): (&Channel, Channel),
    ) -> Result<Pid> {
        let spec = &self.bundle.spec;
        // Only the host's root can clone a tree of the host's mount namespace; anybody else's init does it in its own,
        // where it reaches what its maker reaches.
        let own_userns = self.namespaces.has(Kind::User) && geteuid().is_root();
        let early = mounts::open_early(spec, wanted, own_userns)?;
        let proc = Proc::open()?;
        let init = Init {
            spec,
            id: &self.state.id,
            rootfs: self.state.rootfs.clone(),
            namespaces: &self.namespaces,
            mounts: wanted,
            early,
            cgroups: &self.state.cgroups,
            seccomp: self.seccomp.as_ref(),
            console,
            start,
            options: self.options,
            state: &self.state,
            proc: &proc,
            channel,
            joined: false,
        };
        let cgroup = self.state.cgroups.clone_target();
        let born_in_v2 = cgroup.is_some();
        let ours = ours.as_fd().as_raw_fd();
        let process = self.namespaces.spawn(cgroup.as_ref().map(AsFd::as_fd), move || {
            // The copy of ckrun's end that the clone made: as long as it is open, we would not see ckrun's death.
            let _ = nix::unistd::close(ours);
            init.run()
        })?;
        let pid = process.pid();
        log::debug!("cloned the init, process {pid}");
        let started = Stat::of(pid).map_or(0, |s| s.started);
        self.state.init = Some(InitProcess { pid: pid.as_raw(), started });
        self.init = Some(process);
        self.born_in_v2 = born_in_v2;
        Ok(pid)
    }

    /// What the init can't do for itself, since it takes the host's rights or the host's view.
    fn serve(&mut self, channel: &Channel, pid: Pid, start: Start) -> Result<()> {
        let spec = &self.bundle.spec;
        if self.namespaces.makes(Kind::User) {
            idmap::write(spec, pid)?;
            channel.send(&Note::Mapped)?;
        }
        self.limit()?;
        log::debug!("set the limits");
        self.state.cgroups.join(pid, self.born_in_v2)?;
        self.delegate()?;
        log::debug!("moved the init into its cgroups");
        if let Some(wanted) = spec.lx().and_then(|l| l.intel_rdt().as_ref()) {
            let groups = Group::prepare(&self.state.id, wanted)?;
            // Remembered before anything else can fail, or nobody would remove them.
            self.state.rdt = Some(groups.clone());
            groups.join(pid)?;
        }
        netdev::move_in(spec, pid)?;
        // A state with an init in it says that the container is created or runs. Before that a crash of ours ends the
        // init, so that nobody needs its id.
        if start == Start::AtOnce {
            self.entry.save(&self.state)?;
        }
        channel.send(&Note::Joined)
    }

    /// A container that is its own in users and cgroups, and may write its cgroup mount, may divide its cgroup.
    fn delegate(&self) -> Result<()> {
        let spec = &self.bundle.spec;
        let writable = |m: &Mount| !m.options().iter().flatten().any(|o| o == "ro");
        let mounted = spec.mount_list().iter().any(|m| m.typ().as_deref() == Some("cgroup") && writable(m));
        if !mounted || !self.namespaces.makes(Kind::User) || !self.namespaces.makes(Kind::Cgroup) {
            return Ok(());
        }
        let map = spec.lx().and_then(|l| l.uid_mappings().as_deref()).unwrap_or_default();
        match map.iter().find(|m| m.container_id() == 0) {
            Some(root) => self.state.cgroups.delegate(root.host_id()),
            None => Ok(()),
        }
    }

    fn limit(&self) -> Result<()> {
        let resources = self.bundle.spec.resources();
        if let Some(resources) = resources {
            self.state.cgroups.apply(resources)?;
        }
        // Without cgroups by the caller's wish, its own cgroup says which devices there are. Engines write their denial of
        // all devices into config.json even then, so that it can't be taken for a demand.
        if self.options.rootless || self.options.no_cgroups {
            return Ok(());
        }
        let configured = resources.and_then(|r| r.devices().as_deref()).unwrap_or_default();
        self.state.cgroups.apply_devices(&device_rules(configured))
    }

    /// Answers the init until it needs nothing more.
    fn watch(&mut self, channel: &Channel, start: Start) -> Result<()> {
        loop {
            match channel.receive()? {
                Some(Note::Mounted) => {
                    let spec = &self.bundle.spec;
                    hooks::run(spec, "prestart", || self.state.for_hooks(Status::Created))?;
                    hooks::run(spec, "createRuntime", || self.state.for_hooks(Status::Creating))?;
                    channel.send(&Note::Continue)?;
                }
                Some(Note::Listener(number)) => {
                    let init = self
                        .init
                        .as_ref()
                        .ok_or(Error::InitEnded { during: "seccomp", how: "early".into() })?;
                    answer_listener(&self.bundle.spec, &self.state, init, number)?;
                    channel.send(&Note::Continue)?;
                }
                Some(Note::Ready) => return Ok(()),
                Some(Note::Failed(why)) => return Err(Error::Init(why)),
                // The exec has closed the other end: the job runs.
                None if start == Start::AtOnce => return Ok(()),
                None => return Err(Error::InitEnded { during: "create", how: self.how_it_ended() }),
                Some(other) => return Err(Error::Init(format!("the init said {other:?} out of turn"))),
            }
        }
    }

    fn how_it_ended(&self) -> String {
        let pid = self.init.as_ref().map(Process::pid);
        match waitpid(pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT)) {
            Ok(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
            Ok(WaitStatus::Exited(_, code)) => format!("exit status {code}"),
            _ => "without a word".into(),
        }
    }
}
