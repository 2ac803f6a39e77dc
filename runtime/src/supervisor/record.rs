//! What the supervisor leaves in the container's directory: enough to start another one, and to tell how the plugins are.
//! It is replaced as a whole (rename) whenever it has changed.

use super::names;
use crate::error::{Error, Result};
use crate::intercept::names::Name;
use crate::intercept::{self, Route};
use crate::plugin::Asked;
use crate::plugin::area::Area;
use crate::plugin::manifest::{Manifest, proper};
use crate::sandbox::seccomp::Filter;
use crate::state::InitProcess;
use ckrun_plugin::binding::{Address, Ioctl};
use ckrun_plugin::{Binding, Event, Job, Reason};
use ckrun_virt::image::{self, Bytes};
use ckrun_virt::table::{Id, Row, Table, Time};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The file of an image that tells of plugins.
pub const IN_IMAGE: &str = "plugins.json";

/// A plugin of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plugin {
    /// How it was asked for.
    pub asked: Asked,
    /// How it is started on this host.
    pub manifest: Manifest,
    /// What it says of itself.
    #[serde(default)]
    pub version: String,
    /// How many seconds it wants for `exit`.
    #[serde(default)]
    pub exit: Option<f64>,
    /// Its process.
    #[serde(default)]
    pub process: Option<InitProcess>,
    /// Why it can't be used any more.
    #[serde(default)]
    pub gone: Option<String>,
    /// The bindings in force, handles among them; before a restart those at the checkpoint.
    #[serde(default)]
    pub bindings: Vec<Binding>,
    /// The ioctls that it has claimed.
    #[serde(default)]
    pub ioctls: Vec<Ioctl>,
    /// What it needs at a restart.
    #[serde(default)]
    pub requirements: Map<String, Value>,
    /// Its keys and values.
    #[serde(default)]
    pub area: Area,
    /// The last event that has ended, and how many seconds it took.
    #[serde(default)]
    pub last: Option<(Event, f64)>,
}

/// What an image has of a plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// How it was asked for.
    pub plugin: Asked,
    /// What it needs at a restart, by its own names.
    #[serde(default)]
    pub requirements: Map<String, Value>,
    /// The bindings at the checkpoint.
    #[serde(default)]
    pub bindings: Vec<Binding>,
    /// Its keys and values.
    #[serde(default)]
    pub area: Area,
}

/// Where the job is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// A verb makes it.
    #[default]
    Making,
    /// It needs no verb.
    Lives,
    /// A checkpoint is under way.
    Checkpoint {
        /// Its image is complete.
        committed: bool,
    },
    /// Its image has taken its place.
    Doomed,
    /// It is gone, and the plugins have been told.
    Over,
}

/// The socket of a job that may speak with the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSocket {
    /// The name that the kernel has for it.
    pub name: String,
    /// Where the images go that the job asks for.
    pub images: PathBuf,
}

/// The whole of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The job.
    pub job: Job,
    /// Its first process, when there is one.
    #[serde(default)]
    pub init: Option<InitProcess>,
    /// The plugins, in the order in which they were given.
    pub plugins: Vec<Plugin>,
    /// The socket at which the job can speak with the supervisor.
    #[serde(default)]
    pub job_api: Option<JobSocket>,
    /// Where what the job connects to is.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// The event that is under way.
    #[serde(default)]
    pub event: Option<Event>,
    /// The plugins have been told that the job is gone.
    #[serde(default)]
    pub over: Option<Reason>,
    /// Where the job is.
    #[serde(default)]
    pub stage: Stage,
    /// The supervisor's keeper.
    #[serde(default)]
    pub keeper: Option<InitProcess>,
    /// How often a supervisor of this job was killed, and another one has taken over.
    #[serde(default)]
    pub killed: u32,
    /// What the next verb is to say of that.
    #[serde(default)]
    pub news: Vec<String>,
    /// By which of several names the job has connected a socket, by the socket's cookie.
    #[serde(default)]
    pub used: BTreeMap<u64, Name>,
    /// By which name the job knows its own end of a connection that a restart has made anew, by the socket's cookie.
    #[serde(default)]
    pub locals: BTreeMap<u64, Name>,
}

impl Plugin {
    /// One that has not been started.
    pub fn new(asked: Asked, manifest: Manifest) -> Plugin {
        Plugin {
            asked,
            manifest,
            version: String::new(),
            exit: None,
            process: None,
            gone: None,
            bindings: Vec::new(),
            ioctls: Vec::new(),
            requirements: Map::new(),
            area: Area::default(),
            last: None,
        }
    }

    /// Its name in the job.
    pub fn name(&self) -> &str {
        &self.asked.name
    }

    /// What an image is to have of it.
    pub fn saved(&self) -> Saved {
        Saved {
            plugin: self.asked.clone(),
            requirements: self.requirements.clone(),
            bindings: self.bindings.clone(),
            area: self.area.clone(),
        }
    }
}

impl Record {
    /// Of a job of which nothing else is known.
    pub fn new(job: Job, plugins: Vec<Plugin>) -> Record {
        Record {
            job,
            init: None,
            plugins,
            job_api: None,
            routes: Vec::new(),
            event: None,
            over: None,
            stage: Stage::Making,
            keeper: None,
            killed: 0,
            news: Vec::new(),
            used: BTreeMap::new(),
            locals: BTreeMap::new(),
        }
    }

