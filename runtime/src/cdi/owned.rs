//! What of a vendor's description is the device: the vendor answers for its state, and each host says what it is there.

use super::name::Name;
use super::registry::Found;
use std::fs;
use std::path::{Path, PathBuf};

/// A device, or a directory of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// Its path in the container.
    pub path: PathBuf,
    /// Its path on this host.
    pub real: PathBuf,
    /// Its vendor's name for it: `vendor.com/class=name`.
    pub name: String,
}

/// All nodes, and those mounts that are no part of a driver's software: what comes to a place below /dev, and whatever is
/// neither a file nor a directory.
pub(super) fn of(name: &Name, found: &Found<'_>) -> Vec<Owned> {
    let owned =
        |path: &str, real: &str| Owned { path: path.into(), real: real.into(), name: name.to_string() };
    let edits = [&found.file.container_edits, &found.device.container_edits];
    let nodes = edits
        .iter()
        .flat_map(|edits| &edits.device_nodes)
        .map(|node| owned(&node.path, if node.host_path.is_empty() { &node.path } else { &node.host_path }));
    let mounts = edits.iter().flat_map(|edits| &edits.mounts);
    let mounts = mounts.filter(|mount| mount.kind.is_empty() || mount.kind == "bind");
    let mounts = mounts.filter(|mount| {
        let software = |real: &str| fs::metadata(real).is_ok_and(|real| real.is_file() || real.is_dir());
        Path::new(&mount.container_path).starts_with("/dev") || !software(&mount.host_path)
    });
    nodes.chain(mounts.map(|mount| owned(&mount.container_path, &mount.host_path))).collect()
}
