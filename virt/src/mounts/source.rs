//! Of what every mount is a part.

use super::list::{KINDS, Line, below};
use super::{Bytes, Deleted, FileSystem, Found, Part, Source};
use std::collections::HashMap;

/// What can be mounted again.
#[derive(Debug)]
pub(super) struct Sources<'a> {
    /// What the sandbox mounts.
    kept: Vec<&'a Line>,
    /// Every mount of the job, with its namespace; those that are in nobody's way come first.
    all: Vec<(usize, &'a Line)>,
    /// They are of another user namespace than ckrun's.
    foreign: bool,
    file_systems: HashMap<&'a str, u32>,
    deleted: HashMap<(&'a str, &'a [u8]), u32>,
}

/// Something whose content goes with the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    /// What it is.
    pub part: Part,
    /// A mount of it: its namespace and its id.
    pub mount: (usize, u64),
    /// Where that is.
    pub point: Bytes,
}

/// A part of a source: what, and the path there.
type Origin = (Source, Vec<u8>);

impl<'a> Sources<'a> {
    pub(super) fn new(kept: Vec<&'a Line>, all: Vec<(usize, &'a Line)>, foreign: bool) -> Self {
        Sources { kept, all, foreign, file_systems: HashMap::new(), deleted: HashMap::new() }
    }

    /// That of a mount, which may be new in the lists of `found`; if there is none, why.
    pub(super) fn of(&mut self, line: &'a Line, found: &mut Found) -> Result<Origin, &'static str> {
        let (origin, deleted) = line.origin();
        if !deleted {
            return self.whole(line, origin, found);
        }
        let key = (line.device.as_str(), origin);
        if let Some(&id) = self.deleted.get(&key) {
            return Ok((Source::Deleted(id), Vec::new()));
        }
        let (of, name) = self.whole(line, origin, found)?;
        let id = found.changes.deleted.len() as u32;
        found.changes.deleted.push(Deleted { of, name: name.into() });
        found.contents.push(
            self.content(Part::Deleted(id), |other| other.device == line.device && other.root == line.root),
        );
        self.deleted.insert(key, id);
        Ok((Source::Deleted(id), Vec::new()))
    }

    /// The whole of which `origin` is a part.
    fn whole(&mut self, line: &'a Line, origin: &[u8], found: &mut Found) -> Result<Origin, &'static str> {
        let same = |kept: &&&Line| kept.device == line.device;
        let part = |kept: &&'a Line| Some((*kept, below(origin, &kept.root)?.to_vec()));
        // Several mounts of the sandbox may be of one file system: best the one that it is a copy of.
        let likeness = |(kept, _): &(&Line, Vec<u8>)| {
            (kept.shared.is_some() && kept.shared == line.shared, kept.point == line.point, kept.root.len())
        };
        if let Some((kept, part)) = self.kept.iter().filter(same).filter_map(part).max_by_key(likeness) {
            return Ok((Source::Place(kept.point.clone().into()), part));
        }
        if self.kept.iter().any(|kept| same(&kept)) {
            return Err("what is mounted can't be reached in the container");
        }
        let part = below(origin, b"/").unwrap_or_default().to_vec();
        if let Some(&id) = self.file_systems.get(line.device.as_str()) {
            return Ok((Source::FileSystem(id), part));
        }
        let Some((_, whole)) = self.all.iter().find(|(_, o)| o.device == line.device && o.whole()) else {
            return Err("what is mounted is outside of the container, or a part of what is mounted nowhere");
        };
        if !KINDS.contains(&line.kind.as_str()) {
            return Err("it was made in the container, and its file system can't be made again");
        }
        let id = found.changes.file_systems.len() as u32;
        found.changes.file_systems.push(FileSystem {
            kind: whole.kind.clone(),
            source: whole.source.clone().into(),
            options: whole.data(self.foreign).into(),
            read_only: whole.wholly_read_only(),
        });
        if whole.kind == "tmpfs" {
            found.contents.push(self.content(Part::FileSystem(id), |o| o.device == line.device && o.whole()));
        }
        self.file_systems.insert(&line.device, id);
        found.devices.insert(line.device.clone());
        Ok((Source::FileSystem(id), part))
    }

    fn content(&self, part: Part, wanted: impl Fn(&Line) -> bool) -> Content {
        let first = self.all.iter().find(|(_, line)| wanted(line));
        let (space, line) = first.map_or((0, None), |(space, line)| (*space, Some(*line)));
        Content {
            part,
            mount: (space, line.map_or(0, |line| line.id)),
            point: line.map_or(Bytes::default(), |line| line.point.clone().into()),
        }
    }
}
