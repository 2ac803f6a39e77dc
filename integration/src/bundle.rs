//! A container of a test's own.

use crate::leftovers;
use crate::pipes::{Lines, await_end, pidfd};
use crate::run::{Ended, Running, binary, elsewhere, finish, install, install_text, needs, start};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A bundle in a temporary directory, a store for its state (`--root`), and an id that nobody else has.
///
/// When it is dropped, the container is deleted by force, and there must be no trace of it left.
#[derive(Debug)]
pub struct Container {
    dir: TempDir,
    id: String,
    only_cgroup2: bool,
}

impl Container {
    /// A container that runs `true`, configured as `runc spec` would, without a terminal.
    pub fn new() -> Container {
        let dir = tempfile::Builder::new().prefix("ckrun-").tempdir().expect("make a temporary directory");
        // A user of the container who is nobody on the host must reach the rootfs.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let id = dir.path().file_name().expect("it has a name").to_string_lossy().into_owned();
        let container = Container { dir, id, only_cgroup2: false };
        populate(&container.rootfs());
        container.write_config(&default_config());
        container
    }

    /// A container that runs a shell script.
    pub fn sh(script: &str) -> Container {
        Container::new().args(&["sh", "-c", script])
    }

    /// Every ckrun finds itself on a host with nothing but cgroup2.
    pub fn on_cgroup2(mut self) -> Container {
        self.only_cgroup2 = true;
        self
    }

    /// The id, which no other container has. It occurs in the paths of all that belongs to the container.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The bundle.
    pub fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    /// The root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    /// Where the state is kept (`--root`).
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// A path outside of the bundle, for the test's own files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Changes config.json.
    pub fn with(self, change: impl FnOnce(&mut Value)) -> Container {
        self.change(change);
        self
    }

    /// Changes config.json.
    pub fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut config = self.config();
        change(&mut config);
        self.write_config(&config);
    }

    /// config.json.
    pub fn config(&self) -> Value {
        let text = fs::read(self.bundle().join("config.json")).expect("read config.json");
        serde_json::from_slice(&text).expect("parse config.json")
    }

    fn write_config(&self, config: &Value) {
        fs::write(self.bundle().join("config.json"), config.to_string()).expect("write config.json");
    }

    /// Sets the command.
    pub fn args(self, args: &[&str]) -> Container {
        self.with(|c| c["process"]["args"] = json!(args))
    }

    /// Adds a mount.
    pub fn mount(
        self,
        destination: &str,
        kind: &str,
        source: impl AsRef<Path>,
        options: &[&str],
    ) -> Container {
        let source = source.as_ref();
        self.with(|c| {
            let mount =
                json!({"destination": destination, "type": kind, "source": source, "options": options});
            c["mounts"].as_array_mut().expect("mounts").push(mount);
        })
    }

    /// Puts a file into the rootfs.
    pub fn put(&self, path: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.rootfs().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().expect("it has a parent")).expect("make a directory");
        match mode & 0o111 {
            0 => fs::write(&path, text).expect("write a file"),
            _ => install_text(text, &path),
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        path
    }

    /// ckrun with its `--root`, in the bundle's directory, and these words; `ID` among them becomes the id.
    pub fn command(&self, words: &[&str]) -> Command {
        self.command_of(&binary(), words)
    }

    /// As [`Container::command`], with another ckrun.
    pub fn command_of(&self, program: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.arg("--root").arg(self.store()).current_dir(self.bundle());
        command.args(words.iter().map(|word| if *word == "ID" { self.id.as_str() } else { word }));
        if self.only_cgroup2 {
            elsewhere(&mut command, || {
                umount2("/sys/fs/cgroup", MntFlags::MNT_DETACH)?;
                mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), None::<&str>)
            });
        }
        command
    }

    /// Runs ckrun to its end.
    pub fn ckrun(&self, words: &[&str]) -> Ended {
        finish(self.command(words))
    }

    /// Starts ckrun with pipes.
    pub fn start(&self, words: &[&str]) -> Running {
        start(self.command(words))
    }

    /// `ckrun run ID`, after which no trace of the container may be left.
    pub fn run(&self) -> Ended {
        let ended = self.ckrun(&["run", "ID"]);
        self.no_trace();
        ended
    }

    /// Fails when anything of the container is left.
    pub fn no_trace(&self) {
        leftovers::check(&self.id, &self.store().join(&self.id));
    }

    /// `ckrun create ID`, whose streams are the job's.
    pub fn create(&self) -> Live {
        self.create_by(self.command(&["create", "ID"]))
    }

    /// As [`Container::create`], with a command line of the test's own.
    pub fn create_by(&self, mut command: Command) -> Live {
        let (from_us, to_job) = std::io::pipe().expect("pipe");
        let (from_job, to_us) = std::io::pipe().expect("pipe");
        command.stdin(OwnedFd::from(from_us)).stdout(OwnedFd::from(to_us)).stderr(Stdio::piped());
        let mut child = command.spawn().expect("spawn ckrun create");
        // The command holds copies of the job's ends.
        drop(command);
        let mut complaints = Lines::new(OwnedFd::from(child.stderr.take().expect("stderr is a pipe")));
        await_end(pidfd(child.id().cast_signed()));
        let status = child.wait().expect("wait for ckrun create");
        complaints.fill();
        assert!(status.success(), "{}", complaints.take());
        let pid = self.pid();
        Live {
            pid,
            end: pidfd(pid),
            stdin: Some(to_job),
            stdout: Lines::new(OwnedFd::from(from_job)),
            complaints,
        }
    }

    /// [`Container::create`] and `ckrun start ID`.
    pub fn up(&self) -> Live {
        let live = self.create();
        self.ckrun(&["start", "ID"]).ok();
        live
    }

    /// What `ckrun state ID` prints.
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.ckrun(&["state", "ID"]).ok()).expect("the state is JSON")
    }

    /// Its status.
    pub fn status(&self) -> String {
        self.state()["status"].as_str().expect("status is a string").to_owned()
    }

    /// The init's id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.state()["pid"].as_i64().expect("pid is a number")).expect("pid is an i32")
    }

    /// The directories of its cgroups, from state.json.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let text = fs::read(self.store().join(&self.id).join("state.json")).expect("read state.json");
        let state: Value = serde_json::from_slice(&text).expect("state.json is JSON");
        let dirs = state["cgroups"]["dirs"].as_array().expect("cgroups.dirs");
        dirs.iter().map(|dir| dir["path"].as_str().expect("path").into()).collect()
    }

    /// The first of these files that exists in one of its cgroups, and what is in it: v1's and v2's names.
    pub fn cgroup_file(&self, names: &[&str]) -> String {
        let dirs = self.cgroups();
        let paths = names.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
        let path = paths.into_iter().find(|path| path.exists());
        let path = path.unwrap_or_else(|| panic!("no cgroup of {dirs:?} has any of {names:?}"));
        fs::read_to_string(path).expect("read a cgroup file").trim().to_owned()
    }
}

