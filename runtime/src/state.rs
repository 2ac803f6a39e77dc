//! What ckrun remembers of a container between two verbs.
//!
//! ```text
//! ROOT/ID/              0700; an exclusive flock(2) on it is held by the verb that changes the container
//!     state.json        [`State`], replaced as a whole (rename)
//!     config.json       the configuration as it was carried out, device specs included
//!     start             a socket; it exists as long as the init waits for `ckrun start`
//!     supervisor.json   of a job with plugins, and some more files: see [`crate::supervisor`]
//! ```
//!
//! Whether a container runs is never written down: it is asked of the kernel, so that no crash can make it wrong.

use crate::cgroup::Cgroups;
use crate::config::read_json;
use crate::error::{Error, Result};
use crate::sandbox::intel_rdt::Group;
use crate::status::Status;
use crate::user::is_host_root;
use ckrun_virt::image::Bytes;
use ckrun_virt::proc::Stat;
use ckrun_virt::{Doing, Process};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;
use oci_spec::runtime::{Spec, State as OciState};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The runtime-spec that ckrun carries out.
pub const OCI_VERSION: &str = "1.3.0";

/// The init process, named so that a reused id is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitProcess {
    /// Its id in ckrun's pid namespace.
    pub pid: i32,
    /// When it started, see [`Stat::started`].
    pub started: u64,
}

/// One container's memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Its name.
    pub id: String,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The root file system, absolute.
    pub rootfs: PathBuf,
    /// RFC 3339, in nanoseconds, UTC.
    pub created: String,
    /// Of config.json.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<HashMap<String, String>>,
    /// The user who made it.
    pub owner: u32,
    /// None until the clone.
    pub init: Option<InitProcess>,
    /// Its cgroups, from before they are made.
    pub cgroups: Cgroups,
    /// Its resctrl groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdt: Option<Group>,
    /// What of the host is where in the container by `--map` or a vendor's description, for the first start of a job: path in the container, path
    /// on the host. Of one that was restored the table knows more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<(PathBuf, PathBuf)>,
    /// The vendors' names for some of it, by their paths in the container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vendors: BTreeMap<Bytes, String>,
    /// In the same way the addresses of sockets: the job's name, the address on the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<(Bytes, Bytes)>,
    /// The job has plugins, and a supervisor for them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub supervised: bool,
    /// The container has a session keyring of its own.
    pub own_keyring: bool,
    /// ckrun ran without the host's root.
    pub rootless: bool,
}

impl State {
    /// The init, if it still runs.
    pub fn process(&self) -> Option<Process> {
        let init = self.init?;
        Process::open(Pid::from_raw(init.pid), init.started)
    }

    /// The state as seccomp agents read it (runtime-spec, "State").
    pub fn for_agents(&self, status: Status) -> OciState {
        let mut state = OciState::default();
        state
            .set_version(OCI_VERSION.into())
            .set_id(self.id.clone())
            .set_status(status.into())
            .set_pid(Some(if status == Status::Stopped { 0 } else { self.init.map_or(0, |i| i.pid) }))
            .set_bundle(self.bundle.clone())
            .set_annotations(Some(self.annotations.clone().unwrap_or_default()));
        state
    }

    /// The same as JSON, for hooks.
    pub fn for_hooks(&self, status: Status) -> String {
        serde_json::to_string(&self.for_agents(status)).unwrap_or_default()
    }
}

/// The directory of all containers (`--root`).
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// One container's directory.
#[derive(Debug)]
pub struct Entry {
    /// The container's id.
    pub id: String,
    dir: PathBuf,
    lock: Option<Flock<File>>,
}

impl Store {
    /// The store at `root` or, by default, /run/ckrun; for a user who is not the host's root, below their XDG_RUNTIME_DIR.
    pub fn new(root: Option<PathBuf>) -> Store {
        let own = || std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !is_host_root()).map(PathBuf::from);
        Store { dir: root.unwrap_or_else(|| own().unwrap_or_else(|| "/run".into()).join("ckrun")) }
    }

    /// The directory that they are in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes an id: makes its directory and holds its lock. A directory in which nothing was written yet, and which nobody
    /// holds, was left by a ckrun that was killed at this very point: it is taken over.
    ///
    /// # Errors
    /// [`Error::IdTaken`]; the store can't be written.
    pub fn claim(&self, id: &str) -> Result<Entry> {
        check_id(id)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.dir)
            .map_err(|e| Error::file(&self.dir, &e))?;
        let mut entry = Entry { id: id.into(), dir: self.dir.join(id), lock: None };
        match DirBuilder::new().mode(0o700).create(&entry.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                if !entry.abandoned() || entry.busy() {
                    return Err(Error::IdTaken(id.into()));
                }
            }
            made => made.map_err(|e| Error::file(&entry.dir, &e))?,
        }
        entry.lock()?;
        // Somebody else may have been faster since: whoever was is the owner.
        if entry.abandoned() { Ok(entry) } else { Err(Error::IdTaken(id.into())) }
    }

    /// Finds an existing container.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`].
    pub fn find(&self, id: &str) -> Result<Entry> {
        check_id(id)?;
        let entry = Entry { id: id.into(), dir: self.dir.join(id), lock: None };
        if entry.dir.is_dir() { Ok(entry) } else { Err(Error::NoSuchContainer(id.into())) }
    }

    /// Every container, sorted by id.
    pub fn all(&self) -> Result<Vec<Entry>> {
        let listing = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|e| Error::file(&self.dir, &e))?,
        };
        let mut ids: Vec<String> =
            listing.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        ids.sort();
        Ok(ids.iter().filter_map(|id| self.find(id).ok()).collect())
    }
}

