//! Processes and cgroups of somebody else, which ckrun must leave alone.

use crate::pipes::{await_end, pidfd};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// A process of somebody else.
#[derive(Debug)]
pub struct Bystander(Child);

impl Bystander {
    /// It sleeps.
    #[expect(clippy::new_without_default, reason = "a new process is nobody's default")]
    pub fn new() -> Bystander {
        Bystander(Command::new("sleep").arg("1000").spawn().expect("spawn sleep"))
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    /// It lives and is neither stopped nor frozen: it still dies of a signal that it can act upon itself.
    pub fn survives(mut self) {
        assert_eq!(self.0.try_wait().expect("wait for a bystander"), None);
        // SAFETY: a signal for a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(self.pid(), libc::SIGTERM) }, 0);
        await_end(pidfd(self.pid()));
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cgroup of the test's own, in one hierarchy.
#[derive(Debug)]
pub struct OwnCgroup(PathBuf);

impl OwnCgroup {
    /// Where a process can be put without settings: the freezer's hierarchy or, on a pure cgroup2, the only one.
    fn mount() -> PathBuf {
        let v1 = PathBuf::from("/sys/fs/cgroup/freezer");
        if v1.join("cgroup.procs").exists() { v1 } else { "/sys/fs/cgroup".into() }
    }

    /// Makes it, below the root.
    pub fn new(name: &str) -> OwnCgroup {
        let path = Self::mount().join(name);
        fs::create_dir(&path).expect("make a cgroup");
        OwnCgroup(path)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where its processes are listed.
    pub fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    /// Takes in a process.
    pub fn take(&self, pid: i32) {
        fs::write(self.procs(), pid.to_string()).expect("move a process into a cgroup");
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        // What is in it are children of the test, which have ended or are brought home.
        for pid in fs::read_to_string(self.procs()).unwrap_or_default().lines() {
            let _ = fs::write(Self::mount().join("cgroup.procs"), pid);
        }
        // A container below it got the same place in the other hierarchies, whose upper directories stay.
        for dir in everywhere(self.0.strip_prefix(Self::mount()).expect("below the mount")) {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// The cgroups of this name in all hierarchies.
pub fn everywhere(name: impl AsRef<Path>) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").expect("/sys/fs/cgroup").flatten().map(|e| e.path());
    let all = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(|h| h.join(&name));
    all.filter(|path| path.join("cgroup.procs").exists()).collect()
}
