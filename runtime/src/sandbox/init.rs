//! The container's first process, from the clone to the job's first instruction.
//!
//! It runs on a copy of ckrun's memory, inside the new namespaces. What it does is in `Init::build`, from top to
//! bottom; each step has a room of its own. Nothing here is specific to running a program: a restart builds its sandbox
//! by the same steps and only replaces the last one.

use super::channel::{self, Channel, Note};
use super::console::Console;
use super::job::{Job, reset_signals};
use super::mounts::Mounts;
use super::namespaces::{Namespaces, spawn};
use super::procfs::Proc;
use super::root::{Root, clean};
use super::seccomp::Filter;
use super::wanted::Wanted;
use super::{Options, devices, hooks, identity, keyring, labels, netdev, oom, park, pivot, protect, sysctl};
use crate::cgroup::{Cgroups, Doors};
use crate::config::Ask;
use crate::error::{Error, Result};
use crate::state::{InitProcess, State};
use crate::status::Status;
use ckrun_virt::Doing;
use ckrun_virt::error::text;
use ckrun_virt::restore::{self, Baggage};
use ckrun_virt::sys::Clone3;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{SockFlag, accept4};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Uid, sethostname, setresgid, setresuid, setsid};
use oci_spec::runtime::{LinuxNamespaceType as Kind, Process, Spec};
use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// All that the init needs; ckrun prepares it before the clone.
#[derive(Debug)]
pub struct Init<'a> {
    /// config.json.
    pub spec: &'a Spec,
    /// The container's id.
    pub id: &'a str,
    /// The root file system on the host.
    pub rootfs: PathBuf,
    /// Namespaces to be in.
    pub namespaces: &'a Namespaces,
    /// Mounts to make.
    pub mounts: &'a [Wanted<'a>],
    /// Trees for some of them, see [`super::mounts::open_early`].
    pub early: Vec<Option<OwnedFd>>,
    /// Where the container's cgroups are.
    pub cgroups: &'a Cgroups,
    /// The ways into those that it enters by itself.
    pub doors: Doors,
    /// The compiled seccomp filter.
    pub seccomp: Option<&'a Filter>,
    /// Where the master of the container's terminal goes.
    pub console: Option<OwnedFd>,
    /// The socket on which `ckrun start` will knock; without one, the job starts at once.
    pub start: Option<OwnedFd>,
    /// What the image holds for us, when the job is not to be started but to be restored.
    pub baggage: Option<&'a Baggage>,
    /// The command line's wishes.
    pub options: &'a Options,
    /// What is known of the container.
    pub state: &'a State,
    /// The host's procfs.
    pub proc: &'a Proc,
    /// Our end of the channel to ckrun.
    pub channel: Channel,
    /// We are in our cgroups.
    pub joined: bool,
}

impl<'a> Init<'a> {
    /// Becomes the job, or tells ckrun why not. The answer is the exit status of the failed process.
    pub fn run(mut self) -> i32 {
        let Err(e) = self.build();
        announce_failure(&self.channel, &e)
    }

    fn build(&mut self) -> Result<Infallible> {
        let process = self.spec.process().as_ref();
        prctl::set_pdeathsig(Signal::SIGKILL).doing(|| "ask for a signal at ckrun's death")?;
        reset_signals()?;
        if let Some(process) = process {
            oom::set(process, self.options.rootless, self.proc)?;
        }
        self.enter_namespaces()?;
        log::debug!("init: in its namespaces");
        setsid().doing(|| "start a session")?;
        umask(Mode::empty());
        if !self.options.no_new_keyring {
            let join = || keyring::join(self.id, self.namespaces.has(Kind::User));
            process.map_or_else(join, |process| labels::labelling_keys(process, self.proc, join))?;
        }
        if self.namespaces.makes(Kind::Network) {
            netdev::loopback_up()?;
        }
        self.name_host()?;
        sysctl::apply(self.spec, self.proc)?;
        if self.namespaces.has(Kind::Mount) {
            self.furnish()?;
        } else {
            self.run_create_container()?;
            pivot::change_root(&self.rootfs)?;
        }
        log::debug!("init: in its root");
        self.join_cgroups()?;
        match self.baggage {
            Some(baggage) => self.await_restore(baggage),
            None => self.become_job(),
        }
    }

