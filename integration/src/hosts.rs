//! Emulator hosts: `emuhost` makes one of namespaces, with a server of softemu in it, and a bundle of a testbench as the job.
//! Two of them share the directory /mnt and nothing else.

use crate::leftovers::{self, Trace};
use crate::pipes::{Lines, PATIENCE, any_ready, await_end, pidfd};
use crate::run::{Ended, binary, finish, needs};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

/// A small design, so that a test takes a moment: the words of `ckrun-softemu serve`.
pub const SMALL: [&str; 6] = ["--ram", "1024", "--fifo", "64", "--boot", "100000"];

/// How `ckrun migrate` reaches another host; it stands for ssh.
pub const VIA: &str = "nsenter --mount --net --uts --ipc --target";

/// A program of the workspace; `cargo test --workspace` builds all of them.
pub fn program(name: &str) -> PathBuf {
    let path = binary().with_file_name(name);
    assert!(path.exists(), "{} is missing: `cargo build -p {name}` makes it", path.display());
    path
}

/// What hosts share, and a word that is in the names of all that they have.
#[derive(Debug)]
pub struct Site {
    shared: TempDir,
    /// The job's id.
    pub id: String,
}

impl Site {
    /// Without hosts.
    pub fn new() -> Site {
        let shared = tempfile::Builder::new().prefix("ckrun-").tempdir().expect("make a directory");
        let id = shared.path().file_name().expect("it has a name").to_string_lossy().into_owned();
        Site { shared, id }
    }

    /// What is at /mnt of every host.
    pub fn shared(&self, name: &str) -> PathBuf {
        self.shared.path().join(name)
    }

    /// A host, of a name of one letter.
    pub fn host(&self, name: &str) -> Host {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("emuhost");
        needs("unshare", "util-linux");
        let mut command = Command::new(script);
        let last = name.bytes().next().unwrap_or_default() - b'a' + 1;
        command.args([name, &format!("10.77.0.{last}")]).arg(self.shared.path());
        command.args([binary(), program("ckrun-softemu"), program("ckrun-fault")]);
        let mut anchor = command.stdout(Stdio::piped()).spawn().expect("start a host");
        let mut lines = Lines::new(OwnedFd::from(anchor.stdout.take().expect("stdout is a pipe")));
        let id = lines.line().parse().expect("the id of a process");
        Host { name: name.into(), job: self.id.clone(), id, anchor, servers: Vec::new() }
    }

    /// Fails when anything is left, of the hosts too.
    pub fn no_trace(&self) {
        leftovers::check(&self.id, Path::new("/nonexistent"));
    }
}

impl Default for Site {
    fn default() -> Self {
        Site::new()
    }
}

/// A host.
#[derive(Debug)]
pub struct Host {
    name: String,
    job: String,
    /// The process by which others reach it.
    pub id: i32,
    anchor: Child,
    servers: Vec<Child>,
}

