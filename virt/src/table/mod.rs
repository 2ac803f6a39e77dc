//! The translation table: what the job's names stand for on this host, now and before.
//!
//! ```text
//!          the job sees                 the table                          this host has
//!     pid 7, thread 8            tasks: 7 ↔ (48211, started 9911)       host tasks 48211, 48213
//!     session 1, group 7         sessions, groups, likewise             host ids
//!     fd 5 of process 7          descriptors: (7, 5) → description 3    fd 5 of host process 48211
//!                                descriptions: 3 → /dev/pts/9
//!     /dev/emu0, emu:4000        devices, sockets: ↔                    /dev/pts/9, 10.0.0.7:5011
//!     a vendor's handle 3        handles: NAME: 3 ↔                     77
//! ```
//!
//! A virtual id never changes in the job's life. A real one holds for one *generation*: [`Table::rebind`] begins the next,
//! moves every binding into the history, and waits for each id to be bound anew ([`Table::awaited`]). Tasks, sessions,
//! groups and descriptors are the kernel's: they are bound by [`Table::observe`]. Sockets, devices and handles belong to
//! plugins and rules: they are bound one by one by [`Table::bind`].
//!
//! The checkpoint's story: [`Table::read`] what the state's directory holds (or [`Table::new`]), [`Table::observe`], and
//! write the table into the image. The restart's: read it from the image, [`Table::rebind`], [`Table::bind`] what the
//! plugins answer, [`Table::observe`] the tasks that were made, see that nothing is awaited, [`Table::write`] it into the
//! state's directory.
//!
//! - [`id`]: how ids are written; [`bindings`]: the map of one kind; [`generation`], [`time`]: where and when;
//! - [`lookup`]: questions to it, in either direction;
//! - [`file`]: table.json, written and read; [`live`]: what is seen of a job;
//! - [`rules`]: real paths for virtual ones, by prefix.

pub mod bindings;
pub mod file;
pub mod generation;
pub mod id;
pub mod live;
pub mod lookup;
pub mod rules;
#[cfg(test)]
mod tests;
pub mod time;
mod unique;

pub use bindings::{Binding, Bindings, HostTask};
pub use file::Unreadable;
pub use generation::Generation;
pub use id::Id;
pub use lookup::Row;
pub use time::Time;

use crate::image::Bytes;
use bindings::Clash;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use unique::Unique;

/// How many generations are remembered, the living one included.
pub const KEPT_GENERATIONS: usize = 1024;

/// The map between a job's names and this host's. See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, rename_all = "kebab-case")]
pub struct Table {
    format: u32,
    /// When the job was last looked at.
    observed: Time,
    /// The oldest first; the last one lives. Never empty.
    generations: Vec<Generation>,
    forgotten_generations: u64,
    tasks: Bindings<HostTask>,
    sessions: Bindings<HostTask>,
    groups: Bindings<HostTask>,
    /// Each process's threads, its leader among them.
    processes: Unique<i32, BTreeSet<i32>>,
    /// Process → descriptor → description.
    descriptors: Unique<i32, Unique<i32, u32>>,
    descriptions: Unique<u32, Bytes>,
    sockets: Bindings<Bytes>,
    devices: Bindings<Bytes>,
    /// Vendors' names for devices (CDI), by the job's paths: in this generation or, if they are awaited, in the last.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    vendors: BTreeMap<Bytes, String>,
    handles: Unique<String, Bindings<u64>>,
}

/// What is seen of a job at one moment.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The moment by the wall clock at which this host was booted, if known: bindings of tasks begin with the tasks, and
    /// not with the first look at them.
    pub booted: Option<Time>,
    /// Every thread of every process.
    pub tasks: Vec<SeenTask>,
    /// Every descriptor.
    pub descriptors: Vec<SeenDescriptor>,
    /// What each description is, for people: a path, `pipe:[4711]`. Its number is the job's, made up at its first sight.
    pub descriptions: BTreeMap<u32, Bytes>,
}

/// A thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenTask {
    /// Its process's id in the job.
    pub process: i32,
    /// Its own.
    pub thread: i32,
    /// The host's id for it, and its start.
    pub host: HostTask,
    /// Its session.
    pub session: Pair,
    /// Its process group.
    pub group: Pair,
}

/// An id in the job and on the host; 0 in the job when its leader is outside of the job's pid namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// The job's id.
    pub id: i32,
    /// The host's.
    pub host: i32,
}

/// A descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenDescriptor {
    /// Its process's id in the job.
    pub process: i32,
    /// Its number.
    pub fd: i32,
    /// The open file description that it leads to.
    pub description: u32,
}