    fn enter_namespaces(&mut self) -> Result<()> {
        if self.namespaces.makes(Kind::User) {
            self.channel.expect(&Note::Mapped)?;
        }
        // While we still are the owner of our /proc/self, which the next change of ids ends.
        self.namespaces.make_time()?;
        if self.namespaces.has(Kind::User) {
            // The ids of the new user namespace's root; files made from now on are its.
            let (root, wheel) = (Uid::from_raw(0), Gid::from_raw(0));
            setresgid(wheel, wheel, wheel)
                .doing(|| "become group 0 of the user namespace (linux.gidMappings)")?;
            setresuid(root, root, root)
                .doing(|| "become user 0 of the user namespace (linux.uidMappings)")?;
            // A change of credentials clears the parent-death signal (prctl(2)).
            prctl::set_pdeathsig(Signal::SIGKILL).doing(|| "ask for a signal at ckrun's death")?;
        }
        self.namespaces.enter_rest()
    }

    fn name_host(&self) -> Result<()> {
        if let Some(name) = self.spec.hostname() {
            sethostname(name).map_err(|e| Error::config("hostname", text(e)))?;
        }
        if let Some(name) = self.spec.domainname() {
            // SAFETY: the pointer and the length are those of one string, which lives through the call.
            let answer = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
            Errno::result(answer).map_err(|e| Error::config("domainname", text(e)))?;
        }
        Ok(())
    }

    /// Builds the file system tree and makes it the root.
    fn furnish(&mut self) -> Result<()> {
        let root = pivot::prepare(self.spec, &self.rootfs)?;
        let mut mounts = Mounts {
            root: &root,
            spec: self.spec,
            cgroups: self.cgroups,
            early: std::mem::take(&mut self.early),
        };
        for (index, wanted) in self.mounts.iter().enumerate() {
            if matches!(wanted.kind, "cgroup" | "cgroup2") {
                self.join_cgroups()?;
            }
            mounts.make(index, wanted)?;
        }
        log::debug!("init: mounted");
        if devices::furnished(self.spec) {
            devices::make(&root, self.spec, self.namespaces.has(Kind::User))?;
        }
        make_cwd(&root, self.spec)?;
        log::debug!("init: furnished");
        let console = self.open_console(&root)?;
        self.run_hooks_before_pivot()?;
        for wanted in self.mounts.iter().filter(|m| m.late_read_only()) {
            protect::read_only_mount(&root, &wanted.destination)?;
        }
        protect::paths(&root, self.spec)?;
        if self.spec.root().as_ref().and_then(|r| r.readonly()).unwrap_or(false) {
            protect::read_only_mount(&root, Path::new("/"))?;
        }
        if self.options.no_pivot {
            pivot::move_over(&root, self.spec)?;
        } else {
            pivot::pivot(&root, self.spec)?;
        }
        console.map_or(Ok(()), Console::take)
    }

    fn open_console(&mut self, root: &Root) -> Result<Option<Console>> {
        let (Some(sink), Some(process)) = (self.console.take(), self.spec.process()) else { return Ok(None) };
        let console = Console::open(root, process)?;
        console.bind(root)?;
        console.send_master(sink.as_fd())?;
        Ok(Some(console))
    }

    fn run_hooks_before_pivot(&mut self) -> Result<()> {
        let by_ckrun = ["prestart", "createRuntime"];
        if by_ckrun.iter().any(|kind| !self.spec.hook_list(kind).is_empty()) {
            self.join_cgroups()?;
            self.channel.send(&Note::Mounted)?;
            self.channel.expect(&Note::Continue)?;
        }
        self.run_create_container()
    }

    fn run_create_container(&self) -> Result<()> {
        if self.spec.hook_list("createContainer").is_empty() {
            return Ok(());
        }
        let state = self.hook_state(Status::Creating)?;
        hooks::run(self.spec, "createContainer", || state)
    }

    /// The state for hooks. ckrun could not know our id when it prepared it.
    fn hook_state(&self, status: Status) -> Result<String> {
        let init = InitProcess { pid: self.proc.own_pid()?, started: 0 };
        Ok(State { init: Some(init), ..self.state.clone() }.for_hooks(status))
    }

    /// Goes into our cgroups when they limit what they are to limit; only then may a cgroup namespace be made, whose root is
    /// where its maker is.
    fn join_cgroups(&mut self) -> Result<()> {
        if self.joined {
            return Ok(());
        }
        self.channel.expect(&Note::Enter)?;
        self.doors.enter()?;
        self.joined = true;
        if self.namespaces.makes(Kind::Cgroup) {
            unshare(CloneFlags::CLONE_NEWCGROUP).doing(|| "unshare the cgroup namespace")?;
        }
        Ok(())
    }

    fn job<'b>(&self, process: &'b Process, more_env: &'b [String]) -> Job<'b>
    where
        'a: 'b,
    {
        Job {
            spec: self.spec,
            process,
            proc: self.proc,
            seccomp: self.seccomp,
            keep_fds: &self.options.inherited.fds,
            more_env,
        }
    }