/// What runc allows, so that clients' ids work: letters, digits and `_+-.`.
fn check_id(id: &str) -> Result<()> {
    let invalid = |why| Err(Error::InvalidId { id: id.into(), why });
    if id.is_empty() {
        return invalid("it is empty");
    }
    if id.len() > 255 {
        return invalid("it is longer than a file name can be (255 bytes)");
    }
    if id == "." || id == ".." || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-.".contains(&b)) {
        return invalid("an id is made of letters, digits and any of _ + - .");
    }
    Ok(())
}

impl Entry {
    /// Waits for and holds the lock until the entry is dropped. The kernel gives it back when ckrun is killed.
    pub fn lock(&mut self) -> Result<()> {
        let dir = File::open(&self.dir).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::NoSuchContainer(self.id.clone()),
            _ => Error::file(&self.dir, &e),
        })?;
        let locked = Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, e)| e);
        self.lock = Some(locked.doing(|| format!("lock {}", self.dir.display()))?);
        Ok(())
    }

    /// The lock, for a process that is to hold it together with this one.
    pub fn held(&self) -> Option<BorrowedFd<'_>> {
        self.lock.as_ref().map(|lock| lock.as_fd())
    }

    /// Whether the directory is there and nothing was written to it.
    fn abandoned(&self) -> bool {
        std::fs::read_dir(&self.dir).is_ok_and(|mut listing| listing.next().is_none())
    }

    /// Gives the lock back.
    pub fn unlock(&mut self) {
        self.lock = None;
    }

    fn busy(&self) -> bool {
        let Ok(dir) = File::open(&self.dir) else { return false };
        self.lock.is_none() && Flock::lock(dir, FlockArg::LockExclusiveNonblock).is_err()
    }

    /// Reads the state. None when `create` was killed before it wrote any.
    pub fn load(&self) -> Result<Option<State>> {
        match read_json(&self.dir.join("state.json")) {
            Err(Error::File { errno: nix::errno::Errno::ENOENT, .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Reads the state of a container that has one.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`] when it is only beginning to be made.
    pub fn state(&self) -> Result<State> {
        self.load()?.ok_or_else(|| Error::NoSuchContainer(self.id.clone()))
    }

    /// Replaces the state.
    pub fn save(&self, state: &State) -> Result<()> {
        let text = serde_json::to_vec(state)
            .map_err(|e| Error::Json { path: self.dir.clone(), why: e.to_string() })?;
        let (new, path) = (self.dir.join("state.json.new"), self.dir.join("state.json"));
        std::fs::write(&new, text).map_err(|e| Error::file(&new, &e))?;
        std::fs::rename(&new, &path).map_err(|e| Error::file(&path, &e))
    }

    /// The configuration as it was carried out, as JSON.
    pub fn config(&self) -> Result<Vec<u8>> {
        let path = self.dir.join("config.json");
        std::fs::read(&path).map_err(|e| Error::file(&path, &e))
    }

    /// The configuration as it was carried out.
    pub fn spec(&self) -> Result<Spec> {
        read_json(&self.dir.join("config.json"))
    }

    /// Keeps the configuration for later verbs.
    pub fn save_spec(&self, json: &[u8]) -> Result<()> {
        let path = self.dir.join("config.json");
        std::fs::write(&path, json).map_err(|e| Error::file(&path, &e))
    }

    /// The socket at which the init waits.
    pub fn start_socket(&self) -> PathBuf {
        self.dir.join("start")
    }

    /// The container's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the container is in its life, from what the kernel says now.
    pub fn status(&self, state: &State) -> Result<Status> {
        let Some(init) = state.init else {
            return Ok(if self.busy() { Status::Creating } else { Status::Stopped });
        };
        let alive =
            Stat::of(Pid::from_raw(init.pid)).is_some_and(|s| s.started == init.started && !s.ended());
        Ok(if !alive {
            Status::Stopped
        } else if state.cgroups.frozen()? {
            Status::Paused
        } else if self.start_socket().exists() {
            Status::Created
        } else {
            Status::Running
        })
    }

    /// Forgets the container.
    pub fn remove(self) -> Result<()> {
        match std::fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file(&self.dir, &e)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// Tries until it succeeds: a child that another test has forked at the wrong moment holds a lock until it ends.
    fn soon<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(success) = attempt() {
                return success;
            }
            assert!(Instant::now() < deadline, "a lock outlives its holder");
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_id_can_not_leave_the_store() {
        for bad in ["", ".", "..", "a/b", "a b", "../x", "ä"] {
            assert!(matches!(check_id(bad), Err(Error::InvalidId { .. })), "{bad:?}");
        }
        check_id("web_1.a+b-c").unwrap();
    }

    #[test]
    fn an_id_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Some(dir.path().join("root")));
        let entry = store.claim("a").unwrap();
        assert!(matches!(store.claim("a"), Err(Error::IdTaken(_))));
        entry.remove().unwrap();
        assert!(matches!(store.find("a"), Err(Error::NoSuchContainer(_))));
        store.claim("a").unwrap();
    }

    #[test]
    fn an_id_that_was_hardly_taken_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Some(dir.path().into()));
        // Its maker holds it, and has written nothing yet.
        let entry = store.claim("a").unwrap();
        assert!(matches!(store.claim("a"), Err(Error::IdTaken(_))));
        drop(entry);
        let entry = soon(|| store.claim("a").ok());
        entry.save_spec(b"{}").unwrap();
        drop(entry);
        assert!(matches!(store.claim("a"), Err(Error::IdTaken(_))));
    }

    #[test]
    fn the_lock_of_a_dead_creator_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Some(dir.path().into()));
        let entry = store.claim("a").unwrap();
        assert!(store.find("a").unwrap().busy());
        drop(entry);
        soon(|| (!store.find("a").unwrap().busy()).then_some(()));
    }
}
