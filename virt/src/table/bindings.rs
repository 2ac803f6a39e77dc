//! The map of one kind of id: virtual to real and back, and what was bound before.

use super::Time;
use crate::image::Bytes;
use serde::de::DeserializeOwned;
use serde::ser::{Error as _, SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;

/// How many former bindings of each kind are kept. Beyond that the oldest are forgotten, and counted.
pub const KEPT: usize = 1024;

/// A real id.
pub trait Real: Clone + Eq + Debug {
    /// The part of it that only one thing on a host can have at a time. The job's name for the thing is of the same sort.
    type Key: Ord + Clone + Debug;

    /// That part.
    fn key(&self) -> Self::Key;

    /// When the thing started, where that is known, see [`HostTask::started`].
    fn started(&self) -> Option<u64> {
        None
    }
}

/// A task, session or group of the host. The kernel gives its number out again after its end; the start time tells the
/// two apart, as long as the host is not rebooted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostTask {
    /// The number in ckrun's pid namespace.
    pub id: i32,
    /// Clock ticks from boot to the start of its process ([`crate::proc::Stat::started`]); of a session or group: of its
    /// leader, or, when that has ended, of its oldest member.
    pub started: u64,
}

impl Real for HostTask {
    type Key = i32;

    fn key(&self) -> i32 {
        self.id
    }

    fn started(&self) -> Option<u64> {
        Some(self.started)
    }
}

impl Real for Bytes {
    type Key = Bytes;

    fn key(&self) -> Bytes {
        self.clone()
    }
}

impl Real for u64 {
    type Key = u64;

    fn key(&self) -> u64 {
        *self
    }
}

/// One virtual id, the real one that it stands or stood for, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    deny_unknown_fields,
    bound(
        serialize = "R: Serialize, R::Key: Serialize",
        deserialize = "R: DeserializeOwned, R::Key: DeserializeOwned"
    )
)]
pub struct Binding<R: Real> {
    /// The job's name for the thing.
    #[serde(rename = "virtual")]
    pub id: R::Key,
    /// The host's.
    pub real: R,
    /// The generation in which they were bound.
    pub generation: u32,
    /// When they were bound.
    pub since: Time,
    /// When that ended; None while it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

/// Two bindings that can't both be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clash<K> {
    /// They have this virtual id.
    Virtual(K),
    /// They have one real id.
    Real {
        /// The virtual id of the new one.
        id: K,
        /// What both stand for.
        real: K,
        /// The virtual id of the old one.
        other: K,
    },
}

/// The bindings of one kind. Each virtual id has one real id and each real id one virtual.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Form<R>", bound(deserialize = "R: DeserializeOwned, R::Key: DeserializeOwned"))]
pub struct Bindings<R: Real> {
    bound: BTreeMap<R::Key, Binding<R>>,
    by_real: BTreeMap<R::Key, R::Key>,
    /// Known from the last generation and not bound in this one yet.
    awaited: BTreeSet<R::Key>,
    former: VecDeque<Binding<R>>,
    forgotten: u64,
}

impl<R: Real> Default for Bindings<R> {
    fn default() -> Self {
        Bindings {
            bound: BTreeMap::new(),
            by_real: BTreeMap::new(),
            awaited: BTreeSet::new(),
            former: VecDeque::new(),
            forgotten: 0,
        }
    }
}

impl<R: Real> Bindings<R> {
    /// What `id` stands for now.
    pub fn get(&self, id: &R::Key) -> Option<&Binding<R>> {
        self.bound.get(id)
    }

    /// What stands for the real thing with this key now.
    pub fn of_real(&self, key: &R::Key) -> Option<&Binding<R>> {
        self.bound.get(self.by_real.get(key)?)
    }

    /// What holds, in the order of the virtual ids.
    pub fn bound(&self) -> impl Iterator<Item = &Binding<R>> {
        self.bound.values()
    }

    /// What held before, the oldest first.
    pub fn former(&self) -> impl Iterator<Item = &Binding<R>> {
        self.former.iter()
    }

    /// How many former bindings are no longer kept.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The ids that have yet to be bound in this generation.
    pub fn awaited(&self) -> impl Iterator<Item = &R::Key> {
        self.awaited.iter()
    }