    /// Reads that of the container in `home`; None if it has none.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Json`].
    pub fn read(home: &Path) -> Result<Option<Record>> {
        let path = home.join(names::RECORD);
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Error::file(&path, &e))?,
        };
        let mut record: Record =
            serde_json::from_slice(&text).map_err(|e| Error::Json { path, why: e.to_string() })?;
        for plugin in &mut record.plugins {
            plugin.named();
        }
        Ok(Some(record))
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write(&self, home: &Path) -> Result<()> {
        let (path, new) = (home.join(names::RECORD), home.join("supervisor.json.new"));
        let text =
            serde_json::to_vec(self).map_err(|e| Error::Json { path: path.clone(), why: e.to_string() })?;
        std::fs::write(&new, text).map_err(|e| Error::file(&new, &e))?;
        std::fs::rename(&new, &path).map_err(|e| Error::file(&path, &e))
    }

    /// The plugin of that name.
    pub fn plugin(&mut self, name: &str) -> Option<&mut Plugin> {
        self.plugins.iter_mut().find(|plugin| plugin.asked.name == name)
    }

    /// Every binding in force, with its owner.
    pub fn bindings(&self) -> impl Iterator<Item = (&str, &Binding)> {
        self.plugins
            .iter()
            .flat_map(|plugin| plugin.bindings.iter().map(move |binding| (plugin.name(), binding)))
    }

    /// The addresses of the ends that [`Record::locals`] names.
    pub fn ends(&self) -> BTreeMap<u64, SocketAddr> {
        let address = |(cookie, name): (&u64, &Name)| match name {
            Name::Inet(address) => Some((*cookie, *address)),
            _ => None,
        };
        self.locals.iter().filter_map(address).collect()
    }

    /// The filter that the job's first process has for the sake of what the supervisor answers.
    pub fn filter(&self) -> Option<Filter> {
        intercept::filter(!self.routes.is_empty(), self.plugins.iter().flat_map(|plugin| &plugin.ioctls))
    }

    /// Takes the bindings of plugins over into a table.
    ///
    /// # Errors
    /// Two virtual names for one real.
    pub fn show(&self, table: &mut Table) -> Result<()> {
        let (now, ids) = (Time::now(), self.ids());
        // Numbers that have been taken back, or stand for others: these may have gone over from one to another.
        let stale =
            |row: &Row<'_>| matches!(row.id, Id::Handle { .. }) && ids.get(&row.id) != Some(&row.real);
        let stale: Vec<Id> = table.rows().into_iter().filter(stale).map(|row| row.id).collect();
        for id in stale {
            table.unbind(&id, now);
        }
        for (id, real) in ids {
            if table.to_real(&id).is_none_or(|row| row.real != real) {
                table.bind(&id, &real, now)?;
            }
        }
        Ok(())
    }

    /// What the names are in a table.
    fn ids(&self) -> BTreeMap<Id, Id> {
        self.bindings().filter_map(|(_, binding)| in_table(binding)).collect()
    }
}

impl Plugin {
    /// Its manifest does not tell its name when it is written.
    pub(super) fn named(&mut self) {
        self.manifest.name.clone_from(&self.asked.name);
    }
}

/// A binding as a table has it; None for one whose real name nobody knows.
pub fn in_table(binding: &Binding) -> Option<(Id, Id)> {
    use ckrun_plugin::Real;
    let name = |real: &Real| match real {
        Real::Name(name) => Some(name.as_bytes().into()),
        Real::Fd(_) => None,
    };
    Some(match binding {
        Binding::Device { virtual_path, real } | Binding::Memory { virtual_path, real } => {
            (Id::Device(virtual_path.as_bytes().into()), Id::Device(name(real)?))
        }
        Binding::Socket { virtual_address, real } => {
            let Real::Name(real) = real else { return None };
            (Id::Socket(socket_name(virtual_address)), Id::Socket(socket_name(&real.parse().ok()?)))
        }
        Binding::Handle { space, virtual_number, real_number } => (
            Id::Handle { space: space.clone(), number: *virtual_number },
            Id::Handle { space: space.clone(), number: *real_number },
        ),
    })
}

/// An address as tables have it: without the word for its family.
pub fn socket_name(address: &Address) -> Bytes {
    match address {
        Address::Tcp(host, port) => format!("{host}:{port}").into(),
        Address::Unix(path) => path.as_str().into(),
        Address::Abstract(name) => format!("@{name}").into(),
    }
}

/// The plugins of an image, in their order; none if its job had none.
///
/// # Errors
/// It can't be read, or is damaged.
pub fn of_image(image: &image::Image) -> Result<Vec<Saved>> {
    if !image.has(IN_IMAGE) {
        return Ok(Vec::new());
    }
    let all: Vec<Saved> = image.json(IN_IMAGE)?;
    let wrong = |why: &str| Error::Json { path: image.dir().join(IN_IMAGE), why: why.into() };
    if all.len() > super::PLUGINS {
        return Err(wrong("more plugins than a job can have"));
    }
    let mut names = BTreeSet::new();
    for saved in &all {
        // It becomes a part of paths.
        if proper(&saved.plugin.name).is_err() || !names.insert(&saved.plugin.name) {
            return Err(wrong("names of plugins that no job has"));
        }
    }
    Ok(all)
}
