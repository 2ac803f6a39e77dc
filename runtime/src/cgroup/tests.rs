//! The cgroups of real processes, on whatever hierarchies this machine has. Each test works below a cgroup of its own.

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
        let shell = Self::new();
        cgroups.join(shell.pid(), false).unwrap();
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
        let scratch = Scratch::new().only(|dir| dir.is_v2() == v2);
        if scratch.cgroups.freezer().is_none() {
            continue;
        }
        let mut shell = Shell::in_cgroups(&scratch.cgroups);
        assert!(!scratch.cgroups.frozen().unwrap());
        scratch.cgroups.freeze().unwrap();
        assert!(scratch.cgroups.frozen().unwrap());
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

/// Runs one test of this file again in a mount namespace of its own, after `script`.
fn in_layout(script: &str, test: &str) {
    let exe = std::env::current_exe().unwrap();
    let run = format!("{script} && exec \"$0\" --exact cgroup::tests::{test} --test-threads 1");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", &run]).arg(exe).env(LAYOUT, "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

const LAYOUT: &str = "CKRUN_TEST_LAYOUT";

/// What a container goes through, on any layout.
fn a_life() {
    let mut scratch = Scratch::plan();
    scratch.cgroups.create().unwrap();
    let mut shell = Shell::in_cgroups(&scratch.cgroups);
    assert_eq!(scratch.cgroups.pids().unwrap(), [shell.pid()]);
    scratch.cgroups.apply_devices(&default_device_rules()).unwrap();
    assert!(shell.can("(: <>/dev/null)"));
    scratch.cgroups.freeze().unwrap();
    assert!(scratch.cgroups.frozen().unwrap());
    scratch.cgroups.thaw().unwrap();
    assert!(shell.can("true"));
    scratch.cgroups.stats().unwrap();
    scratch.cgroups.remove().unwrap();
    assert_eq!(shell.died_of(), Some(libc::SIGKILL));
}

#[test]
fn a_life_on_pure_cgroup2() {
    if std::env::var_os(LAYOUT).is_none() {
        return in_layout("mount -t cgroup2 none /sys/fs/cgroup", "a_life_on_pure_cgroup2");
    }
    a_life();
    let scratch = Scratch::new();
    assert_eq!(scratch.cgroups.dirs.len(), 1);
    assert!(matches!(scratch.cgroups.view(), View::Unified(path) if path == scratch.cgroups.dirs[0].path));
    // All that the root has is there for the container.
    let controllers = |dir: &Path| std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap();
    assert_eq!(controllers(&scratch.cgroups.dirs[0].path), controllers(Path::new("/sys/fs/cgroup")));
    if !controllers(Path::new("/sys/fs/cgroup")).contains("memory") {
        let text = refused(scratch.apply(r#"{"memory":{"limit":1048576}}"#), "linux.resources.memory.limit");
        assert!(text.contains("the memory controller can't be enabled in"), "{text}");
    }
    for (field, json) in [
        ("memory.swappiness", r#"{"memory":{"swappiness":60}}"#),
        ("memory.disableOOMKiller", r#"{"memory":{"disableOOMKiller":true}}"#),
        ("memory.kernelTCP", r#"{"memory":{"kernelTCP":4096}}"#),
        ("cpu.realtimeRuntime", r#"{"cpu":{"realtimeRuntime":1000}}"#),
        ("network.classID", r#"{"network":{"classID":1048577}}"#),
        ("unified[../x]", r#"{"unified":{"../x":"1"}}"#),
        ("unified[nodot]", r#"{"unified":{"nodot":"1"}}"#),
        ("unified[cgroup.nothing]", r#"{"unified":{"cgroup.nothing":"1"}}"#),
    ] {
        refused(scratch.apply(json), &format!("linux.resources.{field}"));
    }
    scratch.apply(r#"{"unified":{"cgroup.max.depth":"7"}}"#).unwrap();
    assert_eq!(scratch.read("", "cgroup.max.depth"), "7");
}

#[test]
fn a_life_without_cgroup2() {
    if std::env::var_os(LAYOUT).is_none() {
        let members = layout::detect().unwrap();
        let (Some(v2), true) = (
            members.iter().find(|h| h.version == Version::V2),
            members.iter().any(|h| h.version == Version::V1),
        ) else {
            return;
        };
        return in_layout(&format!("umount {}", v2.mount.display()), "a_life_without_cgroup2");
    }
    a_life();
    let scratch = Scratch::plan();
    assert!(scratch.cgroups.v2().is_none() && scratch.cgroups.clone_target().is_none());
    refused(scratch.apply(r#"{"unified":{"memory.max":"1"}}"#), "linux.resources.unified[memory.max]");
}

#[test]
fn a_life_in_a_bind_mounted_part() {
    if std::env::var_os(LAYOUT).is_none() {
        // A cgroup is all that is seen of cgroup2, and we are below it.
        let scratch = Scratch::new().only(Dir::is_v2);
        let Some(dir) = scratch.cgroups.dirs.first() else { return };
        let (part, own) = (dir.path.display(), dir.path.join("own"));
        std::fs::create_dir(&own).unwrap();
        let script = format!(
            "echo $$ >{}/cgroup.procs; mount --bind {part} /mnt; mount -t tmpfs none /sys/fs/cgroup; \
             mkdir /sys/fs/cgroup/unified; mount --move /mnt /sys/fs/cgroup/unified",
            own.display()
        );
        return in_layout(&script, "a_life_in_a_bind_mounted_part");
    }
    let mount = Path::new("/sys/fs/cgroup/unified");
    let found = layout::detect().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].own.as_deref(), Some(mount.join("own").as_path()));
    a_life();
    refused(Cgroups::plan(&request(Path::new("/own"))), "linux.cgroupsPath");
    // Beside our own, because our own has processes.
    let cgroups = Cgroups::plan(&request(Path::new("relative"))).unwrap();
    assert_eq!(cgroups.dirs[0].path, mount.join("relative"));
}

#[test]
fn rootless_does_without_what_it_may_not_make() {
    if std::env::var_os(LAYOUT).is_none() {
        // Read-only mounts forbid it to root, too.
        let mounts: Vec<_> = layout::detect().unwrap().into_iter().map(|h| h.mount).collect();
        let remount = |m: &PathBuf| format!("mount -o remount,bind,ro {0} {0}", m.display());
        let script = mounts.iter().map(remount).collect::<Vec<_>>().join(" && ");
        return in_layout(&script, "rootless_does_without_what_it_may_not_make");
    }
    let mut rootful = Cgroups::plan(&request(Path::new("/ckrun-test-forbidden"))).unwrap();
    let error = rootful.create().unwrap_err().to_string();
    assert!(error.ends_with("read-only file system"), "{error}");
    let mut rootless =
        Cgroups::plan(&Request { rootless: true, ..request(Path::new("/ckrun-test-forbidden")) }).unwrap();
    rootless.create().unwrap();
    assert!(rootless.is_empty());
    rootless.apply(&serde_json::from_str(r#"{"pids":{"limit":0},"blockIO":{"weight":0}}"#).unwrap()).unwrap();
    rootless.apply_devices(&default_device_rules()).unwrap();
    let limit = serde_json::from_str(r#"{"pids":{"limit":5}}"#).unwrap();
    let text = refused(rootless.apply(&limit), "linux.resources.pids.limit");
    assert!(text.contains("no cgroup with the pids controller"), "{text}");
}
