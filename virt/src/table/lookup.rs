//! Questions to the table: what stands for what, line by line, now and before.

use super::bindings::Real;
use super::{Binding, Bindings, Generation, HostTask, Id, Table, Time};
use crate::image::Bytes;
use serde::{Serialize, Serializer};

/// A line of the table: one id, both ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<'a> {
    /// The job's name.
    pub id: Id,
    /// The host's.
    pub real: Id,
    /// When the real thing started, see [`HostTask::started`].
    pub started: Option<u64>,
    /// The generation in which they were bound.
    pub generation: u32,
    /// Where that was; None when it is no longer remembered.
    pub place: Option<&'a Generation>,
    /// Since when.
    pub since: Time,
    /// Until when; None while it holds.
    pub until: Option<Time>,
    /// A descriptor's description, and what that is.
    pub description: Option<(u32, &'a Bytes)>,
}

impl Serialize for Row<'_> {
    /// Everything about the line in one flat object.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Flat<'a> {
            r#virtual: &'a Id,
            real: &'a Id,
            #[serde(skip_serializing_if = "Option::is_none")]
            started: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            description: Option<u32>,
            #[serde(skip_serializing_if = "Option::is_none")]
            what: Option<&'a Bytes>,
            generation: u32,
            host: Option<&'a str>,
            boot: Option<&'a str>,
            since: Time,
            #[serde(skip_serializing_if = "Option::is_none")]
            until: Option<Time>,
        }
        let flat = Flat {
            r#virtual: &self.id,
            real: &self.real,
            started: self.started,
            description: self.description.map(|(number, _)| number),
            what: self.description.map(|(_, what)| what),
            generation: self.generation,
            host: self.place.map(|place| place.host.as_str()),
            boot: self.place.map(|place| place.boot.as_str()),
            since: self.since,
            until: self.until,
        };
        flat.serialize(serializer)
    }
}

impl Table {
    /// What the job's `id` stands for on this host; None when the job has no such thing.
    pub fn to_real(&self, id: &Id) -> Option<Row<'_>> {
        match id {
            Id::Process(pid) if !self.processes.contains_key(pid) => None,
            Id::Process(pid) => Some(self.row(self.tasks.get(pid)?, Id::Process)),
            Id::Thread(tid) => Some(self.row(self.tasks.get(tid)?, Id::Thread)),
            Id::Session(sid) => Some(self.row(self.sessions.get(sid)?, Id::Session)),
            Id::Group(pgid) => Some(self.row(self.groups.get(pgid)?, Id::Group)),
            Id::Descriptor { process, fd } => self.descriptor(*process, *fd),
            Id::Socket(address) => Some(self.row(self.sockets.get(address)?, Id::Socket)),
            Id::Device(path) => Some(self.row(self.devices.get(path)?, Id::Device)),
            Id::Handle { space, number } => {
                Some(self.row(self.handles.get(space)?.get(number)?, handle(space)))
            }
        }
    }

    /// What stands in the job for this host's `real`; None when nothing does.
    pub fn to_virtual(&self, real: &Id) -> Option<Row<'_>> {
        let id = match real {
            Id::Process(pid) => Id::Process(self.tasks.of_real(pid)?.id),
            Id::Thread(tid) => Id::Thread(self.tasks.of_real(tid)?.id),
            Id::Session(sid) => Id::Session(self.sessions.of_real(sid)?.id),
            Id::Group(pgid) => Id::Group(self.groups.of_real(pgid)?.id),
            Id::Descriptor { process, fd } => {
                Id::Descriptor { process: self.tasks.of_real(process)?.id, fd: *fd }
            }
            Id::Socket(address) => Id::Socket(self.sockets.of_real(address)?.id.clone()),
            Id::Device(path) => Id::Device(self.devices.of_real(path)?.id.clone()),
            Id::Handle { space, number } => {
                Id::Handle { space: space.clone(), number: self.handles.get(space)?.of_real(number)?.id }
            }
        };
        self.to_real(&id)
    }

    /// Everything that is bound: each process with its threads, sessions, groups, descriptors, sockets, devices, handles.
    pub fn rows(&self) -> Vec<Row<'_>> {
        let mut rows = Vec::new();
        for (process, threads) in self.processes.iter() {
            rows.extend(self.to_real(&Id::Process(*process)));
            let others = threads.iter().filter(|thread| *thread != process);
            rows.extend(others.filter_map(|thread| self.to_real(&Id::Thread(*thread))));
        }
        rows.extend(self.sessions.bound().map(|binding| self.row(binding, Id::Session)));
        rows.extend(self.groups.bound().map(|binding| self.row(binding, Id::Group)));
        for (process, descriptors) in self.descriptors.iter() {
            rows.extend(descriptors.keys().filter_map(|fd| self.descriptor(*process, *fd)));
        }
        rows.extend(self.sockets.bound().map(|binding| self.row(binding, Id::Socket)));
        rows.extend(self.devices.bound().map(|binding| self.row(binding, Id::Device)));
        for (space, handles) in self.handles.iter() {
            rows.extend(handles.bound().map(|binding| self.row(binding, handle(space))));
        }
        rows
    }

    /// What was bound before, by kind and the oldest first. Of descriptors there is no history: their real names are those
    /// of their processes.
    pub fn former(&self) -> Vec<Row<'_>> {
        let task = |binding: &Binding<HostTask>| match self.task(binding.id) {
            Id::Process(_) => self.row(binding, Id::Process),
            _ => self.row(binding, Id::Thread),
        };
        let mut rows: Vec<Row<'_>> = self.tasks.former().map(task).collect();
        rows.extend(self.sessions.former().map(|binding| self.row(binding, Id::Session)));
        rows.extend(self.groups.former().map(|binding| self.row(binding, Id::Group)));
        rows.extend(self.sockets.former().map(|binding| self.row(binding, Id::Socket)));
        rows.extend(self.devices.former().map(|binding| self.row(binding, Id::Device)));
        for (space, handles) in self.handles.iter() {
            rows.extend(handles.former().map(|binding| self.row(binding, handle(space))));
        }
        rows
    }

    /// How many former bindings are no longer remembered.
    pub fn forgotten(&self) -> u64 {
        let tasks = [&self.tasks, &self.sessions, &self.groups].map(Bindings::forgotten);
        let names = [&self.sockets, &self.devices].map(Bindings::forgotten);
        let handles = self.handles.values().map(Bindings::forgotten);
        tasks.into_iter().chain(names).chain(handles).fold(0, u64::saturating_add)
    }

    fn descriptor(&self, process: i32, fd: i32) -> Option<Row<'_>> {
        let description = *self.descriptors.get(&process)?.get(&fd)?;
        let named = |process| Id::Descriptor { process, fd };
        let row = self.row(self.tasks.get(&process)?, named);
        Some(Row { description: Some((description, self.descriptions.get(&description)?)), ..row })
    }

    fn row<R: Real>(&self, binding: &Binding<R>, name: impl Fn(R::Key) -> Id) -> Row<'_> {
        Row {
            id: name(binding.id.clone()),
            real: name(binding.real.key()),
            started: binding.real.started(),
            generation: binding.generation,
            place: self.generations.iter().rfind(|generation| generation.number == binding.generation),
            since: binding.since,
            until: binding.until,
            description: None,
        }
    }
}

fn handle(space: &str) -> impl Fn(u64) -> Id {
    move |number| Id::Handle { space: space.to_owned(), number }
}
