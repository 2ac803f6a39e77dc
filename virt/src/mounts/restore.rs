//! Making a job's changes once more, in a new sandbox. Every path is resolved inside the container's root, which is this
//! process's, or inside the mount on which something is to be.

use super::groups::{Groups, Places, propagate};
use super::yard::{Here, Yard, beneath, missing, open, own, put};
use super::{Changes, Made, Namespace, Namespaces, On};
use crate::sys::{MountAttr, mount_namespace, mount_setattr};
use crate::tmpfs::Contents;
use crate::{Doing, Error};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{UnmountFlags, unmount};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};

/// Carries `changes` out. A file system in memory gets its content from `contents`.
///
/// # Errors
/// The kernel's, the image's; [`Error::Unsupported`] for a place that is not there.
pub fn restore(changes: &Changes, contents: &Contents) -> Result<Namespaces, Error> {
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let home = Here::now()?;
    let places = places(changes, &home)?;
    let yard = Yard::lay(changes, contents)?;
    let groups = Groups::of(changes);
    let (mounts, nooks) = (HashMap::new(), BTreeMap::new());
    let mut making = Making { changes, places, mounts, nooks, groups, yard };
    let mut namespaces = Vec::new();
    making.first(&home)?;
    let copy = |fd: &OwnedFd| fd.try_clone().doing(|| "copy a descriptor");
    if changes.namespaces() > 0 {
        namespaces.push(Namespace { handle: copy(&home.handle)?, root: copy(&home.root)? });
    }
    for namespace in 1..changes.spaces() {
        namespaces.push(making.namespace(namespace)?);
    }
    for root in std::mem::take(&mut making.nooks).into_values() {
        namespaces.push(Namespace { handle: copy(&home.handle)?, root });
    }
    making.yard.here.enter()?;
    making.yard.close()?;
    home.enter()?;
    Ok(namespaces)
}

/// Opens the mounts of the sandbox, while nothing of the job hides them.
fn places(changes: &Changes, home: &Here) -> Result<Places, Error> {
    let on = changes.made.iter().filter_map(|made| match &made.on {
        On::Place(place) => Some((place, &made.point)),
        _ => None,
    });
    let nooks = changes.nooks.iter().filter_map(|nook| match &nook.on {
        On::Place(place) => Some(place),
        _ => None,
    });
    let others = changes.read_only.keys().chain(changes.groups.keys()).chain(nooks);
    let mut places = HashMap::new();
    for (place, point) in others.map(|place| (place, place)).chain(on) {
        if !places.contains_key(place) {
            let opened = open(&home.root, place).map_err(|errno| missing(point, errno))?;
            places.insert(place.clone(), opened);
        }
    }
    Ok(places)
}

/// A mount that is nowhere yet, and its place in the list.
type Part<'a> = (u32, &'a Made, OwnedFd);

struct Making<'a> {
    changes: &'a Changes,
    /// Mounts of the sandbox.
    places: Places,
    /// Those of the job in the namespace that is being made.
    mounts: HashMap<u32, OwnedFd>,
    /// Directories that are going to be hidden, by their numbers.
    nooks: BTreeMap<usize, OwnedFd>,
    groups: Groups<'a>,
    yard: Yard<'a>,
}

