//! Peers: mounts that receive what is mounted on each other, and those that only receive (mount_namespaces(7)).
//!
//! For each group the yard has a model, a mount of the whole file system that is a member of the group. From it all other
//! members get their group (`MOVE_MOUNT_SET_GROUP`), in whatever namespace they are, when everything in that is where it
//! was: until then nothing is propagated. The model leaves the group with the yard.

use super::yard::Yard;
use super::{Changes, Group, Made, Source};
use crate::image::Bytes;
use crate::sys::{MountAttr, mount_setattr};
use crate::{Doing, Error, Failure};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// `MOVE_MOUNT_SET_GROUP` of `linux/mount.h` (Linux 5.15): the target becomes what the source is.
const SET_GROUP: MoveMountFlags = MoveMountFlags::from_bits_retain(0x100);

/// Mounts of the sandbox, by their places.
pub(super) type Places = HashMap<Bytes, OwnedFd>;

/// All groups of a job.
#[derive(Debug)]
pub(super) struct Groups<'a> {
    changes: &'a Changes,
    /// The models of each group, by what they are of: two parts of one file system of the host may be peers, and neither shows
    /// the other. None for a group that there is not here: what is mounted on its master was outside, or nobody is left in it.
    models: HashMap<(Group, Source), Option<OwnedFd>>,
}

impl<'a> Groups<'a> {
    pub(super) fn of(changes: &'a Changes) -> Self {
        Groups { changes, models: HashMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    /// The group of each member, and what that is of.
    fn all(&self) -> impl Iterator<Item = (Group, Source)> {
        let made = self.changes.made.iter().filter(|made| !made.group.is_none());
        let made = made.map(|made| (made.group, self.whole(&made.of)));
        let places = self.changes.groups.iter();
        places.map(|(place, group)| (*group, Source::Place(place.clone()))).chain(made)
    }

    /// What has been deleted was a part of something, and has peers there.
    fn whole(&self, of: &Source) -> Source {
        match of {
            Source::Deleted(id) => {
                self.changes.deleted.get(*id as usize).map_or_else(|| of.clone(), |gone| gone.of.clone())
            }
            _ => of.clone(),
        }
    }

    /// Those from whom the members of a group receive, best by a mount of the same thing.
    fn master(&self, group: Group, of: &Source) -> Option<(Group, Source)> {
        let master = |(other, _): &(Group, Source)| group.master.is_some() && other.shared == group.master;
        self.all().filter(master).max_by_key(|(_, other)| other == of)
    }

    /// The sandbox's mount from which members of a group were copied.
    fn origin<'p>(&self, group: Group, of: &Source, places: &'p Places) -> Option<&'p OwnedFd> {
        let Source::Place(place) = of else { return None };
        let same = self.changes.groups.get(place) == Some(&group);
        places.get(place).filter(|_| same)
    }

    /// Lets mounts of the sandbox have peers, which they may have already; this process is in the sandbox's namespace.
    pub(super) fn begin(&self, places: &Places) -> Result<(), Failure> {
        for (point, group) in self.changes.groups.iter().filter(|(_, group)| group.shared.is_some()) {
            if let Some(mount) = places.get(point)
                && self.master(*group, &Source::Place(point.clone())).is_none()
            {
                propagate(mount.as_fd(), libc::MS_SHARED, point)?;
            }
        }
        Ok(())
    }

    /// Gives the mounts of the sandbox that receive from others of the job their groups; this process is in the yard.
    pub(super) fn join_places(&mut self, places: &Places, yard: &mut Yard<'_>) -> Result<(), Error> {
        for (point, group) in &self.changes.groups {
            let of = Source::Place(point.clone());
            let Some(mount) = places.get(point).filter(|_| self.master(*group, &of).is_some()) else {
                continue;
            };
            match self.set(*group, &of, (point, mount), places, yard)? {
                Err(Errno::INVAL) => {
                    log::debug!("mount {point}: has the peers that the sandbox has given it");
                }
                set => set.doing(|| format!("share the mount {point}"))?,
            }
        }
        Ok(())
    }

    /// Gives a mount of the job its group; this process is in the yard.
    pub(super) fn join(
        &mut self,
        made: &Made,
        mount: &OwnedFd,
        places: &Places,
        yard: &mut Yard<'_>,
    ) -> Result<(), Error> {
        let set = self.set(made.group, &self.whole(&made.of), (&made.point, mount), places, yard)?;
        Ok(set.doing(|| format!("share the mount {}", made.point))?)
    }

    fn set(
        &mut self,
        group: Group,
        of: &Source,
        (point, mount): (&Bytes, &OwnedFd),
        places: &Places,
        yard: &mut Yard<'_>,
    ) -> Result<rustix::io::Result<()>, Error> {
        let key = (group, of.clone());
        if !self.models.contains_key(&key) {
            // Nobody receives from himself, by whatever way; if an image says so, it is nobody's master.
            self.models.insert(key.clone(), None);
            let model = self.model(group, of, point, places, yard)?;
            self.models.insert(key.clone(), model);
        }
        let model = self.models.get(&key).and_then(Option::as_ref);
        Ok(model.map_or(Ok(()), |model| set_group(model, mount)))
    }

    /// Makes the model of a group, of a certain source; `point` is where it is wanted.
    fn model(
        &mut self,
        group: Group,
        of: &Source,
        point: &Bytes,
        places: &Places,
        yard: &mut Yard<'_>,
    ) -> Result<Option<OwnedFd>, Error> {
        let doing = || format!("share the mount {point}");
        // Another one may show all that this one does.
        for ((_, _), other) in self.models.iter().filter(|((other, _), _)| *other == group) {
            let Some(other) = other else { continue };
            let model = yard.another(of, point)?;
            match set_group(other, &model) {
                Err(Errno::INVAL) => {}
                set => return Ok(set.doing(doing).map(|()| Some(model))?),
            }
        }
        let model = yard.another(of, point)?;
        if let Some((master, whole)) = self.master(group, of) {
            // A copy of a peer of the master's becomes one who receives.
            if let Err(Errno::INVAL) = self.set(master, &whole, (point, &model), places, yard)? {
                return Ok(None);
            }
            propagate(model.as_fd(), libc::MS_SLAVE, point)?;
            if group.shared.is_some() {
                propagate(model.as_fd(), libc::MS_SHARED, point)?;
            }
            return Ok(Some(model));
        }
        if let Some(origin) = self.origin(group, of, places) {
            return match set_group(origin, &model) {
                // It receives from nobody here.
                Err(Errno::INVAL) => Ok(None),
                set => Ok(set.doing(doing).map(|()| Some(model))?),
            };
        }
        if group.shared.is_none() {
            return Ok(None);
        }
        propagate(model.as_fd(), libc::MS_SHARED, point)?;
        Ok(Some(model))
    }
}

/// `MS_SHARED` and the like for one mount of the namespace that this process is in, or of none.
pub(super) fn propagate(mount: BorrowedFd<'_>, how: u64, point: &Bytes) -> Result<(), Failure> {
    let attr = MountAttr { propagation: how, ..MountAttr::default() };
    mount_setattr(mount, false, attr).doing(|| format!("share the mount {point}"))
}

fn set_group(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(from, c"", to, c"", SET_GROUP | both)
}
