//! Id-mapped mounts: the owners of files are shown through the mapping of a user namespace (mount_setattr(2)).

use super::wanted::Wanted;
use super::{channel, idmap, namespaces};
use crate::config::Ask;
use crate::error::{Error, Result};
use ckrun_virt::Doing;
use ckrun_virt::sys::{Clone3, MountAttr, mount_setattr};
use nix::sys::wait::waitpid;
use oci_spec::runtime::{LinuxIdMapping, Spec};
use std::fs::File;
use std::os::fd::BorrowedFd;

/// Gives `tree` the mapping of the mount's own uidMappings and gidMappings or, when it has none, the container's.
///
/// # Errors
/// There is no mapping at all, or the file system can't be mapped.
pub fn apply(spec: &Spec, wanted: &Wanted<'_>, tree: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let linux = spec.lx();
    let own = wanted.entry.uid_mappings().as_deref().zip(wanted.entry.gid_mappings().as_deref());
    let containers = || linux.and_then(|l| l.uid_mappings().as_deref().zip(l.gid_mappings().as_deref()));
    let (uids, gids) = own.or_else(containers).ok_or_else(|| {
        Error::config(&wanted.field, "idmap needs uidMappings and gidMappings, here or in linux")
    })?;
    let userns =
        user_namespace(uids, gids).map_err(|e| Error::config(&wanted.field, format!("idmap: {e}")))?;
    let attr = MountAttr { idmap: Some(std::os::fd::AsFd::as_fd(&userns)), ..Default::default() };
    mount_setattr(tree, recursive, attr).doing(|| {
        format!("{}: idmap (does the file system of {} support it?)", wanted.field, wanted.source.display())
    })?;
    Ok(())
}

/// A user namespace with this mapping, kept alive by its descriptor only.
fn user_namespace(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<File> {
    let (ours, theirs) = channel::pair()?;
    let clone = Clone3 { flags: libc::CLONE_NEWUSER as u64, cgroup: None };
    let holder = namespaces::spawn(&clone, move || {
        drop(ours);
        // Stay until the other end closes.
        i32::from(theirs.receive().is_err())
    })?;
    let pid = holder.pid();
    let write = |file: &str, map: &[LinuxIdMapping]| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, idmap::lines(map)).doing(|| format!("write {path}"))
    };
    let made = write("uid_map", uids).and_then(|()| write("gid_map", gids)).and_then(|()| {
        let path = format!("/proc/{pid}/ns/user");
        File::open(&path).doing(|| format!("open {path}"))
    });
    holder.signal(nix::sys::signal::Signal::SIGKILL)?;
    waitpid(pid, None).doing(|| "wait for the holder of a user namespace")?;
    Ok(made?)
}