    fn become_job(&mut self) -> Result<Infallible> {
        let Some(process) = self.spec.process() else {
            // The runtime-spec lets a container be created, though not started, without a process.
            self.wait_for_start()?;
            return Err(Error::config("process", "is missing: there is nothing to start"));
        };
        self.ask()?;
        let more_env = self.options.inherited.env();
        let mut prepared = self.job(process, &more_env).prepare()?;
        log::debug!("init: is the job but for the exec");
        prepared.introduce(&self.channel)?;
        self.wait_for_start()?;
        if !self.spec.hook_list("startContainer").is_empty() {
            let state = self.hook_state(Status::Created)?;
            hooks::run_in_job(self.spec, process, || state)?;
        }
        prepared.run(&self.channel)
    }

    /// The other end of this story: the job's own first process takes over from here. Who it is, what it may do and what
    /// confines it is in the image.
    fn await_restore(&mut self, baggage: &Baggage) -> Result<Infallible> {
        let new = |m: &&Wanted<'_>| m.kind == "tmpfs" && !m.options.bind && self.namespaces.has(Kind::Mount);
        let namespaces =
            restore::inside(baggage, self.mounts.iter().filter(new).map(|m| m.destination.as_path()))?;
        if let Some(process) = self.spec.process() {
            identity::own_streams(process.user())?;
            self.run_start_container(process)?;
        }
        // After the hooks: nobody answers yet.
        self.ask()?;
        // Who turns this process into the job decides by whose death that dies. Until then the channel tells of ckrun's.
        prctl::set_pdeathsig(None).doing(|| "outlive ckrun")?;
        log::debug!("init: waits to be made the job");
        park::park(&self.channel, &namespaces)
    }

    /// From now on some system calls of this process, and of all that come from it, are answered by the supervisor. It is the
    /// first of the job's filters, and a restart loads it anew.
    fn ask(&self) -> Result<()> {
        let Some(filter) = &self.options.asks else { return Ok(()) };
        if let Some(listener) = filter.load()? {
            self.channel.send(&Note::Asks(listener.as_raw_fd()))?;
            self.channel.expect(&Note::Continue)?;
        }
        Ok(())
    }

    /// The startContainer hooks of a restart. They have the rights of the job, of which this process must have more.
    fn run_start_container(&self, process: &Process) -> Result<()> {
        if self.spec.hook_list("startContainer").is_empty() {
            return Ok(());
        }
        let state = self.hook_state(Status::Created)?;
        let (ours, theirs) = channel::pair()?;
        let hooks = spawn(&Clone3::default(), || {
            let prepared = self.job(process, &[]).prepare();
            let done = prepared.and_then(|_| hooks::run_in_job(self.spec, process, || state));
            done.map_or_else(|e| announce_failure(&theirs, &e), |()| 0)
        })?;
        drop(theirs);
        let said = ours.receive()?;
        match (said, waitpid(hooks.pid(), None).doing(|| "wait for the startContainer hooks")?) {
            (None, WaitStatus::Exited(_, 0)) => Ok(()),
            (Some(Note::Failed(why)), _) => Err(Error::Init(why)),
            (_, end) => Err(Error::Init(format!("the startContainer hooks ended without a word: {end:?}"))),
        }
    }

    /// `ckrun create` ends here, and the next word comes from `ckrun start`.
    fn wait_for_start(&mut self) -> Result<()> {
        prctl::set_pdeathsig(None).doing(|| "outlive ckrun")?;
        let Some(listener) = self.start.take() else { return Ok(()) };
        self.channel.send(&Note::Ready)?;
        // Once ckrun has remembered us it may go; if it goes before, nobody would know of us.
        self.channel.expect(&Note::Continue)?;
        let caller = loop {
            match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                Err(Errno::EINTR) => {}
                other => break other.doing(|| "wait for ckrun start")?,
            }
        };
        // SAFETY: accept4 has just made this descriptor for us alone.
        self.channel = Channel::from(unsafe { OwnedFd::from_raw_fd(caller) });
        Ok(())
    }
}

/// Tells ckrun why this process gives up; the answer is its exit status.
pub fn announce_failure(channel: &Channel, e: &Error) -> i32 {
    // When ckrun is gone too there is nobody left to tell.
    let _ = channel.send(&Note::Failed(e.to_string()));
    1
}

/// The working directory of the process is made when the image lacks it, as users of other runtimes expect.
fn make_cwd(root: &Root, spec: &Spec) -> Result<()> {
    if let Some(process) = spec.process() {
        root.make_dir(&clean(process.cwd()), super::root::Links::Follow)
            .map_err(|e| Error::config("process.cwd", e.to_string()))?;
    }
    Ok(())
}