/// A binding that the table can't take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Two virtual ids for one real.
    #[error("{id} can't stand for the host's {real}: {other} does")]
    Taken {
        /// The id to be bound.
        id: Id,
        /// The real one.
        real: Id,
        /// Who has it.
        other: Id,
    },
    /// A thing that was seen twice.
    #[error("{0} occurs twice")]
    Twice(Id),
    /// A task that lived in an earlier generation can't live in this one.
    #[error("{id} is the host's {real}, as in generation {generation}: the job was not made anew")]
    Old {
        /// The id to be bound.
        id: Id,
        /// The real one.
        real: Id,
        /// When it had it.
        generation: u32,
    },
    /// A descriptor of no process, or with no description.
    #[error("{id}: {why}")]
    Astray {
        /// The descriptor or thread.
        id: Id,
        /// What is missing.
        why: &'static str,
    },
    /// The ids are not of one kind, or of a kind that the kernel hands out.
    #[error(
        "{id} can't be bound to {real}: only a socket to a socket, a device to a device, a handle to a handle of its space"
    )]
    Kind {
        /// The id to be bound.
        id: Id,
        /// The real one.
        real: Id,
    },
    /// A restart that does not go forward.
    #[error("generation {new} can't follow generation {old}")]
    Generation {
        /// The one that lives.
        old: u32,
        /// The one to begin.
        new: u32,
    },
}

impl Table {
    /// An empty table for a job that lives at `generation`.
    pub fn new(generation: Generation) -> Table {
        Table {
            format: file::FORMAT,
            observed: generation.since,
            generations: vec![generation],
            forgotten_generations: 0,
            tasks: Bindings::default(),
            sessions: Bindings::default(),
            groups: Bindings::default(),
            processes: Unique::default(),
            descriptors: Unique::default(),
            descriptions: Unique::default(),
            sockets: Bindings::default(),
            devices: Bindings::default(),
            vendors: BTreeMap::new(),
            handles: Unique::default(),
        }
    }

    /// The names (CDI) by which vendors describe what is at some of the job's paths.
    pub fn vendors(&self) -> &BTreeMap<Bytes, String> {
        &self.vendors
    }

    /// Puts others in their place.
    pub fn describe(&mut self, vendors: BTreeMap<Bytes, String>) {
        self.vendors = vendors;
    }

    /// The generations that are remembered, the oldest first; the last one lives.
    pub fn generations(&self) -> &[Generation] {
        &self.generations
    }

    /// How many generations are no longer remembered.
    pub fn forgotten_generations(&self) -> u64 {
        self.forgotten_generations
    }

    /// The number of the generation that lives.
    pub fn generation(&self) -> u32 {
        self.generations.last().map_or(0, |generation| generation.number)
    }

    /// When the job was last looked at.
    pub fn observed(&self) -> Time {
        self.observed
    }

    /// Takes in what was seen of the job at `now`, in place of what was known of its tasks and descriptors.
    ///
    /// # Errors
    /// The sight contradicts itself or the history; the table is then as it was.
    pub fn observe(&mut self, seen: &Seen, now: Time) -> Result<(), Error> {
        let mut next = self.clone();
        next.take_in(seen, now)?;
        *self = next;
        Ok(())
    }

    fn take_in(&mut self, seen: &Seen, now: Time) -> Result<(), Error> {
        let generation = self.generation();
        let since = |task: &HostTask| seen.booted.map_or(now, |booted| booted.after(task.started).min(now));
        let tasks = seen.tasks.iter().map(|task| (task.thread, task.host));
        self.tasks.replace(tasks, generation, since).map_err(|clash| Error::of(clash, Id::Thread))?;
        let sessions = leaders(&seen.tasks, &self.sessions, |task| task.session);
        self.sessions.replace(sessions, generation, since).map_err(|clash| Error::of(clash, Id::Session))?;
        let groups = leaders(&seen.tasks, &self.groups, |task| task.group);
        self.groups.replace(groups, generation, since).map_err(|clash| Error::of(clash, Id::Group))?;
        self.processes.clear();
        for task in &seen.tasks {
            self.processes.entry(task.process).or_default().insert(task.thread);
        }
        self.descriptors.clear();
        for SeenDescriptor { process, fd, description } in seen.descriptors.iter().copied() {
            if self.descriptors.entry(process).or_default().insert(fd, description).is_some() {
                return Err(Error::Twice(Id::Descriptor { process, fd }));
            }
        }
        self.descriptions.0.clone_from(&seen.descriptions);
        self.observed = now;
        self.check()
    }