    /// Binds `id` from `now` on. A real id that it had before goes into the history.
    ///
    /// # Errors
    /// Another virtual id has the real one.
    pub fn bind(&mut self, id: R::Key, real: R, generation: u32, now: Time) -> Result<(), Clash<R::Key>> {
        if let Some(other) = self.by_real.get(&real.key()).filter(|other| **other != id) {
            return Err(Clash::Real { real: real.key(), other: other.clone(), id });
        }
        if self.bound.get(&id).is_none_or(|old| old.real != real) {
            self.unbind(&id, now);
            self.insert(Binding { id, real, generation, since: now, until: None });
        }
        Ok(())
    }

    /// Ends a binding, or the wait for one; whether there was any.
    pub fn unbind(&mut self, id: &R::Key, now: Time) -> bool {
        let Some(old) = self.bound.remove(id) else { return self.awaited.remove(id) };
        self.by_real.remove(&old.real.key());
        self.retire(old, now);
        true
    }

    /// Puts what was seen in the place of what is bound. What is still so keeps its date, what is new holds since `began`;
    /// what is not there any more has ended by the job's own doing, and is no history.
    ///
    /// # Errors
    /// What was seen holds an id twice.
    pub fn replace(
        &mut self,
        seen: impl IntoIterator<Item = (R::Key, R)>,
        generation: u32,
        began: impl Fn(&R) -> Time,
    ) -> Result<(), Clash<R::Key>> {
        let mut fresh = Bindings::default();
        for (id, real) in seen {
            let before = self.bound.get(&id).filter(|old| old.real == real);
            let since = before.map_or_else(|| began(&real), |old| old.since);
            fresh.add(Binding { id, real, generation, since, until: None })?;
        }
        self.awaited.retain(|id| !fresh.bound.contains_key(id));
        (self.bound, self.by_real) = (fresh.bound, fresh.by_real);
        Ok(())
    }

    /// Ends every binding; each id is awaited from then on.
    pub fn retire_all(&mut self, until: Time) {
        self.by_real.clear();
        for (id, old) in std::mem::take(&mut self.bound) {
            self.awaited.insert(id);
            self.retire(old, until);
        }
    }

    fn retire(&mut self, binding: Binding<R>, until: Time) {
        self.former.push_back(Binding { until: Some(until), ..binding });
        while self.former.len() > KEPT {
            self.former.pop_front();
            self.forgotten = self.forgotten.saturating_add(1);
        }
    }

    fn add(&mut self, binding: Binding<R>) -> Result<(), Clash<R::Key>> {
        if self.bound.contains_key(&binding.id) {
            return Err(Clash::Virtual(binding.id));
        }
        if let Some(other) = self.by_real.get(&binding.real.key()) {
            return Err(Clash::Real { real: binding.real.key(), other: other.clone(), id: binding.id });
        }
        self.insert(binding);
        Ok(())
    }

    fn insert(&mut self, binding: Binding<R>) {
        self.awaited.remove(&binding.id);
        self.by_real.insert(binding.real.key(), binding.id.clone());
        self.bound.insert(binding.id.clone(), binding);
    }
}

impl<R: Real + Serialize> Serialize for Bindings<R>
where
    R::Key: Serialize,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.awaited.is_empty() {
            return Err(S::Error::custom(format!("{} ids have yet to be bound", self.awaited.len())));
        }
        let mut form = serializer.serialize_struct("Bindings", 3)?;
        form.serialize_field("bound", &All(Cell::new(Some(self.bound.values()))))?;
        form.serialize_field("former", &self.former)?;
        form.serialize_field("forgotten", &self.forgotten)?;
        form.end()
    }
}

/// An iterator as a list.
struct All<I>(Cell<Option<I>>);

impl<I: Iterator<Item: Serialize>> Serialize for All<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.take().into_iter().flatten())
    }
}

/// The bindings as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "R: DeserializeOwned, R::Key: DeserializeOwned"))]
struct Form<R: Real> {
    bound: Vec<Binding<R>>,
    former: VecDeque<Binding<R>>,
    forgotten: u64,
}

impl<R: Real> TryFrom<Form<R>> for Bindings<R> {
    type Error = String;

    fn try_from(form: Form<R>) -> Result<Self, String> {
        let mut bindings = Bindings { former: form.former, forgotten: form.forgotten, ..Bindings::default() };
        for binding in form.bound {
            bindings.add(binding).map_err(|clash| match clash {
                Clash::Virtual(id) => format!("the virtual id {id:?} is bound twice"),
                Clash::Real { id, real, other } => format!("{other:?} and {id:?} have one real id, {real:?}"),
            })?;
        }
        Ok(bindings)
    }
}
