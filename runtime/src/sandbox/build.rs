//! ckrun's half of the building of a sandbox: the story of `create` and `run` (and of a restart).

use super::channel::{self, Channel, Note};
use super::claim::{At, Claimed};
use super::guardian::Guardian;
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
use crate::state::{Entry, InitProcess, OCI_VERSION, State};
use crate::status::Status;
use ckrun_virt::Process;
use ckrun_virt::cgroups::Cgroups as JobsCgroups;
use ckrun_virt::clocks::Offsets;
use ckrun_virt::proc::Stat;
use ckrun_virt::restore::Baggage;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use oci_spec::runtime::{ContainerProcessState, LinuxDeviceCgroup, LinuxNamespaceType as Kind, Mount, Spec};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::SystemTime;

/// When the job starts.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// As soon as the sandbox stands (`run`).
    AtOnce,
    /// When `ckrun start` says so (`create`).
    OnDemand,
    /// It does not start: it is put into the sandbox as it was (`restore`).
    Restart(Restart<'a>),
}

/// What the sandbox of a job that is restored needs of its image.
#[derive(Debug, Clone, Copy)]
pub struct Restart<'a> {
    /// What is put into it.
    pub baggage: &'a Baggage,
    /// The clocks that it needs, if not the host's.
    pub clocks: Option<Offsets>,
    /// What is made below the container's own cgroups.
    pub cgroups: Option<&'a JobsCgroups>,
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
    /// The listener of the filter in [`Options::asks`].
    pub asks: Option<OwnedFd>,
    /// What only a sandbox for a restart has.
    pub parked: Option<Parked>,
}

/// An init that waits to be made the first process of a restored job.
#[derive(Debug)]
pub struct Parked {
    /// The way in for descriptors.
    pub hatch: OwnedFd,
    /// Who clears up if ckrun is killed.
    pub guardian: Guardian,
}

/// Builds the sandbox for `bundle`.
///
/// On success the init runs the job ([`Start::AtOnce`]), waits for `ckrun start`, or is [`Parked`]; in the last case the
/// state does not tell of it before [`Built::restored`]. On failure no process, mount, cgroup or state is left behind.
///
/// `console` is where the master of the container's terminal goes, if it is to have one.
pub fn build(
    at: At<'_>,
    bundle: &Bundle,
    options: &Options,
    start: Start<'_>,
    console: Option<OwnedFd>,
) -> Result<Built> {
    validate::check(bundle)?;
    let rootfs = bundle.rootfs()?;
    let mut namespaces = Namespaces::of(&bundle.spec)?;
    if let Start::Restart(Restart { clocks: Some(offsets), .. }) = start {
        namespaces.continue_clocks(offsets)?;
    }
    let wanted = wanted::plan(&bundle.spec, &bundle.dir)?;
    // Restored tasks have the filters that they had.
    let profile = bundle.spec.lx().and_then(|l| l.seccomp().as_ref()).filter(|_| start.runs_a_command());
    let seccomp = profile.map(Filter::compile).transpose()?;
    if options.asks.is_some() && seccomp.as_ref().is_some_and(Filter::notifies) {
        // The kernel gives a process one listener.
        let why = "SCMP_ACT_NOTIFY can't be had together with sockets or ioctls that are answered for";
        return Err(Error::config("linux.seccomp.syscalls", why));
    }
    log::debug!("checked the bundle {}", bundle.dir.display());

    let Claimed { entry, guardian, supervised, keeps } = at.claim(!start.runs_a_command())?;
    let (maps, vendors) = options.maps.devices();
    let state = State {
        id: entry.id.clone(),
        bundle: bundle.dir.clone(),
        rootfs,
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        annotations: bundle.spec.annotations().clone(),
        owner: geteuid().as_raw(),
        init: None,
        cgroups: Cgroups::default(),
        rdt: None,
        maps: maps.iter().map(|rule| (rule.from.clone(), rule.to.clone())).collect(),
        vendors,
        sockets: options.maps.sockets.iter().map(|(name, peer)| (name.clone(), peer.name())).collect(),
        supervised,
        own_keyring: !options.no_new_keyring,
        rootless: options.rootless,
    };
    let mut site = Site {
        bundle,
        options,
        namespaces,
        seccomp,
        entry,
        state,
        init: None,
        asks: None,
        born_in_v2: false,
        guardian,
        keeps,
    };
    match site.raise(&wanted, console, start) {
        Ok((init, parked)) => {
            Ok(Built { entry: site.entry, state: site.state, init, asks: site.asks, parked })
        }
        Err(e) => {
            destroy::undo(site.entry, &site.state, site.init.as_ref());
            Err(e)
        }
    }
}

impl Start<'_> {
    /// The init ends in an exec of the configuration's command.
    fn runs_a_command(&self) -> bool {
        !matches!(self, Start::Restart(_))
    }
}

impl Built {
    /// Lets others at the container; for a caller that will wait for it.
    pub fn unlock(mut self) -> Built {
        self.entry.unlock();
        self
    }

    /// The parked init is the job but for the start: from now on the state tells of it.
    ///
    /// # Errors
    /// The state can't be written.
    pub fn restored(&self) -> Result<()> {
        self.entry.save(&self.state)
    }

