//! A job that is checkpointed and restored.

use crate::bundle::Container;
use crate::guests::guest;
use crate::pipes::{await_end, pidfd};
use crate::run::{Ended, finish, install};
use crate::status::Status;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A container in which a guest runs. Its streams lead nowhere.
#[derive(Debug)]
pub struct Job {
    /// The container.
    pub container: Container,
    status: Status,
}

impl Job {
    /// A container for a mode of a guest; nothing runs yet.
    pub fn new(program: &str, mode: &str) -> Job {
        let job = Job::with(&["/guest", mode, "/status"], |container| container);
        install(&guest(program), &job.container.rootfs().join("guest"));
        job
    }

    /// A container for a command that tells how it is as a guest does, in /status; with every capability that we have
    /// ourselves, and what `change` makes of it. Nothing runs yet.
    pub fn with(words: &[&str], change: impl FnOnce(Container) -> Container) -> Job {
        let container = change(Container::new().args(words)).with(|c| {
            let all = capabilities();
            c["process"]["capabilities"] =
                json!({"bounding": all, "effective": all, "permitted": all, "inheritable": all});
            c["process"]["noNewPrivileges"] = json!(false);
            c["root"]["readonly"] = json!(false);
        });
        let status = Status::at(&container.put("/status", "", 0o666));
        Job { container, status }
    }

    /// [`Job::new`], which runs and is well.
    pub fn up(program: &str, mode: &str) -> Job {
        let job = Job::new(program, mode);
        job.start();
        job
    }

    /// Runs it.
    pub fn start(&self) {
        self.start_with(&[]);
    }

    /// [`Job::start`] with more words.
    pub fn start_with(&self, more: &[&str]) {
        self.quietly(&[&["run", "--detach"], more, &["ID"]].concat()).ok();
        self.status.rises(5, self.container.pid());
    }

    /// ckrun with streams that lead nowhere, as the job's then do; what it complains about comes from `--log`.
    pub fn quietly(&self, words: &[&str]) -> Ended {
        quietly(&self.container, words)
    }

    /// The directory of an image.
    pub fn image(&self, name: &str) -> PathBuf {
        self.container.file(name)
    }

    /// `ckrun checkpoint`, after which there is an image and no trace of the container.
    pub fn checkpoint(&self, image: &Path) {
        let end = pidfd(self.container.pid());
        self.container.ckrun(&["checkpoint", "--image-path", path(image), "ID"]).ok();
        await_end(end);
        self.container.no_trace();
        self.status.count();
    }

    /// `ckrun checkpoint --leave-running`, after which there is an image.
    pub fn leave_running(&self, image: &Path) {
        self.container.ckrun(&["checkpoint", "--leave-running", "--image-path", path(image), "ID"]).ok();
        assert!(image.join("manifest.json").exists());
    }

    /// A container for the same guest with a copy of the rootfs; nothing runs in it yet.
    pub fn elsewhere(&self) -> Job {
        let config = self.container.config();
        let container = Container::new().with(|c| *c = config);
        fs::remove_dir_all(container.rootfs()).expect("remove a rootfs");
        copy(&self.container.rootfs(), &container.rootfs());
        let status = Status::at(&container.rootfs().join("status"));
        Job { container, status }
    }

    /// `ckrun restore --detach`, after which it is well.
    pub fn restore(&self, image: &Path) {
        self.restore_with(image, &[]);
    }

    /// [`Job::restore`] with more words.
    pub fn restore_with(&self, image: &Path, more: &[&str]) {
        self.revive(image, more);
        self.is_well();
    }

    /// [`Job::restore`] of a job that finds itself well less often than a guest.
    pub fn restore_and_count(&self, image: &Path, more: u64) {
        self.revive(image, &[]);
        self.status.rises(more, self.container.pid());
    }

    fn revive(&self, image: &Path, more: &[&str]) {
        let mut words = vec!["restore", "--detach", "--image-path", path(image)];
        words.extend_from_slice(more);
        words.push("ID");
        self.quietly(&words).ok();
        assert_eq!(self.container.status(), "running");
    }

    /// Waits until the guest has verified itself a good number of times from now on; some things it does not look at
    /// every time.
    pub fn is_well(&self) {
        self.status.rises(60, self.container.pid());
    }

    /// Two generations, and a look at what is left.
    pub fn survives(self) {
        let (first, second) = (self.image("first"), self.image("second"));
        self.checkpoint(&first);
        self.restore(&first);
        self.checkpoint(&second);
        self.restore(&second);
        self.container.ckrun(&["delete", "--force", "ID"]).ok();
        self.container.no_trace();
    }

    /// Two generations of a guest that does what it is about only as long as there is a file `/act`: it can tell what
    /// happens during a checkpoint from what it has done itself.
    pub fn survives_and_acts(self) {
        let act = self.container.rootfs().join("act");
        for image in ["first", "second"] {
            fs::write(&act, "").expect("write a file");
            self.is_well();
            fs::remove_file(&act).expect("remove a file");
            self.is_well();
            self.leave_running(&self.image("besides"));
            fs::remove_dir_all(self.image("besides")).expect("remove an image");
            self.is_well();
            let image = self.image(image);
            self.checkpoint(&image);
            self.restore(&image);
        }
        fs::write(&act, "").expect("write a file");
        self.is_well();
    }