impl Host {
    /// A command there.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(needs("nsenter", "util-linux"));
        command.args(VIA.split(' ').skip(1)).arg(self.id.to_string()).args(words);
        command
    }

    /// A command there, to its end.
    pub fn run(&self, words: &[&str]) -> Ended {
        finish(self.command(words))
    }

    /// ckrun there; `ID` is the job's id.
    pub fn ckrun(&self, words: &[&str]) -> Ended {
        self.run(&self.words(words))
    }

    fn words<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        let words = words.iter().map(|word| if *word == "ID" { self.job.as_str() } else { word });
        std::iter::once("ckrun").chain(words).collect()
    }

    /// ckrun there, which makes a job: its streams, which are the job's, lead nowhere.
    pub fn quietly(&self, words: &[&str]) -> Ended {
        let log = tempfile::NamedTempFile::new_in(self.path("/mnt")).expect("make a file");
        let name = log.path().file_name().expect("it has a name").to_string_lossy();
        let inside = format!("/mnt/{name}");
        let mut command = self.command(&self.words(&[&["--log", &inside], words].concat()));
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let complaints = fs::read_to_string(log.path()).unwrap_or_default();
        let code = status.expect("run nsenter").code().unwrap_or(-1);
        Ended { code, stdout: String::new(), stderr: complaints }
    }

    /// A file there, as seen from here.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.id))
    }

    /// Starts a server at /run/NAME, and makes it that of the plugin `emu`.
    pub fn serve(&mut self, name: &str, slots: usize, design: &[&str]) {
        let (directory, slots) = (format!("/run/{name}"), slots.to_string());
        let address = format!("10.77.0.{}", self.name.as_bytes()[0] - b'a' + 1);
        let serve = ["ckrun-softemu", "serve", "--directory", &directory, "--listen", &address];
        let mut command = self.command(&[&serve[..], &["--slots", &slots], design].concat());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("start a server");
        let line = Lines::new(OwnedFd::from(child.stdout.take().expect("stdout is a pipe"))).line();
        assert!(line.starts_with("serving at "), "{line}");
        self.servers.push(child);
        self.emulator(&directory);
    }

    /// Names the server of the plugin `emu`.
    pub fn emulator(&self, server: &str) {
        let plugin = |name: &str, more: Value| {
            let path = self.path("/etc/ckrun/plugins.d").join(name);
            fs::write(path, more.to_string()).expect("write a manifest");
        };
        let command = json!(["/usr/local/bin/ckrun-softemu", "plugin"]);
        plugin("emu.json", json!({"command": command, "options": {"server": server}}));
        let command = json!(["/usr/local/bin/ckrun-fault"]);
        plugin("fault.json", json!({"command": command, "options": {"server": server}}));
    }

    /// The process of the server that was started last.
    pub fn server(&self) -> i32 {
        self.servers.last().expect("there is a server").id().cast_signed()
    }

    /// Kills the server that was started last.
    pub fn kill_server(&mut self) {
        let mut server = self.servers.pop().expect("there is a server");
        let _ = server.kill();
        let _ = server.wait();
    }

    /// Asks the server at /run/NAME by a word or two of `ckrun-softemu control`.
    pub fn control(&self, name: &str, words: &[&str]) -> Value {
        let socket = format!("/run/{name}/control");
        let said = self.run(&[&["ckrun-softemu", "control", &socket][..], words].concat()).ok();
        serde_json::from_str(&said).unwrap_or(Value::Null)
    }

    /// Makes the bundle of the testbench at /srv/NAME, with one link.
    pub fn bundle(&self, name: &str, link: &str, transactions: u64) {
        let bundle = self.path("/srv").join(name);
        let rootfs = bundle.join("rootfs");
        for dir in ["bin", "dev", "proc", "sys", "tmp"] {
            fs::create_dir_all(rootfs.join(dir)).expect("make a rootfs");
        }
        fs::copy(needs("busybox", "busybox-static"), rootfs.join("bin/busybox")).expect("copy busybox");
        for name in ["sh", "tail", "md5sum", "mkfifo"] {
            symlink("busybox", rootfs.join("bin").join(name)).expect("link to busybox");
        }
        // By another process: in this one another thread may be about to fork, and the exec would find it busy.
        let mut cp = Command::new("cp");
        cp.args([program("ckrun-softemu"), rootfs.join("bin/ckrun-softemu")]);
        finish(cp).ok();
        // The log and the progress are in a tmpfs, which goes with the job; the result is where it ends. It does not end
        // before it is asked to: a move that has begun finds it.
        let testbench = format!("ckrun-softemu testbench --link {link} --transactions {transactions}");
        let script = format!(
            "mkfifo /tmp/end; exec 9<>/tmp/end; \
             {testbench} --progress 50 --log /tmp/log >/tmp/progress 2>&1; echo exit $? >>/tmp/progress; \
             read -r end <&9; {{ tail -n 2 /tmp/progress; md5sum </tmp/log; }} >/result"
        );
        let mut config = crate::bundle::default_config();
        config["process"]["args"] = json!(["sh", "-c", script]);
        config["root"]["readonly"] = json!(false);
        // ckrun comes first: the job is not to be done before a move has begun.
        config["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "nice": 19});
        if link.starts_with("tcp:") {
            // The host's network is the job's.
            let namespaces = config["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != "network");
        }
        let tmp = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmp", "options": ["mode=1777"]});
        config["mounts"].as_array_mut().expect("mounts").push(tmp);
        // In truth another host has other cgroups.
        config["linux"]["cgroupsPath"] = json!(format!("/{}-{}-{name}", self.job, self.name));
        fs::write(bundle.join("config.json"), config.to_string()).expect("write config.json");
    }

    /// Starts the job of the bundle /srv/tb with the plugin `emu`.
    pub fn start(&self, plugin: &str) {
        self.quietly(&["run", "--detach", "--bundle", "/srv/tb", "--plugin", plugin, "ID"]).ok();
    }

    /// The first process of a job.
    fn pid_of(&self, id: &str) -> i32 {
        let state: Value = serde_json::from_str(&self.ckrun(&["state", id]).ok()).expect("the state is JSON");
        i32::try_from(state["pid"].as_i64().expect("a number")).expect("an id")
    }

    /// Waits until the job that runs here has done so many transactions.
    pub fn reaches(&self, transactions: u64) {
        Host::await_progress(self.pid_of("ID"), transactions);
    }

    fn await_progress(pid: i32, transactions: u64) {
        let progress = PathBuf::from(format!("/proc/{pid}/root/tmp/progress"));
        let end = pidfd(pid);
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("inotify_init1");
        let deadline = Instant::now() + PATIENCE;
        let mut watched = false;
        loop {
            if !watched && progress.exists() {
                inotify::add_watch(&events, &progress, WatchFlags::MODIFY).expect("watch the progress");
                watched = true;
            }
            let text = fs::read_to_string(&progress).unwrap_or_default();
            let last = text.lines().rev().find_map(|line| line.split(' ').next()?.parse::<u64>().ok());
            if last.is_some_and(|done| done >= transactions) {
                return;
            }
            assert!(Instant::now() < deadline, "it stands still: {text}");
            if watched {
                let ready = any_ready(&[events.as_fd(), end.as_fd()]);
                assert!(!ready[1], "it has ended before transaction {transactions}: {text}");
                while rustix::io::read(&events, &mut [0; 4096]).is_ok() {}
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Waits for the end of the job that runs here: how the testbench ended, its last line, and the digest of its log.
    pub fn outcome(&self) -> String {
        self.outcome_of("ID", "tb")
    }

    /// That of a job of another name in the bundle /srv/BUNDLE.
    pub fn outcome_of(&self, id: &str, bundle: &str) -> String {
        let pid = self.pid_of(id);
        let end = pidfd(pid);
        // Then there is the FIFO.
        Host::await_progress(pid, 1);
        let gate = fs::File::options().write(true).open(format!("/proc/{pid}/root/tmp/end"));
        gate.expect("open a FIFO").write_all(b"\n").expect("write to a FIFO");
        await_end(end);
        self.ckrun(&["delete", "--force", id]).ok();
        let result = self.path(&format!("/srv/{bundle}/rootfs/result"));
        let said = fs::read_to_string(&result).unwrap_or_else(|e| panic!("{}: {e}", result.display()));
        fs::remove_file(result).expect("remove a result");
        said
    }

    /// `ckrun migrate` to another host.
    pub fn moves(&self, to: &Host, more: &[&str]) -> Ended {
        let to = to.id.to_string();
        self.ckrun(&[&["migrate", "--to", &to, "--via", VIA], more].concat())
    }

    /// Fails unless nothing of a job is here.
    pub fn is_empty(&self) {
        assert_eq!(self.ckrun(&["list", "--quiet"]).ok(), "");
        let tag = format!("{}-{}-", self.job, self.name);
        assert_eq!(leftovers::traces(&tag, Path::new("/nonexistent")), [] as [Trace; 0]);
    }

    /// Everything in it ends at once, as when the power goes.
    pub fn die(self) {
        drop(self);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A job first: it is in namespaces of its own.
        for id in finish(self.command(&["ckrun", "list", "--quiet"])).stdout.lines() {
            finish(self.command(&["ckrun", "delete", "--force", id]));
        }
        for child in self.servers.iter_mut().chain([&mut self.anchor]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