    /// Takes it all back: something after the building has failed.
    pub fn abandon(self) {
        destroy::undo(self.entry, &self.state, Some(&self.init));
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
    guardian: Option<Guardian>,
    asks: Option<OwnedFd>,
    keeps: Option<RawFd>,
}

impl Site<'_> {
    fn raise(
        &mut self,
        wanted: &[Wanted<'_>],
        console: Option<OwnedFd>,
        start: Start<'_>,
    ) -> Result<(Process, Option<Parked>)> {
        self.state.cgroups = self.plan_cgroups()?;
        // From here on `delete --force` can clear up after a crash of ours: it knows the cgroups that we may make.
        self.entry.save_spec(&self.bundle.json)?;
        self.entry.save(&self.state)?;
        log::debug!("claimed the id {}", self.state.id);
        self.state.cgroups.create()?;
        log::debug!("made the cgroups");
        let listener = match start {
            Start::OnDemand => Some(knock::listen(&self.entry)?),
            Start::AtOnce | Start::Restart(_) => None,
        };
        let (channel, theirs) = channel::pair()?;
        let pid = self.clone_init(wanted, console, start, listener, (&channel, theirs))?;
        let served = self.serve(&channel, pid, start).and_then(|()| self.watch(&channel, start));
        served.map_err(|e| channel.last_words().unwrap_or(e))?;
        if matches!(start, Start::OnDemand) {
            self.entry.save(&self.state)?;
            channel.send(&Note::Continue)?;
        }
        let parked = self.guardian.take().map(|guardian| Parked { hatch: channel.into(), guardian });
        let lost = Error::InitEnded { during: "its making", how: "without a trace".into() };
        Ok((self.init.take().ok_or(lost)?, parked))
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
        start: Start<'_>,
        listener: Option<OwnedFd>,
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
            doors: self.state.cgroups.doors()?,
            seccomp: self.seccomp.as_ref(),
            console,
            start: listener,
            baggage: match start {
                Start::Restart(restart) => Some(restart.baggage),
                _ => None,
            },
            options: self.options,
            state: &self.state,
            proc: &proc,
            channel,
            joined: false,
        };
        let cgroup = self.state.cgroups.clone_target();
        let born_in_v2 = cgroup.is_some();
        let [ours, lock] = [Some(ours.as_fd()), self.entry.held()].map(|fd| fd.map(|fd| fd.as_raw_fd()));
        let not_its_own = [ours, lock, self.keeps];
        let process = self.namespaces.spawn(cgroup.as_ref().map(AsFd::as_fd), move || {
            // The copies that the clone made of ckrun's end, because of which we would not see ckrun's death, and of the
            // container's lock, which an init that waits for `ckrun start` would hold after it.
            for copy in not_its_own.into_iter().flatten() {
                let _ = nix::unistd::close(copy);
            }
            init.run()
        })?;
        let pid = process.pid();
        log::debug!("cloned the init, process {pid}");
        let started = Stat::of(pid).map_or(0, |s| s.started);
        let init = InitProcess { pid: pid.as_raw(), started };
        self.state.init = Some(init);
        self.init = Some(process);
        self.guardian.as_ref().map_or(Ok(()), |guardian| guardian.tell(init))?;
        self.born_in_v2 = born_in_v2;
        Ok(pid)
    }

    /// What the init can't do for itself, since it takes the host's rights or the host's view.
    fn serve(&mut self, channel: &Channel, pid: Pid, start: Start<'_>) -> Result<()> {
        let spec = &self.bundle.spec;
        if self.namespaces.makes(Kind::User) {
            idmap::write(spec, pid)?;
            channel.send(&Note::Mapped)?;
        }
        self.limit()?;
        log::debug!("set the limits");
        self.state.cgroups.join(pid, self.born_in_v2)?;
        self.delegate()?;
        if let Start::Restart(Restart { cgroups: Some(below), .. }) = start {
            below.build(&self.state.cgroups.homes(), pid)?;
        }
        log::debug!("the cgroups are ready");
        if let Some(wanted) = spec.lx().and_then(|l| l.intel_rdt().as_ref()) {
            let groups = Group::prepare(&self.state.id, wanted)?;
            // Remembered before anything else can fail, or nobody would remove them.
            self.state.rdt = Some(groups.clone());
            groups.join(pid)?;
        }
        netdev::move_in(spec, pid)?;
        // A state with an init in it says that the container is created or runs. Before that a crash of ours ends the
        // init, so that nobody needs its id.
        if matches!(start, Start::AtOnce) {
            self.entry.save(&self.state)?;
        }
        channel.send(&Note::Enter)
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
    fn watch(&mut self, channel: &Channel, start: Start<'_>) -> Result<()> {
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
                Some(Note::Asks(number)) => {
                    let early = Error::InitEnded { during: "seccomp", how: "early".into() };
                    let init = self.init.as_ref().ok_or(early)?;
                    self.asks = Some(seccomp::notify::fetch(init.as_fd(), number)?);
                    channel.send(&Note::Continue)?;
                }
                Some(Note::Ready) => return Ok(()),
                Some(Note::Failed(why)) => return Err(Error::Init(why)),
                // The exec has closed the other end: the job runs.
                None if matches!(start, Start::AtOnce) => return Ok(()),
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
