//! The `cgroup` mount of config.json: the container's own cgroups, and nothing of its neighbours'.

use super::root::{Links, Root};
use super::tree::{attach_fd, clone_path};
use super::wanted::{Wanted, attach};
use crate::cgroup::{Cgroups, View, ViewMount};
use crate::config::Ask;
use crate::error::{Error, Result};
use ckrun_virt::Doing;
use ckrun_virt::sys::{MountAttr, mount_setattr};
use oci_spec::runtime::{LinuxNamespaceType as Kind, Spec};
use rustix::fs::{Mode, mkdirat, openat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Makes it, in the shape that the host's cgroups have.
pub fn make(root: &Root, spec: &Spec, cgroups: &Cgroups, wanted: &Wanted<'_>) -> Result<()> {
    match cgroups.view() {
        View::Unified(directory) => {
            let tree = one(spec, wanted, "cgroup2", "", &directory)?;
            attach(root, wanted, &tree)
        }
        View::PerHierarchy { mounts: parts, links } => per_hierarchy(root, spec, wanted, &parts, &links),
    }
}

fn per_hierarchy(
    root: &Root,
    spec: &Spec,
    wanted: &Wanted<'_>,
    parts: &[ViewMount],
    links: &[(String, String)],
) -> Result<()> {
    attach(root, wanted, &tmpfs(wanted)?)?;
    // What was attached is on top of the destination now.
    let top = root.open(&wanted.destination, Links::Follow)?;
    let doing = |name: &str| format!("{}: make {name}", wanted.field);
    for part in parts {
        let tree = one(spec, wanted, part.fs_type, &part.options, &part.directory)?;
        mkdirat(&top, &part.name, Mode::from_raw_mode(0o755)).doing(|| doing(&part.name))?;
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let place = openat(&top, &part.name, flags, Mode::empty()).doing(|| doing(&part.name))?;
        attach_fd(tree.as_fd(), place.as_fd()).doing(|| doing(&part.name))?;
    }
    for (name, target) in links {
        symlinkat(target.as_str(), &top, name.as_str()).doing(|| doing(name))?;
    }
    if wanted.options.attributes.set & libc::MOUNT_ATTR_RDONLY != 0 {
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
        mount_setattr(top.as_fd(), false, attr).doing(|| format!("{}: make it read-only", wanted.field))?;
    }
    Ok(())
}

/// The directory that holds the hierarchies; writable until they are in.
fn tmpfs(wanted: &Wanted<'_>) -> Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).doing(|| "fsopen tmpfs")?;
    fsconfig_set_string(&context, "source", "tmpfs").doing(|| "name a tmpfs")?;
    fsconfig_set_string(&context, "mode", "755").doing(|| "set the mode of a tmpfs")?;
    fsconfig_create(&context).doing(|| "make a tmpfs")?;
    let flags = wanted.options.attributes.set & !libc::MOUNT_ATTR_RDONLY;
    let flags = MountAttrFlags::from_bits_retain(flags as _);
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
        .doing(|| format!("{}: tmpfs", wanted.field))?)
}

/// One hierarchy. In a cgroup namespace of its own the container gets a fresh mount, whose root is its own cgroup;
/// else the directory of the host, bound.
fn one(spec: &Spec, wanted: &Wanted<'_>, fs: &str, options: &str, directory: &Path) -> Result<OwnedFd> {
    let attributes = wanted.options.attributes;
    let own_namespace = spec.namespace(Kind::Cgroup).is_some();
    if own_namespace && let Some(fresh) = fresh(fs, options, attributes.set) {
        return Ok(fresh);
    }
    let tree = clone_path(directory, true)
        .map_err(|e| Error::config(&wanted.field, format!("bind {}: {e}", directory.display())))?;
    if !attributes.is_empty() {
        let attr = MountAttr { set: attributes.set, clear: attributes.clear, ..Default::default() };
        mount_setattr(tree.as_fd(), false, attr).doing(|| format!("{}: mount flags", wanted.field))?;
    }
    Ok(tree)
}

/// A new mount of a hierarchy; None where the kernel refuses it (in a user namespace without a cgroup namespace, or
/// for a v1 hierarchy that the container's root may not mount), and a bind must do.
fn fresh(fs: &str, options: &str, attributes: u64) -> Option<OwnedFd> {
    let context = fsopen(fs, FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    // What /proc/mounts shows first; without it programs would read "none".
    fsconfig_set_string(&context, "source", fs).ok()?;
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value).ok()?,
            None => fsconfig_set_flag(&context, option).ok()?,
        }
    }
    fsconfig_create(&context).ok()?;
    let flags = MountAttrFlags::from_bits_retain(attributes as _);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).ok()
}
