//! The cgroups of real processes, on whatever hierarchies this machine has. Each test works below a cgroup of its own.

mod layouts;

use super::*;
use oci_spec::runtime::LinuxResources;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A place of this test alone, removed at the end.
pub(super) struct Scratch {
    parent: String,
    pub(super) cgroups: Cgroups,
}

impl Scratch {
    /// Plans, and makes nothing.
    pub(super) fn plan() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = format!("ckrun-test-{}-{}", Pid::this(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cgroups = Cgroups::plan(&request(Path::new(&format!("/{parent}/leaf")))).unwrap();
        Scratch { parent, cgroups }
    }

    pub(super) fn new() -> Scratch {
        let mut scratch = Self::plan();
        scratch.cgroups.create().unwrap();
        scratch
    }

    /// Only those directories that `keep` keeps: what a machine with fewer hierarchies would have.
    pub(super) fn only(mut self, keep: impl Fn(&Dir) -> bool) -> Scratch {
        let (stay, go): (Vec<_>, Vec<_>) = self.cgroups.dirs.drain(..).partition(keep);
        for dir in go {
            // What was not kept is removed at once, while it is empty.
            let _ = std::fs::remove_dir(&dir.path);
            let _ = std::fs::remove_dir(dir.path.parent().unwrap());
        }
        self.cgroups.dirs = stay;
        self
    }

    pub(super) fn apply(&self, json: &str) -> Result<()> {
        self.cgroups.apply(&serde_json::from_str::<LinuxResources>(json).unwrap())
    }

    pub(super) fn read(&self, controller: &str, file: &str) -> String {
        let dir = self.cgroups.v1(controller).or(self.cgroups.v2()).unwrap();
        std::fs::read_to_string(dir.path.join(file)).unwrap().trim_end().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = self.cgroups.remove();
        for dir in &self.cgroups.dirs {
            assert!(dir.path.to_str().unwrap().contains(&self.parent));
            let _ = std::fs::remove_dir(&dir.path);
            let _ = std::fs::remove_dir(dir.path.parent().unwrap());
        }
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

pub(super) fn request(path: &Path) -> Request<'_> {
    Request { id: "test", path: Some(path), systemd: false, rootless: false, annotations: None }
}

/// A shell that does what it is told, one command at a time.
pub(super) struct Shell(Child, BufReader<std::process::ChildStdout>);

impl Shell {
    pub(super) fn new() -> Shell {
        let mut command = Command::new("sh");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Shell(child, output)
    }

    pub(super) fn in_cgroups(cgroups: &Cgroups) -> Shell {
        let mut shell = Self::new();
        cgroups.join(shell.pid(), false).unwrap();
        let v1 = cgroups.dirs.iter().filter(|dir| !dir.is_v2()).map(|dir| dir.path.join("tasks"));
        let enter: String = v1.map(|tasks| format!("echo 0 >{} && ", tasks.display())).collect();
        assert_eq!(shell.ask(&format!("{enter}echo in")), "in");
        shell
    }

    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    /// Tells the shell something, without waiting.
    pub(super) fn tell(&mut self, command: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    /// Runs a command whose output is a line.
    pub(super) fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Whether a command succeeds.
    pub(super) fn can(&mut self, command: &str) -> bool {
        self.ask(&format!("if {command}; then echo yes; else echo no; fi")) == "yes"
    }

    /// The exit status, once it has ended.
    pub(super) fn status(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }

    /// The signal it died of.
    pub(super) fn died_of(&mut self) -> Option<i32> {
        std::os::unix::process::ExitStatusExt::signal(&self.0.wait().unwrap())
    }

    pub(super) fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn refused<T: std::fmt::Debug>(result: Result<T>, field: &str) -> String {
    let text = result.unwrap_err().to_string();
    assert!(text.starts_with(&format!("{field}: ")), "{text}");
    text
}

#[test]
fn our_own_cgroup_and_everything_above_it_are_refused() {
    refused(Cgroups::plan(&request(Path::new("/"))), "linux.cgroupsPath");
    for hierarchy in layout::detect().unwrap() {
        let Some(own) = &hierarchy.own else { continue };
        let name = Path::new("/").join(own.strip_prefix(&hierarchy.mount).unwrap());
        for path in name.ancestors() {
            refused(Cgroups::plan(&request(path)), "linux.cgroupsPath");
            refused(Cgroups::plan(&request(&path.join("x/../"))), "linux.cgroupsPath");
        }
    }
}

#[test]
fn the_leaf_is_made_everywhere_and_only_the_leaf_is_removed() {
    let scratch = Scratch::new();
    assert!(!scratch.cgroups.is_empty());
    let (paths, parents): (Vec<_>, Vec<_>) =
        scratch.cgroups.dirs.iter().map(|d| (d.path.clone(), d.path.parent().unwrap().to_owned())).unzip();
    assert!(paths.iter().all(|p| p.join("cgroup.procs").exists()));
    scratch.cgroups.remove().unwrap();
    assert!(paths.iter().all(|p| !p.exists()));
    assert!(parents.iter().all(|p| p.exists()));
    scratch.cgroups.remove().unwrap();
}

#[test]
fn a_saved_plan_is_enough_to_remove_what_was_made_later() {
    let mut scratch = Scratch::plan();
    let saved = serde_json::to_string(&scratch.cgroups).unwrap();
    scratch.cgroups.create().unwrap();
    let mut shell = Shell::in_cgroups(&scratch.cgroups);
    serde_json::from_str::<Cgroups>(&saved).unwrap().remove().unwrap();
    assert_eq!(shell.died_of(), Some(libc::SIGKILL));
    assert!(scratch.cgroups.dirs.iter().all(|d| !d.path.exists()));
}

#[test]
fn what_existed_before_is_used_but_never_killed_nor_removed() {
    let first = Scratch::new();
    let path = format!("/{}/leaf", first.parent);
    let mut second = Cgroups::plan(&request(Path::new(&path))).unwrap();
    second.create().unwrap();
    let mut shell = Shell::in_cgroups(&second);
    assert_eq!(second.pids().unwrap(), [shell.pid()]);
    refused(second.kill_all(libc::SIGKILL), "linux.cgroupsPath");
    second.remove().unwrap();
    assert!(shell.lives());
    assert!(first.cgroups.dirs.iter().all(|d| d.path.exists()));
    // Its processes keep others out.
    refused(Cgroups::plan(&request(Path::new(&path))), "linux.cgroupsPath");
    refused(Cgroups::plan(&request(Path::new(&format!("/{}", first.parent)))), "linux.cgroupsPath");
}

#[test]
fn a_place_taken_since_the_plan_is_not_ours() {
    let mut first = Scratch::plan();
    let mut second = first.cgroups.clone();
    first.cgroups.create().unwrap();
    let error = second.create().unwrap_err().to_string();
    assert!(error.starts_with("make cgroup /"), "{error}");
    assert!(second.dirs[0].existed);
}

#[test]
fn a_process_is_moved_into_every_hierarchy() {
    let scratch = Scratch::new();
    let shell = Shell::in_cgroups(&scratch.cgroups);
    let members = std::fs::read_to_string(format!("/proc/{}/cgroup", shell.pid())).unwrap();
    for dir in &scratch.cgroups.dirs {
        let line = members.lines().find(|l| l.split(':').nth(1) == Some(&dir.hierarchy.controllers)).unwrap();
        assert!(line.ends_with(&format!("/{}/leaf", scratch.parent)), "{line}");
    }
    assert_eq!(scratch.cgroups.pids().unwrap(), [shell.pid()]);
}

#[test]
fn removal_kills_everybody_in_it_and_below() {
    for v2 in [true, false] {
        let scratch = Scratch::new().only(|dir| dir.is_v2() == v2);
        let Some(tree) = scratch.cgroups.tree() else { continue };
        let below = tree.path.join("sub/subsub");
        std::fs::create_dir_all(&below).unwrap();
        let mut shell = Shell::in_cgroups(&scratch.cgroups);
        shell.ask("trap '' TERM HUP INT; cat /dev/zero >/dev/null & echo started");
        let mut deep = Shell::new();
        std::fs::write(below.join("cgroup.procs"), deep.pid().to_string()).unwrap();
        assert_eq!(scratch.cgroups.pids().unwrap().len(), 3);
        scratch.cgroups.remove().unwrap();
        assert_eq!(shell.died_of(), Some(libc::SIGKILL));
        assert_eq!(deep.died_of(), Some(libc::SIGKILL));
        assert!(scratch.cgroups.dirs.iter().all(|dir| !dir.path.exists()));
    }
}

#[test]
fn killing_stops_a_process_that_forks_all_the_time() {
    for v2 in [true, false] {
        let scratch = Scratch::new().only(|dir| dir.is_v2() == v2);
        if scratch.cgroups.is_empty() {
            continue;
        }
        scratch.apply(r#"{"pids":{"limit":200}}"#).ok();
        let mut shell = Shell::in_cgroups(&scratch.cgroups);
        shell.ask("f() { while :; do (:) & done; }; f & f & echo ready");
        scratch.cgroups.kill_all(libc::SIGKILL).unwrap();
        assert_eq!(shell.died_of(), Some(libc::SIGKILL));
        assert!(scratch.cgroups.pids().unwrap().is_empty());
    }
}

#[test]
fn another_signal_reaches_everybody_once() {
    let scratch = Scratch::new();
    let mut first = Shell::in_cgroups(&scratch.cgroups);
    let mut second = Shell::in_cgroups(&scratch.cgroups);
    for shell in [&mut first, &mut second] {
        shell.ask("trap 'echo got it' USR1; echo ready");
    }
    scratch.cgroups.kill_all(libc::SIGUSR1).unwrap();
    assert!(!scratch.cgroups.frozen().unwrap());
    for shell in [&mut first, &mut second] {
        assert_eq!(shell.ask(""), "got it");
        assert_eq!(shell.ask("echo more"), "more");
    }
}

#[test]
fn frozen_processes_stand_still_and_can_be_thawed_or_killed() {
    for v2 in [true, false] {
        let scratch = Scratch::new().only(|dir| if v2 { dir.is_v2() } else { dir.hierarchy.has("freezer") });
        if scratch.cgroups.freezer().is_none() {
            continue;
        }
        let mut shell = Shell::in_cgroups(&scratch.cgroups);
        assert!(!scratch.cgroups.frozen().unwrap());
        shell.ask("for i in 1 2 3 4 5 6 7 8; do cat /dev/zero >/dev/null & done; echo busy");
        scratch.cgroups.freeze().unwrap();
        assert!(scratch.cgroups.frozen().unwrap());
        // Not only asked for, but done.
        let (file, done) = if v2 { ("cgroup.events", "frozen 1") } else { ("freezer.state", "FROZEN") };
        let state = std::fs::read_to_string(scratch.cgroups.dirs[0].path.join(file)).unwrap();
        assert!(state.contains(done), "{state}");
        shell.tell("echo thawed");
        scratch.cgroups.freeze().unwrap();
        scratch.cgroups.thaw().unwrap();
        assert!(!scratch.cgroups.frozen().unwrap());
        assert_eq!(shell.ask(""), "thawed");
        scratch.cgroups.freeze().unwrap();
        scratch.cgroups.kill_all(libc::SIGKILL).unwrap();
        assert_eq!(shell.died_of(), Some(libc::SIGKILL));
        assert!(scratch.cgroups.pids().unwrap().is_empty());
    }
}

#[test]
fn a_part_that_the_container_froze_itself_dies_too() {
    let scratch = Scratch::new().only(|dir| dir.hierarchy.has("freezer"));
    let Some(dir) = scratch.cgroups.dirs.first() else { return };
    let below = dir.path.join("below");
    std::fs::create_dir(&below).unwrap();
    let mut shell = Shell::new();
    std::fs::write(below.join("cgroup.procs"), shell.pid().to_string()).unwrap();
    std::fs::write(below.join("freezer.state"), "FROZEN").unwrap();
    scratch.cgroups.remove().unwrap();
    assert_eq!(shell.died_of(), Some(libc::SIGKILL));
}

#[test]
fn without_cgroups_nothing_can_be_frozen_and_nothing_is_removed() {
    let none = Cgroups::default();
    none.remove().unwrap();
    none.thaw().unwrap();
    assert!(!none.frozen().unwrap());
    assert!(none.pids().unwrap().is_empty());
    refused(none.freeze(), "linux.cgroupsPath");
    refused(none.kill_all(libc::SIGTERM), "linux.cgroupsPath");
}

#[test]
fn a_process_is_born_in_its_cgroup() {
    use ckrun_virt::sys::{Clone3, Cloned};
    use std::os::fd::AsFd;
    let scratch = Scratch::new();
    let Some(target) = scratch.cgroups.clone_target() else { return };
    let clone = Clone3 { flags: 0, cgroup: Some(target.as_fd()) };
    // SAFETY: the child makes one system call and touches no lock.
    match unsafe { clone.call() }.unwrap() {
        Cloned::Child => loop {
            // SAFETY: pause(2) takes nothing and touches nothing.
            unsafe { libc::pause() };
        },
        Cloned::Parent(pid, _) => {
            scratch.cgroups.join(pid, true).unwrap();
            assert_eq!(scratch.cgroups.pids().unwrap(), [pid]);
            // Where the init is, and where it is not.
            assert!(scratch.cgroups.clone_target_beside(pid).is_some());
            assert!(scratch.cgroups.clone_target_beside(Pid::this()).is_none());
            scratch.cgroups.kill_all(libc::SIGKILL).unwrap();
            nix::sys::wait::waitpid(pid, None).unwrap();
        }
    }
}

#[test]
fn figures_are_those_of_the_processes_in_it() {
    let scratch = Scratch::new();
    let mut shell = Shell::in_cgroups(&scratch.cgroups);
    shell.ask("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done");
    let stats = scratch.cgroups.stats().unwrap();
    assert!(stats.cpu.usage.total > 0);
    if scratch.cgroups.v1("pids").is_some() {
        assert_eq!(stats.pids, stats::Pids { current: 1, limit: 0 });
    }
    if scratch.cgroups.v1("memory").is_some() {
        assert!(stats.memory.usage.limit > 0 && !stats.memory.raw.is_empty());
    }
    if scratch.cgroups.v1("cpuset").is_some() {
        assert!(!stats.cpuset.cpus.is_empty());
    }
    scratch.cgroups.remove().unwrap();
    assert!(scratch.cgroups.stats().unwrap_err().to_string().ends_with("no such file or directory"));
}

#[test]
fn a_delegated_cgroup_is_its_new_owners() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new().only(Dir::is_v2);
    let Some(dir) = scratch.cgroups.dirs.first() else { return };
    scratch.cgroups.delegate(65_534).unwrap();
    let owner = |file: &str| std::fs::metadata(dir.path.join(file)).unwrap().uid();
    assert_eq!(["", "cgroup.procs", "cgroup.subtree_control"].map(owner), [65_534; 3]);
    assert_eq!(owner("cgroup.freeze"), 0);
}
