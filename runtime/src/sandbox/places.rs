//! Where the sandbox mounts something: whatever else is mounted in a container, its job has done.

use super::root::clean;
use super::{devices, hooks};
use crate::config::Ask;
use ckrun_virt::mounts::Places;
use oci_spec::runtime::Spec;
use std::path::{Path, PathBuf};

/// All places; None when only the hooks know.
pub fn of(spec: &Spec) -> Option<Places> {
    if hooks::before_start(spec) {
        return None;
    }
    let mut places = Places::default();
    for mount in spec.mount_list() {
        let kind = mount.typ().as_deref().unwrap_or_default();
        let options = mount.options().iter().flatten();
        // A cgroup mount of version 1 is one for each hierarchy.
        let cgroup = matches!(kind, "cgroup" | "cgroup2");
        if kind == "bind" || cgroup || options.clone().any(|o| matches!(o.as_str(), "bind" | "rbind")) {
            places.trees.push(clean(mount.destination()));
        }
        if options.clone().any(|o| matches!(o.as_str(), "ro" | "rro")) {
            places.read_only.push(clean(mount.destination()));
        }
        let list = if cgroup { &mut places.covered } else { &mut places.mounted };
        list.push(clean(mount.destination()));
    }
    if spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false) {
        places.read_only.push("/".into());
    }
    let paths = |list: &Option<Vec<String>>| -> Vec<PathBuf> {
        list.iter().flatten().map(|path| clean(Path::new(path))).collect()
    };
    if let Some(linux) = spec.lx() {
        places.covered.extend(paths(linux.masked_paths()));
        // What is mounted below comes along.
        places.covered.extend(paths(linux.readonly_paths()));
        places.trees.extend(paths(linux.readonly_paths()));
    }
    // Where devices can't be made they are bound.
    places.covered.extend(devices::places(spec).map(clean));
    places.covered.push("/dev/console".into());
    Some(places)
}