    /// Begins a generation: every binding becomes history, which ends when the job was last looked at, and every id waits
    /// to be bound anew. Which descriptor leads to which description is the job's own and stays.
    ///
    /// # Errors
    /// The number is not above that of the generation that lived.
    pub fn rebind(&mut self, generation: Generation) -> Result<(), Error> {
        let until = self.observed;
        if let Some(old) = self.generations.last_mut() {
            if old.number >= generation.number {
                return Err(Error::Generation { old: old.number, new: generation.number });
            }
            old.until = Some(until);
        }
        self.observed = generation.since;
        self.generations.push(generation);
        let surplus = self.generations.len().saturating_sub(KEPT_GENERATIONS);
        self.generations.drain(..surplus);
        self.forgotten_generations = self.forgotten_generations.saturating_add(surplus as u64);
        for tasks in [&mut self.tasks, &mut self.sessions, &mut self.groups] {
            tasks.retire_all(until);
        }
        self.sockets.retire_all(until);
        self.devices.retire_all(until);
        self.handles.values_mut().for_each(|handles| handles.retire_all(until));
        Ok(())
    }

    /// What has yet to be bound in this generation. As long as there is any, the table can't be written.
    pub fn awaited(&self) -> Vec<Id> {
        let mut awaited: Vec<Id> = self.tasks.awaited().map(|id| self.task(*id)).collect();
        awaited.extend(self.sessions.awaited().map(|id| Id::Session(*id)));
        awaited.extend(self.groups.awaited().map(|id| Id::Group(*id)));
        awaited.extend(self.sockets.awaited().cloned().map(Id::Socket));
        awaited.extend(self.devices.awaited().cloned().map(Id::Device));
        for (space, handles) in self.handles.iter() {
            awaited.extend(handles.awaited().map(|id| Id::Handle { space: space.clone(), number: *id }));
        }
        awaited
    }

    /// Binds a socket, a device or a handle from `now` on. What it stood for before, if anything, becomes history. A name
    /// space of handles comes to be with its first.
    ///
    /// # Errors
    /// Another id stands for the real one; the ids are of different kinds, or of one that [`Table::observe`] binds.
    pub fn bind(&mut self, id: &Id, real: &Id, now: Time) -> Result<(), Error> {
        let generation = self.generation();
        match (id, real) {
            (Id::Socket(id), Id::Socket(real)) => {
                let bound = self.sockets.bind(id.clone(), real.clone(), generation, now);
                bound.map_err(|clash| Error::of(clash, Id::Socket))
            }
            (Id::Device(id), Id::Device(real)) => {
                let bound = self.devices.bind(id.clone(), real.clone(), generation, now);
                bound.map_err(|clash| Error::of(clash, Id::Device))
            }
            (Id::Handle { space, number }, Id::Handle { space: other, number: real }) if space == other => {
                let handles = self.handles.entry(space.clone()).or_default();
                let bound = handles.bind(*number, *real, generation, now);
                bound.map_err(|clash| Error::of(clash, |number| Id::Handle { space: space.clone(), number }))
            }
            _ => Err(Error::Kind { id: id.clone(), real: real.clone() }),
        }
    }

    /// Ends the binding of a socket, a device or a handle, or the wait for it; whether there was one.
    pub fn unbind(&mut self, id: &Id, now: Time) -> bool {
        match id {
            Id::Socket(address) => self.sockets.unbind(address, now),
            Id::Device(path) => self.devices.unbind(path, now),
            Id::Handle { space, number } => {
                self.handles.get_mut(space).is_some_and(|h| h.unbind(number, now))
            }
            _ => false,
        }
    }

    fn task(&self, id: i32) -> Id {
        if self.processes.contains_key(&id) { Id::Process(id) } else { Id::Thread(id) }
    }
}

/// The sessions or groups that these tasks are in.
fn leaders(
    tasks: &[SeenTask],
    known: &Bindings<HostTask>,
    of: impl Fn(&SeenTask) -> Pair,
) -> Vec<(i32, HostTask)> {
    let mut found: BTreeMap<(i32, i32), u64> = BTreeMap::new();
    // The leader first, and else the oldest: its start is that of the session or group.
    let rank = |task: &&SeenTask| (of(task).id != task.thread, task.host.started);
    let mut inside: Vec<&SeenTask> = tasks.iter().filter(|task| of(task).id != 0).collect();
    inside.sort_by_key(rank);
    for task in inside {
        let Pair { id, host } = of(task);
        // The kernel keeps the number as long as there is a member, so the same number is the same session, even when the
        // leader that gave it its start has ended since.
        let before = known.get(&id).filter(|old| old.real.id == host).map(|old| old.real.started);
        found.entry((id, host)).or_insert(before.unwrap_or(task.host.started));
    }
    found.into_iter().map(|((id, host), started)| (id, HostTask { id: host, started })).collect()
}

impl Error {
    fn of<K>(clash: Clash<K>, name: impl Fn(K) -> Id) -> Error {
        match clash {
            Clash::Virtual(id) => Error::Twice(name(id)),
            Clash::Real { id, real, other } => {
                Error::Taken { id: name(id), real: name(real), other: name(other) }
            }
        }
    }
}
