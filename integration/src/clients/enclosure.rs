//! A private place for one test: own mounts, processes and network.
//!
//! The clients keep things at fixed places (/run/containerd, /run/ckrun, /run/netns, /dev/shm, /var/lib/cni, iptables), and their daemons
//! leave shims and mounts when they are killed. In an enclosure those places are the test's own, and all processes in
//! it die with the first one (a pid namespace's rule), whether the test ends, panics or is killed.

use super::call::{self, Done};
use super::{PATIENCE, Terminal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// Mount propagation is shared, as systemd makes it on hosts. The shell is the pid namespace's init: as long as it waits
/// for the sleeping child it reaps orphans.
const INIT: &str = "mount --make-rshared / && mount -t tmpfs -o mode=755 run /run && mount -t tmpfs -o mode=1777 shm /dev/shm && \
                    mkdir -p /var/lib/cni && mount -t tmpfs cni /var/lib/cni && ip link set lo up || exit; \
                    sleep infinity & echo ready; wait";

/// The namespaces, a directory and the name of a cgroup.
#[derive(Debug)]
pub struct Enclosure {
    dir: TempDir,
    /// `unshare`, the parent of the pid namespace's init.
    holder: Child,
    /// The processes that belong to the enclosure itself.
    own: HashSet<u32>,
    environment: Vec<(OsString, OsString)>,
}

impl Enclosure {
    /// Makes the namespaces.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ckrun-").tempdir().unwrap();
        let mut command = Command::new("setpriv");
        // Whoever kills the test's process kills this one, and so the whole enclosure.
        command.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--pid",
            "--net",
            "--fork",
            "--kill-child",
        ]);
        command.args(["--mount-proc", "sh", "-c", INIT]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("setpriv and unshare (package util-linux)");
        let mut ready = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let mut enclosure = Enclosure { dir, holder, own: HashSet::new(), environment: Vec::new() };
        assert_eq!(ready, "ready\n", "unshare can't make the enclosure: not root?");
        enclosure.own =
            [enclosure.holder.id()].into_iter().chain(descendants(enclosure.holder.id())).collect();
        enclosure
    }

    /// A directory for everything of this test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `name` in the directory.
    pub fn path(&self, name: &str) -> String {
        self.dir().join(name).to_str().unwrap().to_owned()
    }

    /// A name that no other test has.
    pub fn name(&self) -> &str {
        self.dir().file_name().and_then(OsStr::to_str).unwrap()
    }

    /// The cgroup below which the clients put their containers, as a path in each hierarchy.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.name())
    }

    /// Sets an environment variable for all further calls.
    pub fn set_env(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.environment.push((name.into(), value.as_ref().to_owned()));
    }

    /// `path` as processes in the enclosure see it.
    pub fn seen_from_inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    /// A command that is carried out in the enclosure.
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        self.prefixed(&[], words)
    }

    /// Carries out a command to its end.
    #[track_caller]
    pub fn call<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Done {
        call::call(self.command(words), "")
    }

    /// The same with something to read on standard input.
    #[track_caller]
    pub fn call_with<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>, input: &str) -> Done {
        call::call(self.command(words), input)
    }

    /// Starts a command on a terminal of 40 rows and 100 columns.
    pub fn terminal<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Terminal {
        Terminal::start(self.prefixed(&["setsid", "--ctty", "--wait"], words), 40, 100)
    }

    fn prefixed<S: AsRef<OsStr>>(&self, prefix: &[&str], words: impl IntoIterator<Item = S>) -> Command {
        let pid = self.holder.id();
        let namespaces = [
            format!("--mount=/proc/{pid}/ns/mnt"),
            format!("--net=/proc/{pid}/ns/net"),
            // The holder itself is not in its pid namespace, only its children are.
            format!("--pid=/proc/{pid}/ns/pid_for_children"),
        ];
        let mut all: Vec<&OsStr> = prefix.iter().map(OsStr::new).collect();
        all.push(OsStr::new("nsenter"));
        all.extend(namespaces.iter().map(OsStr::new));
        all.push(OsStr::new("--"));
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).args(words).envs(self.environment.iter().cloned());
        command
    }

    /// Starts a daemon and waits until it writes `ready` to its standard error output.
    #[track_caller]
    pub fn daemon<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>, ready: &'static str) -> Daemon {
        let mut command = self.command(words);
        let line = format!("{command:?}");
        let mut process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let errors = BufReader::new(process.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let (sender, receiver) = mpsc::channel();
        let sink = Arc::clone(&log);
        std::thread::spawn(move || {
            for text in errors.lines().map_while(Result::ok) {
                sink.lock().unwrap().extend([&text, "\n"]);
                if text.contains(ready) {
                    let _ = sender.send(());
                }
            }
        });
        let daemon = Daemon { process, log };
        if receiver.recv_timeout(PATIENCE).is_err() {
            panic!("{line} does not say {ready:?}:\n{}", daemon.log.lock().unwrap());
        }
        daemon
    }

    /// The directories of a cgroup, given from the root of the hierarchies, in all hierarchies where it exists.
    pub fn cgroup_dirs(&self, cgroup: &str) -> Vec<PathBuf> {
        hierarchies()
            .iter()
            .map(|top| top.join(cgroup.trim_start_matches('/')))
            .filter(|d| d.is_dir())
            .collect()
    }

    /// The content of a file of a cgroup: that of version 2 if the cgroup has it, else that of version 1.
    #[track_caller]
    pub fn cgroup_file(&self, cgroup: &str, v2: &str, v1: &str) -> String {
        let dirs = self.cgroup_dirs(cgroup);
        let files = [v2, v1].into_iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
        let Some(file) = files.into_iter().find(|file| file.is_file()) else {
            panic!("cgroup {cgroup} has neither {v2} nor {v1}");
        };
        fs::read_to_string(file).unwrap().trim().to_owned()
    }

    /// Checks that the containers have left nothing: no state of ckrun in the directory `root`, no process, no cgroup
    /// (besides those named in `kept`, which belong to the client), and no mount of a container's root file system.
    #[track_caller]
    pub fn assert_clean(&self, root: &str, kept: &[&str]) {
        self.await_silence();
        let states: Vec<_> = entries(&self.seen_from_inside(root)).collect();
        assert!(states.is_empty(), "left in ckrun's state directory: {states:?}");
        for dir in self.cgroup_dirs(&self.cgroup()) {
            let of_client = |path: &Path| *path == *dir || kept.iter().any(|name| path.ends_with(name));
            let left: Vec<_> = below(&dir).into_iter().filter(|path| !of_client(path)).collect();
            assert!(left.is_empty(), "cgroups are left: {left:?}");
        }
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.holder.id())).unwrap();
        let left: Vec<_> =
            mounts.lines().filter(|line| line.contains("/merged ") || line.contains("/rootfs ")).collect();
        assert!(left.is_empty(), "mounts are left: {left:#?}");
    }

    /// Waits until nothing runs that a client has left to the namespace's init: the monitors of containers end a little
    /// after their clients.
    #[track_caller]
    fn await_silence(&self) {
        for pid in descendants(self.holder.id()).into_iter().filter(|pid| !self.own.contains(pid)) {
            let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let name = String::from_utf8_lossy(&name).replace('\0', " ");
            assert!(call::ended(pid), "process {pid} is left: {name}");
        }
    }
}

