//! What a `cgroup` mount of config.json shows.

use super::Cgroups;
use super::layout::MOUNT;
use std::path::PathBuf;

/// What to mount at the destination of a `cgroup` mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// Pure cgroup2: the container's cgroup directory, to be bind-mounted (or a fresh `cgroup2` in a new cgroup
    /// namespace, which shows the same).
    Unified(PathBuf),
    /// Hybrid and v1: a tmpfs with one mount per hierarchy, and symlinks (name, target).
    PerHierarchy { mounts: Vec<ViewMount>, links: Vec<(String, String)> },
}

/// One hierarchy in a container's `/sys/fs/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewMount {
    /// The subdirectory's name, the same as on the host.
    pub name: String,
    /// The directory of the container's cgroup on the host, to be bind-mounted.
    pub directory: PathBuf,
    /// `cgroup` or `cgroup2`, for a fresh mount in a new cgroup namespace.
    pub fs_type: &'static str,
    /// The options of a fresh mount: `cpu,cpuacct`, `none,name=systemd`; empty for cgroup2.
    pub options: String,
}

impl Cgroups {
    /// What a `cgroup` mount shows of these cgroups. A rootless container without a cgroup of its own sees the host's.
    pub fn view(&self) -> View {
        if self.is_pure_v2() {
            let host = || PathBuf::from(MOUNT);
            return View::Unified(self.v2().map_or_else(host, |dir| dir.path.clone()));
        }
        let mut mounts = Vec::with_capacity(self.dirs.len());
        let mut links = Vec::new();
        for dir in &self.dirs {
            let controllers = dir.hierarchy.controllers.as_str();
            let name = match dir.hierarchy.mount.file_name() {
                Some(name) => name.to_string_lossy().into_owned(),
                None => controllers.to_owned(),
            };
            let (fs_type, options) = match controllers {
                "" => ("cgroup2", String::new()),
                named if named.starts_with("name=") => ("cgroup", format!("none,{named}")),
                controllers => ("cgroup", controllers.to_owned()),
            };
            if controllers.contains(',') {
                let others = controllers.split(',').filter(|c| *c != name);
                links.extend(others.map(|c| (c.to_owned(), name.clone())));
            }
            mounts.push(ViewMount { name, directory: dir.path.clone(), fs_type, options });
        }
        View::PerHierarchy { mounts, links }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Dir;
    use super::super::layout::{Hierarchy, Version};
    use super::*;

    fn dir(version: Version, controllers: &str, mount: &str) -> Dir {
        let hierarchy = Hierarchy {
            version,
            controllers: controllers.into(),
            mount: mount.into(),
            root: "/".into(),
            own: None,
        };
        Dir { hierarchy, path: format!("{mount}/c").into(), existed: false }
    }

    #[test]
    fn combined_controllers_get_links_and_named_ones_no_controller() {
        let dirs = vec![
            dir(Version::V2, "", "/sys/fs/cgroup/unified"),
            dir(Version::V1, "cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
            dir(Version::V1, "name=systemd", "/sys/fs/cgroup/systemd"),
        ];
        let View::PerHierarchy { mounts, links } = (Cgroups { dirs, ..Default::default() }).view() else {
            panic!("a hybrid layout has a mount per hierarchy");
        };
        let shown: Vec<_> = mounts.iter().map(|m| (m.name.as_str(), m.fs_type, m.options.as_str())).collect();
        assert_eq!(
            shown,
            [
                ("unified", "cgroup2", ""),
                ("cpu,cpuacct", "cgroup", "cpu,cpuacct"),
                ("systemd", "cgroup", "none,name=systemd")
            ]
        );
        assert_eq!(mounts[1].directory, PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/c"));
        let link = |name: &str| (name.to_owned(), "cpu,cpuacct".to_owned());
        assert_eq!(links, [link("cpu"), link("cpuacct")]);
    }

    #[test]
    fn pure_cgroup2_is_one_directory() {
        let dirs = vec![dir(Version::V2, "", "/sys/fs/cgroup")];
        let view = Cgroups { dirs, ..Default::default() }.view();
        assert_eq!(view, View::Unified("/sys/fs/cgroup/c".into()));
    }
}