    /// As [`Job::survives`]; or the checkpoint is refused, by words, before the job is stopped, and `--dry-run` says why.
    pub fn survives_or_is_refused(self, words: &[&str]) {
        let look = self.container.ckrun(&["checkpoint", "--dry-run", "ID"]);
        if look.code == 0 {
            return self.survives();
        }
        self.is_refused_beforehand(words);
    }

    /// `--dry-run` names, by words, what stands in the way, and the checkpoint is refused before the job is stopped.
    pub fn is_refused_beforehand(self, words: &[&str]) {
        let look = self.container.ckrun(&["checkpoint", "--dry-run", "ID"]).exits(1);
        for word in words {
            assert!(look.stdout.contains(word), "{word:?} is not in {:?}", look.stdout);
        }
        // It would die if it came to the stop.
        self.refused(words, "checkpoint:seize");
    }

    /// The checkpoint is refused, by words, though perhaps not before the job is stopped, and has done no harm.
    pub fn is_refused(self, words: &[&str]) {
        self.refused(words, "");
    }

    fn refused(&self, words: &[&str], fault: &str) {
        let image = self.image("image");
        let mut command = self.container.command(&["checkpoint", "--image-path", path(&image), "ID"]);
        command.env("CKRUN_FAULT", fault);
        let refused = finish(command).exits(1);
        for word in words {
            assert!(refused.stderr.contains(word), "{word:?} is not in {:?}", refused.stderr);
        }
        self.is_unharmed(&image);
    }

    /// ckrun, stopped at some point of its work.
    pub fn stopped_at(&self, point: &str, words: &[&str]) -> (Child, Pid) {
        let mut command = self.container.command(words);
        command.env("CKRUN_FAULT", format!("stop@{point}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("spawn ckrun");
        let pid = Pid::from_raw(child.id().cast_signed());
        let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("wait for ckrun");
        assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP), "{point}");
        (child, pid)
    }

    /// After a checkpoint that failed: the job goes on and there is no image, not even half of one.
    pub fn is_unharmed(&self, image: &Path) {
        assert_eq!(self.container.status(), "running");
        assert!(!image.exists(), "{}", image.display());
        let mut partial = image.as_os_str().to_owned();
        partial.push(".partial");
        assert!(!Path::new(&partial).exists(), "{partial:?}");
        self.is_well();
    }
}

/// See [`Job::quietly`].
pub fn quietly(container: &Container, words: &[&str]) -> Ended {
    let log = container.file("log");
    // What happened before is no news.
    let _ = fs::remove_file(&log);
    let mut command = container.command(&[&["--log", path(&log)][..], words].concat());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("spawn ckrun");
    await_end(pidfd(child.id().cast_signed()));
    let status = child.wait().expect("wait for ckrun");
    let complaints = fs::read_to_string(&log).unwrap_or_default();
    Ended { code: status.code().unwrap_or(-1), stdout: String::new(), stderr: complaints }
}

/// Waits until nobody clears up any more after a ckrun that was killed: who does has the container's lock, from before
/// ckrun's end.
pub fn cleared(container: &Container) {
    if let Ok(dir) = fs::File::open(container.store().join(container.id())) {
        dir.lock().expect("lock a container's directory");
    }
}

/// A path as a word.
pub fn path(path: &Path) -> &str {
    path.to_str().expect("a path of ours is UTF-8")
}

/// How many bytes a directory has, with all below it.
pub fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries
        .map(|entry| {
            let entry = entry.expect("read a directory");
            let about = entry.metadata().expect("stat");
            if about.is_dir() { size(&entry.path()) } else { about.len() }
        })
        .sum()
}

/// Copies a directory; `to` does not exist.
pub fn copy(from: &Path, to: &Path) {
    let mut cp = Command::new("cp");
    cp.arg("-a").arg("--reflink=auto").args([from, to]);
    finish(cp).ok();
}

/// The names of the capabilities that this process has, which are all that it can give.
fn capabilities() -> Vec<String> {
    const NAMES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
        NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE \
        SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE \
        AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF \
        CHECKPOINT_RESTORE";
    let status = fs::read_to_string("/proc/self/status").expect("read /proc/self/status");
    let mask = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).expect("CapPrm");
    let mask = u64::from_str_radix(mask, 16).expect("CapPrm is a number");
    let names = NAMES.split_whitespace().enumerate();
    names.filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, name)| format!("CAP_{name}")).collect()
}

/// Tests of all modes of a guest, each named after its mode: the job survives two checkpoints and restarts. `else` lists
/// the modes that have a test of their own.
#[macro_export]
macro_rules! modes_survive {
    ($guest:literal: $($mode:ident)* ; else $($other:literal)*) => {
        $(
            #[test]
            fn $mode() {
                $crate::job::Job::up($guest, &stringify!($mode).replace('_', "-")).survives();
            }
        )*

        #[test]
        fn no_mode_is_forgotten() {
            let mut tested = vec![$(stringify!($mode).replace('_', "-"),)* $($other.to_owned(),)*];
            let mut known = $crate::guests::modes($guest);
            tested.sort();
            known.sort();
            assert_eq!(tested, known);
        }
    };
}