impl Default for Container {
    fn default() -> Self {
        Container::new()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let deleted = self.ckrun(&["delete", "--force", "ID"]);
        if !std::thread::panicking() {
            deleted.ok();
            self.no_trace();
        }
    }
}

/// A created container's init, and the job's streams.
#[derive(Debug)]
pub struct Live {
    /// The init's id on the host.
    pub pid: i32,
    end: OwnedFd,
    stdin: Option<std::io::PipeWriter>,
    /// The job's standard output.
    pub stdout: Lines,
    /// The job's standard error.
    pub complaints: Lines,
}

impl Live {
    /// Writes a line to the job's standard input.
    pub fn say(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().expect("stdin is open"), "{line}").expect("write to the job");
    }

    /// Closes the job's standard input.
    pub fn hang_up(&mut self) {
        self.stdin = None;
    }

    /// Waits for the end of the init.
    pub fn await_end(&self) {
        await_end(&self.end);
    }
}

/// What the tests run inside.
const APPLETS: &str = "[ awk cat chmod chown chrt cp cut date dd echo env false find grep head hostname id ionice ip ipcs \
    kill ln ls mkdir mknod mount mv nproc nsenter od pidof printf ps pwd readlink rm rmdir sed seq sh sleep sort stat \
    stty su sync tail tee test touch tr true tty umount uname unshare wc xargs";

/// A root file system of one static program with many names.
fn populate(rootfs: &Path) {
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp", "root"] {
        fs::create_dir_all(rootfs.join(dir)).expect("make the rootfs");
    }
    // A copy, since a link would let a container that is not shut in as it should be write to the host's.
    install(&needs("busybox", "busybox-static"), &rootfs.join("bin/busybox"));
    for name in APPLETS.split_whitespace() {
        symlink("busybox", rootfs.join("bin").join(name)).expect("link to busybox");
    }
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("chmod");
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )
    .expect("write /etc/passwd");
}

/// What `runc spec` writes, with `true` as the command and no terminal.
pub fn default_config() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let kinds = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "test",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": kinds.map(|kind| json!({"type": kind})),
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