impl Default for Enclosure {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        // A process that a version 1 freezer holds does not die.
        for dir in self.cgroup_dirs(&self.cgroup()) {
            for cgroup in below(&dir) {
                let _ = fs::write(cgroup.join("freezer.state"), "THAWED");
            }
        }
        let all = tree(self.holder.id());
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        for pid in all {
            call::ended(pid);
        }
        for dir in self.cgroup_dirs(&self.cgroup()) {
            for cgroup in below(&dir) {
                let _ = fs::remove_dir(cgroup);
            }
        }
    }
}

/// A daemon in an enclosure.
#[derive(Debug)]
pub struct Daemon {
    process: Child,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    /// What it has written.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let complaints: Vec<&str> = log.lines().filter(|line| !line.contains("level=info")).collect();
            eprintln!("the daemon complained:\n{}", complaints.join("\n"));
        }
        let all = tree(self.process.id());
        for pid in &all {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
        }
        let _ = call::wait(&mut self.process);
    }
}

/// A process and those it has started.
fn tree(pid: u32) -> Vec<u32> {
    std::iter::once(pid).chain(descendants(pid)).collect()
}

fn descendants(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|child| child.parse().unwrap()).flat_map(tree).collect()
}

/// A directory and those below it, the lowest first.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        entries(dir).filter(|path| path.is_dir()).flat_map(|sub| below(&sub)).collect();
    all.push(dir.to_owned());
    all
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Where the cgroup hierarchies are mounted.
fn hierarchies() -> Vec<PathBuf> {
    let mut mounts = String::new();
    fs::File::open("/proc/self/mountinfo").unwrap().read_to_string(&mut mounts).unwrap();
    let cgroups = mounts.lines().filter(|line| line.contains(" - cgroup"));
    cgroups.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}
