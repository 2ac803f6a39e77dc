//! Emulator hosts: `emuhost` makes one of namespaces, with a server of an emulator in it. Two of them share the directory /mnt and
//! nothing else. What runs there is in [`work`] and [`guest`]; [`board`] has devices of FUSE for them.

pub mod board;
pub mod guest;
pub mod work;

use crate::leftovers::{self, Trace};
use crate::pipes::Lines;
use crate::run::{Ended, binary, finish, needs};
use serde_json::{Value, json};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A small design, so that a test takes a moment: the words of `ckrun-softemu serve`.
pub const SMALL: [&str; 6] = ["--ram", "1024", "--fifo", "64", "--boot", "100000"];

/// The same for the Verilated design as `make -C plugins/verilated test` compiles it.
pub const VERILATED: [&str; 6] = ["--ram", "1024", "--fifo", "16", "--boot", "100000"];

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
    emulator: PathBuf,
    /// The job's id.
    pub id: String,
}

impl Site {
    /// Without hosts; the emulator is softemu.
    pub fn new() -> Site {
        Site::of(program("ckrun-softemu"))
    }

    /// Likewise, with the Verilated design, which is of the sizes [`VERILATED`].
    pub fn verilated() -> Site {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/verilated/build/small/ckrun-verilated");
        assert!(path.exists(), "{} is missing: `make -C plugins/verilated test` makes it", path.display());
        Site::of(path)
    }

    fn of(emulator: PathBuf) -> Site {
        let shared = tempfile::Builder::new().prefix("ckrun-").tempdir().expect("make a directory");
        let id = shared.path().file_name().expect("it has a name").to_string_lossy().into_owned();
        Site { shared, emulator, id }
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
        let mut programs =
            vec![binary(), program("ckrun-softemu"), program("ckrun-fault"), program("ckrun-qemu")];
        if !programs.contains(&self.emulator) {
            programs.push(self.emulator.clone());
        }
        command.args(programs);
        let mut anchor = command.stdout(Stdio::piped()).spawn().expect("start a host");
        let mut lines = Lines::new(OwnedFd::from(anchor.stdout.take().expect("stdout is a pipe")));
        let id = lines.line().parse().expect("the id of a process");
        let emulator = self.emulator.file_name().expect("it has a name").to_string_lossy().into_owned();
        Host { name: name.into(), job: self.id.clone(), emulator, id, anchor, servers: Vec::new() }
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
    emulator: String,
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
        let serve = [&self.emulator, "serve", "--directory", &directory, "--listen", &address];
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
        let command = json!([format!("/usr/local/bin/{}", self.emulator), "plugin"]);
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
