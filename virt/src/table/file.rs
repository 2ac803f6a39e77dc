//! table.json: written whole or not at all, and believed only after a check.

use super::bindings::Real;
use super::{Binding, Bindings, Error, HostTask, Id, Table};
use crate::{Doing, Failure};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::{BTreeSet, HashMap};
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The form of table.json that this ckrun writes and reads.
pub const FORMAT: u32 = 1;
/// The name of the file, in the state's directory and in an image.
pub const NAME: &str = "table.json";
/// The largest table.json that is read, as of any JSON in an image.
const MAX_SIZE: u64 = crate::image::MAX_JSON;
/// The longest name in a table, in bytes: PATH_MAX.
const MAX_NAME: usize = 4096;

/// Why there is no table to be had from a file.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is not what ckrun writes.
    #[error("{path}: {why}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        why: String,
    },
    /// It can't be read or written.
    #[error(transparent)]
    Call(#[from] Failure),
}

impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Table::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Table, D::Error> {
        let table = Table::deserialize(deserializer)?;
        table.check_form().map_err(D::Error::custom)?;
        table.check().map_err(D::Error::custom)?;
        Ok(table)
    }
}

impl Table {
    /// Reads `dir`/table.json; None when there is none.
    ///
    /// # Errors
    /// It can't be read, or is not a table.
    pub fn read(dir: &Path) -> Result<Option<Table>, Unreadable> {
        let path = dir.join(NAME);
        let doing = || format!("read {}", path.display());
        let damaged = |why: String| Unreadable::Damaged { path: path.clone(), why };
        // The directory may be somebody else's image: a link must not lead out of it, nor a FIFO hold us up.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.doing(doing)?,
        };
        let found = file.metadata().doing(doing)?;
        if !found.is_file() {
            return Err(damaged("it is not a regular file".into()));
        }
        let mut text = Vec::new();
        file.take(MAX_SIZE + 1).read_to_end(&mut text).doing(doing)?;
        if text.len() as u64 > MAX_SIZE {
            return Err(damaged(format!("it is larger than {} MiB", MAX_SIZE >> 20)));
        }
        serde_json::from_slice(&text).map(Some).map_err(|e| damaged(e.to_string()))
    }

    /// Puts the table in the place of `dir`/table.json.
    ///
    /// # Errors
    /// Some ids have yet to be bound ([`Table::awaited`]); the file can't be written.
    pub fn write(&self, dir: &Path) -> Result<(), Unreadable> {
        let (new, path) = (dir.join("table.json.new"), dir.join(NAME));
        let text = serde_json::to_vec(self)
            .map_err(|e| Unreadable::Damaged { path: path.clone(), why: e.to_string() })?;
        std::fs::write(&new, text).doing(|| format!("write {}", new.display()))?;
        std::fs::rename(&new, &path).doing(|| format!("write {}", path.display()))?;
        Ok(())
    }

    /// What a reader must see to, since nothing else can go wrong with it in a table of our own making.
    fn check_form(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("its format is {}, and this ckrun reads {FORMAT}", self.format));
        }
        let Some((now, past)) = self.generations.split_last() else {
            return Err("it has no generation".into());
        };
        if !self.generations.is_sorted_by(|a, b| a.number < b.number) {
            return Err("its generations are out of order".into());
        }
        if now.until.is_some() || past.iter().any(|generation| generation.until.is_none()) {
            return Err("all generations but the last must have ended".into());
        }
        let long = |text: &str| text.is_empty() || text.len() > MAX_NAME;
        if self.generations.iter().any(|g| long(&g.host) || long(&g.boot)) {
            return Err(format!("the host or the boot of a generation has no name of 1 to {MAX_NAME} bytes"));
        }
        for tasks in [&self.tasks, &self.sessions, &self.groups] {
            self.check_dates(tasks, |task| task.id > 0, |id| *id > 0)?;
        }
        let fits = |name: &crate::image::Bytes| !name.is_empty() && name.len() <= MAX_NAME;
        for names in [&self.sockets, &self.devices] {
            self.check_dates(names, fits, fits)?;
        }
        if self.vendors.iter().any(|(path, name)| !fits(path) || long(name)) {
            return Err(format!("a device has no vendor's name of 1 to {MAX_NAME} bytes"));
        }
        for (space, handles) in self.handles.iter() {
            if long(space) {
                return Err(format!("a name space of handles has no name of 1 to {MAX_NAME} bytes"));
            }
            self.check_dates(handles, |_| true, |_| true)?;
        }
        Ok(())
    }

    fn check_dates<R: Real>(
        &self,
        bindings: &Bindings<R>,
        real: impl Fn(&R) -> bool,
        id: impl Fn(&R::Key) -> bool,
    ) -> Result<(), String> {
        let now = self.generation();
        let wrong = |binding: &Binding<R>| Err(format!("a binding is out of place: {binding:?}"));
        for binding in bindings.bound() {
            let dated = binding.generation == now && binding.until.is_none();
            if !(dated && real(&binding.real) && id(&binding.id)) {
                return wrong(binding);
            }
        }
        for binding in bindings.former() {
            let dated = binding.generation <= now && binding.until.is_some();
            if !(dated && real(&binding.real) && id(&binding.id)) {
                return wrong(binding);
            }
        }
        Ok(())
    }

    /// That the parts of the table fit each other, and that its generations do.
    pub(super) fn check(&self) -> Result<(), Error> {
        let astray = |id, why| Err(Error::Astray { id, why });
        let mut threads = BTreeSet::new();
        for (process, own) in self.processes.iter() {
            if !own.contains(process) {
                return astray(Id::Process(*process), "its leader is missing");
            }
            for thread in own {
                if self.tasks.get(thread).is_none() {
                    return astray(Id::Thread(*thread), "it has no real id");
                }
                if !threads.insert(*thread) {
                    return Err(Error::Twice(Id::Thread(*thread)));
                }
            }
        }
        if let Some(task) = self.tasks.bound().find(|task| !threads.contains(&task.id)) {
            return astray(Id::Thread(task.id), "it belongs to no process");
        }
        for (&process, descriptors) in self.descriptors.iter() {
            for (&fd, description) in descriptors.iter() {
                let id = Id::Descriptor { process, fd };
                if fd < 0 || !self.processes.contains_key(&process) {
                    return astray(id, "there is no such process or descriptor");
                }
                if !self.descriptions.contains_key(description) {
                    return astray(id, "its description is missing");
                }
            }
        }
        self.check_anew(&self.tasks, Id::Thread)?;
        self.check_anew(&self.sessions, Id::Session)?;
        self.check_anew(&self.groups, Id::Group)
    }

    /// That no two generations share a real task: within one boot of a host, number and start name a task for good.
    fn check_anew(&self, tasks: &Bindings<HostTask>, name: impl Fn(i32) -> Id) -> Result<(), Error> {
        if tasks.former().next().is_none() {
            return Ok(());
        }
        let boots: HashMap<u32, &str> =
            self.generations.iter().map(|g| (g.number, g.boot.as_str())).collect();
        let mut lived: HashMap<(&str, HostTask), u32> = HashMap::new();
        for binding in tasks.former().chain(tasks.bound()) {
            let Some(boot) = boots.get(&binding.generation) else { continue };
            let generation = *lived.entry((boot, binding.real)).or_insert(binding.generation);
            if generation != binding.generation {
                return Err(Error::Old { id: name(binding.id), real: name(binding.real.id), generation });
            }
        }
        Ok(())
    }
}
