//! Peers: mounts that receive what is mounted on each other, and those that only receive (mount_namespaces(7)).
//!
//! For each group the yard has a model, a mount of the whole file system that is a member of the group. From it all other
//! members get their group (`MOVE_MOUNT_SET_GROUP`), in whatever namespace they are. It leaves the group with the yard.

use super::restore::propagate;
use super::yard::Yard;
use super::{Group, Source};
use crate::image::Bytes;
use crate::{Doing, Error};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

/// `MOVE_MOUNT_SET_GROUP` of `linux/mount.h` (Linux 5.15): the target becomes what the source is.
const SET_GROUP: MoveMountFlags = MoveMountFlags::from_bits_retain(0x100);

/// A mount that is to have peers, or to receive.
#[derive(Debug)]
pub(super) struct Member<'a> {
    pub(super) group: Group,
    pub(super) of: Source,
    pub(super) point: &'a Bytes,
    pub(super) mount: &'a OwnedFd,
    /// It is the sandbox's.
    pub(super) place: bool,
}

/// The first of the sandbox's mounts in a group, from which the group is made; not if it receives from another group
/// of the job.
fn origin<'a, 'm>(members: &'a [Member<'m>], group: Group) -> Option<&'a Member<'m>> {
    let inside = group.master.is_some_and(|master| members.iter().any(|m| m.group.shared == Some(master)));
    members.iter().find(|member| member.place && member.group == group && !inside)
}

/// Lets mounts of the sandbox have peers, which they may have already; this process is in the sandbox's namespace.
pub(super) fn begin(members: &[Member<'_>]) -> Result<(), Error> {
    for member in members.iter().filter(|member| member.group.shared.is_some()) {
        if origin(members, member.group).is_some_and(|origin| std::ptr::eq(origin, member)) {
            propagate(member.mount.as_fd(), libc::MS_SHARED, member.point)?;
        }
    }
    Ok(())
}

/// Gives all members their groups; this process is in the yard.
pub(super) fn join(members: &[Member<'_>], yard: &mut Yard<'_>) -> Result<(), Error> {
    let mut models = Models { members, yard, made: HashMap::new() };
    for member in members {
        models.make(member.group)?;
        let Some(Some(model)) = models.made.get(&member.group) else { continue };
        if origin(members, member.group).is_some_and(|origin| std::ptr::eq(origin, member)) {
            continue;
        }
        match set_group(model, member.mount) {
            Err(Errno::INVAL) if member.place => {
                log::debug!("mount {}: has the peers that the sandbox has given it", member.point);
            }
            set => set.doing(|| format!("share the mount {}", member.point))?,
        }
    }
    Ok(())
}

struct Models<'a, 'm, 'y> {
    members: &'a [Member<'m>],
    yard: &'a mut Yard<'y>,
    /// None for a group that there is not here: what is mounted on its master was outside, or nobody is left in it.
    made: HashMap<Group, Option<OwnedFd>>,
}

impl Models<'_, '_, '_> {
    fn make(&mut self, group: Group) -> Result<(), Error> {
        let members = self.members;
        let Some(first) = members.iter().find(|member| member.group == group) else { return Ok(()) };
        if self.made.contains_key(&group) {
            return Ok(());
        }
        // Nobody receives from himself, by whatever way; if an image says so, it is nobody's master.
        self.made.insert(group, None);
        let master = group.master.and_then(|m| members.iter().find(|member| member.group.shared == Some(m)));
        if let Some(master) = master {
            self.make(master.group)?;
        }
        let master = master.and_then(|master| self.made.get(&master.group)?.as_ref());
        let model = if let Some(master) = master {
            // A copy of a shared mount is its peer.
            let model = super::open::copy(master, first.point)?;
            self.yard.keep(&model)?;
            propagate(model.as_fd(), libc::MS_SLAVE, first.point)?;
            if group.shared.is_some() {
                propagate(model.as_fd(), libc::MS_SHARED, first.point)?;
            }
            Some(model)
        } else if let Some(origin) = origin(members, group) {
            let model = self.yard.another(&origin.of, origin.point)?;
            match set_group(origin.mount, &model) {
                // It receives from nobody here.
                Err(Errno::INVAL) => None,
                set => set.doing(|| format!("share the mount {}", origin.point)).map(|()| Some(model))?,
            }
        } else if group.shared.is_some() {
            let model = self.yard.another(&first.of, first.point)?;
            propagate(model.as_fd(), libc::MS_SHARED, first.point)?;
            Some(model)
        } else {
            None
        };
        self.made.insert(group, model);
        Ok(())
    }
}

fn set_group(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(from, c"", to, c"", SET_GROUP | both)
}
