//! The mounts of config.json.
//!
//! Every mount is made detached, complete with its flags, and then attached to a descriptor of its destination
//! (fsopen(2), open_tree(2), move_mount(2)). So no half-configured mount is ever visible, no path below the root is
//! resolved by mount(2), and the kernel's own words on a bad option can be read back.

use super::filesystem;
use super::mount_options::{Attributes, IdMap, Options};
use super::root::{Links, Root};
use super::tree::clone_path;
use super::wanted::{Wanted, attach};
use super::{cgroup_mount, copy_up, idmapped, labels};
use crate::cgroup::Cgroups;
use crate::error::{Error, Result};
use ckrun_virt::Doing;
use ckrun_virt::sys::{MountAttr, mount_setattr};
use oci_spec::runtime::Spec;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The trees that must be opened by ckrun itself, not by the init: those whose sources a container's root without the
/// host's rights might not reach, and those with an id mapping, which only the host's root may set.
///
/// The result has one place for each mount.
pub fn open_early(spec: &Spec, wanted: &[Wanted<'_>], own_userns: bool) -> Result<Vec<Option<OwnedFd>>> {
    wanted
        .iter()
        .map(|mount| {
            let early =
                mount.options.bind && (own_userns || mount.options.idmap.is_some() || mount.has_map());
            early.then(|| open_unshared(spec, mount)).transpose()
        })
        .collect()
}

/// A copy of a shared mount of the host would stay its peer, and what is mounted below it would appear on the host.
fn open_unshared(spec: &Spec, wanted: &Wanted<'_>) -> Result<OwnedFd> {
    let tree = open_source(spec, wanted)?;
    let attr = MountAttr { propagation: libc::MS_SLAVE, ..Default::default() };
    mount_setattr(tree.as_fd(), true, attr).doing(|| format!("{}: propagation", wanted.field))?;
    Ok(tree)
}

/// The mounts being made.
#[derive(Debug)]
pub struct Mounts<'a> {
    /// The container's root.
    pub root: &'a Root,
    /// config.json.
    pub spec: &'a Spec,
    /// The container's cgroups.
    pub cgroups: &'a Cgroups,
    /// Trees of [`open_early`], taken as they are used.
    pub early: Vec<Option<OwnedFd>>,
}

impl Mounts<'_> {
    /// Makes one mount. `index` is its place in the list.
    pub fn make(&mut self, index: usize, wanted: &Wanted<'_>) -> Result<()> {
        if wanted.options.bind {
            let tree = match self.early.get_mut(index).and_then(Option::take) {
                Some(tree) => tree,
                None => open_source(self.spec, wanted)?,
            };
            return attach(self.root, wanted, &tree);
        }
        if matches!(wanted.kind, "cgroup" | "cgroup2") {
            return cgroup_mount::make(self.root, self.spec, self.cgroups, wanted);
        }
        let label = labels::mount_option(self.spec).filter(|_| wanted.takes_label());
        let mount = filesystem::make(wanted, label.as_deref())?;
        if wanted.options.copy_up
            && let Ok(under) = self.root.open(&wanted.destination, Links::Follow)
        {
            copy_up::copy(under.as_fd(), mount.as_fd())
                .map_err(|e| Error::config(&wanted.field, format!("tmpcopyup: {e}")))?;
            // Only a full tmpfs may become read-only.
            set_attributes(wanted, mount.as_fd(), false, wanted.options.attributes)?;
        }
        attach(self.root, wanted, &mount)
    }
}

fn open_source(spec: &Spec, wanted: &Wanted<'_>) -> Result<OwnedFd> {
    let Options { attributes, recursive, .. } = wanted.options;
    let tree = clone_path(&wanted.source, wanted.options.recursive_bind)
        .doing(|| format!("{}: bind {}", wanted.field, wanted.source.display()))?;
    if wanted.options.idmap.is_some() || wanted.has_map() {
        idmapped::apply(spec, wanted, tree.as_fd(), wanted.options.idmap == Some(IdMap::Tree))?;
    }
    set_attributes(wanted, tree.as_fd(), false, attributes)?;
    set_attributes(wanted, tree.as_fd(), true, recursive)?;
    Ok(tree)
}

fn set_attributes(
    wanted: &Wanted<'_>,
    tree: BorrowedFd<'_>,
    recursive: bool,
    change: Attributes,
) -> Result<()> {
    if change.is_empty() {
        return Ok(());
    }
    let attr = MountAttr { set: change.set, clear: change.clear, ..Default::default() };
    mount_setattr(tree, recursive, attr).doing(|| format!("{}: mount flags", wanted.field))?;
    Ok(())
}