impl<'a> Making<'a> {
    /// Makes, but nowhere yet, what is to be in a namespace; this process is in the yard.
    fn parts(&mut self, namespace: u32) -> Result<Vec<Part<'a>>, Error> {
        let changes = self.changes;
        let wanted = (0..).zip(&changes.made).filter(|(_, made)| made.namespace == namespace);
        wanted.map(|(id, made)| Ok((id, made, self.yard.part(made)?))).collect()
    }

    /// Changes the sandbox's own namespace.
    fn first(&mut self, home: &Here) -> Result<(), Error> {
        let parts = self.parts(0)?;
        home.enter()?;
        let places = std::mem::take(&mut self.places);
        for (place, mount) in &places {
            self.nooks(&On::Place(place.clone()), mount)?;
        }
        self.places = places;
        for point in self.changes.unmounted.iter().rev() {
            open(&home.root, point).map_err(|errno| missing(point, errno))?;
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            unmount(point.as_path(), flags).doing(|| format!("unmount {point}"))?;
        }
        for part in parts {
            self.put(part)?;
        }
        for (point, &read_only) in &self.changes.read_only {
            let Some(place) = self.places.get(point) else { continue };
            let flag = libc::MOUNT_ATTR_RDONLY;
            let (set, clear) = if read_only { (flag, 0) } else { (0, flag) };
            mount_setattr(place.as_fd(), false, MountAttr { set, clear, ..MountAttr::default() })
                .doing(|| format!("change the options of the mount {point}"))?;
        }
        self.groups.begin(&self.places)?;
        self.share(0)
    }

    /// Makes another namespace.
    fn namespace(&mut self, number: u32) -> Result<Namespace<OwnedFd>, Error> {
        let doing = || format!("make mount namespace {number} of the job");
        self.yard.here.enter()?;
        let mut parts = self.parts(number)?.into_iter();
        let Some((id, made, root)) = parts.next() else {
            return Err(Error::Damaged(format!("{}: namespace {number} is empty", super::FILE)));
        };
        unshare(CloneFlags::CLONE_NEWNS).doing(doing)?;
        // The yard's ground lies over the root.
        unmount("/", UnmountFlags::DETACH).doing(doing)?;
        put(&root, own("/")?).doing(doing)?;
        // The old root comes to lie over the new one.
        rustix::process::fchdir(&root).doing(doing)?;
        rustix::process::pivot_root(".", ".").doing(doing)?;
        unmount(".", UnmountFlags::DETACH).doing(doing)?;
        rustix::process::fchdir(&root).doing(doing)?;
        rustix::process::chroot(".").doing(doing)?;
        log::debug!("mount namespace {number} of the job has the root {:?}", made.of);
        self.nooks(&On::Made(id), &root)?;
        self.mounts.insert(id, root);
        for part in parts {
            self.put(part)?;
        }
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, rustix::fs::Mode::empty()).doing(doing)?;
        let namespace = Namespace { handle: mount_namespace().doing(doing)?, root };
        self.share(number)?;
        Ok(namespace)
    }

    fn put(&mut self, (id, made, tree): Part<'a>) -> Result<(), Error> {
        let on = match &made.on {
            On::Place(place) => self.places.get(place),
            On::Made(on) => self.mounts.get(on),
            On::Nothing => None,
        };
        let Some(on) = on else {
            return Err(Error::Damaged(format!("{}: {}: it is on nothing", super::FILE, made.point)));
        };
        let doing = || format!("mount {} as the job had it", made.point);
        if made.at.is_empty() {
            put(&tree, on).doing(doing)?;
        } else {
            let place = beneath(on, &made.at).map_err(|errno| missing(&made.point, errno))?;
            put(&tree, place).doing(doing)?;
        }
        // What is put on a shared mount is shared itself.
        if let On::Place(_) = made.on {
            propagate(tree.as_fd(), libc::MS_PRIVATE, &made.point)?;
        }
        if made.unbindable {
            propagate(tree.as_fd(), libc::MS_UNBINDABLE, &made.point)?;
        }
        self.nooks(&On::Made(id), &tree)?;
        self.mounts.insert(id, tree);
        Ok(())
    }

    /// Opens what is to be opened on a mount before something comes to lie over it.
    fn nooks(&mut self, on: &On, mount: &OwnedFd) -> Result<(), Error> {
        for (number, nook) in self.changes.nooks.iter().enumerate().filter(|(_, nook)| nook.on == *on) {
            let opened = if nook.at.is_empty() {
                mount.try_clone().doing(|| "copy a descriptor")?
            } else {
                beneath(mount, &nook.at).map_err(|errno| missing(&nook.at, errno))?
            };
            self.nooks.insert(number, opened);
        }
        Ok(())
    }

    /// Everything in a namespace is where it was: now its mounts may get their peers.
    fn share(&mut self, namespace: u32) -> Result<(), Error> {
        let mounts = std::mem::take(&mut self.mounts);
        if self.groups.is_empty() {
            return Ok(());
        }
        self.yard.here.enter()?;
        if namespace == 0 {
            self.groups.join_places(&self.places, &mut self.yard)?;
        }
        for (id, mount) in &mounts {
            let Some(made) = self.changes.made.get(*id as usize) else { continue };
            if !made.group.is_none() {
                self.groups.join(made, mount, &self.places, &mut self.yard)?;
            }
        }
        Ok(())
    }
}
