//! Which cgroup hierarchies there are, and where.
//!
//! A machine has one of three layouts: only cgroup2 at `/sys/fs/cgroup`; only v1 hierarchies, each with one or more
//! controllers (or just a name) below it; or both ("hybrid"), where a controller belongs to whichever side claimed it.
//! In a container the mounts may show only a part of a hierarchy, whose root mountinfo names.

use super::io;
use crate::error::Result;
use ckrun_virt::Doing;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// Where every distribution mounts cgroups.
pub(super) const MOUNT: &str = "/sys/fs/cgroup";

/// The two generations of cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Version {
    V1,
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    /// v1: `cpu,cpuacct` or `name=systemd`, as in `/proc/self/cgroup`. v2: empty, the kernel's `cgroup.controllers`
    /// says it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) controllers: String,
    /// The mount point.
    pub(super) mount: PathBuf,
    /// The cgroup that the mount point shows; `/` unless it is a bind mount of a part.
    pub(super) root: PathBuf,
    /// The directory of ckrun's own cgroup; None when this mount doesn't show it.
    #[serde(skip)]
    pub(super) own: Option<PathBuf>,
}

impl Hierarchy {
    /// Whether it is the v1 hierarchy of `controller`.
    pub(super) fn has(&self, controller: &str) -> bool {
        self.version == Version::V1 && self.controllers.split(',').any(|c| c == controller)
    }

    /// The directory of the cgroup that `/proc/PID/cgroup` calls `name`, if the mount shows it.
    pub(super) fn directory(&self, name: &Path) -> Option<PathBuf> {
        // A name with `..` lies outside of the reader's cgroup namespace.
        let below = name.strip_prefix(&self.root).ok()?;
        (!name.starts_with("/..")).then(|| join(&self.mount, below))
    }
}

/// Like [`Path::join`], without a slash at the end when there is nothing to join.
fn join(mount: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { mount.to_owned() } else { mount.join(below) }
}

/// Finds all hierarchies, cgroup2 first.
///
/// # Errors
/// `/proc` can't be read.
pub(super) fn detect() -> Result<Vec<Hierarchy>> {
    let proc = Path::new("/proc/self");
    let members = io::read(proc, "cgroup").doing(|| "read /proc/self/cgroup")?;
    if let Some(unified) = unified(&members) {
        return Ok(vec![unified]);
    }
    let mounts = io::read(proc, "mountinfo").doing(|| "read /proc/self/mountinfo")?;
    Ok(combine(&members, &mounts))
}

/// The common pure cgroup2 layout, known without mountinfo: a container without a cgroup namespace is told apart by
/// its own cgroup, whose name begins outside of the part that is mounted.
fn unified(members: &str) -> Option<Hierarchy> {
    let kind = rustix::fs::statfs(MOUNT).ok()?.f_type;
    if kind != libc::CGROUP2_SUPER_MAGIC {
        return None;
    }
    let name = memberships(members).find_map(|(controllers, name)| controllers.is_empty().then_some(name))?;
    let mut hierarchy = Hierarchy {
        version: Version::V2,
        controllers: String::new(),
        mount: MOUNT.into(),
        root: "/".into(),
        own: None,
    };
    hierarchy.own = hierarchy.directory(name);
    hierarchy.own.as_deref().is_some_and(io::exists).then_some(hierarchy)
}

/// The lines of `/proc/PID/cgroup`: controllers and name.
pub(super) fn memberships(text: &str) -> impl Iterator<Item = (&str, &Path)> {
    text.lines().filter_map(|line| {
        let (controllers, name) = line.split_once(':')?.1.split_once(':')?;
        Some((controllers, Path::new(name)))
    })
}

/// Matches the hierarchies of `/proc/self/cgroup` with the mounts of `/proc/self/mountinfo`. One that is not mounted,
/// or hidden under another mount, can't be used and is left out.
fn combine(members: &str, mountinfo: &str) -> Vec<Hierarchy> {
    let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(Mount::parse).collect();
    let mut found: Vec<Hierarchy> = memberships(members)
        .filter_map(|(controllers, name)| {
            let candidates = mounts.iter().filter(|m| m.shows(controllers) && !m.hidden(&mounts));
            candidates.map(|m| m.hierarchy(controllers, name)).reduce(better)
        })
        .collect();
    // The kernel lists cgroup2 last, with number 0. A process can be born in it, so it comes first here.
    found.sort_by_key(|h| h.version == Version::V1);
    found
}

/// Of two mounts of one hierarchy: the one that shows ckrun's own cgroup, then the one at the usual place, then the
/// one that covers the other, then the first.
fn better(a: Hierarchy, b: Hierarchy) -> Hierarchy {
    let rank = |h: &Hierarchy| (h.own.is_some(), h.mount.starts_with(MOUNT));
    if rank(&b) > rank(&a) || (rank(&b) == rank(&a) && a.mount == b.mount) { b } else { a }
}

/// A line of mountinfo.
#[derive(Debug)]
struct Mount<'a> {
    id: &'a str,
    /// The mount that it is mounted on.
    parent: &'a str,
    root: Cow<'a, str>,
    point: Cow<'a, str>,
    fs_type: &'a str,
    /// The options of the superblock: for v1 they hold the controllers.
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        Some(Mount {
            id: fields.next()?,
            parent: fields.next()?,
            root: unescape(fields.nth(1)?),
            point: unescape(fields.next()?),
            fs_type: file_system.split(' ').next()?,
            options: file_system.rsplit(' ').next()?,
        })
    }

    fn shows(&self, controllers: &str) -> bool {
        match controllers.split(',').next() {
            Some("") | None => self.fs_type == "cgroup2",
            Some(first) => self.fs_type == "cgroup" && self.options.split(',').any(|o| o == first),
        }
    }

    /// Whether its mount point leads to another mount: one on top of it, or of something on the way to it.
    fn hidden(&self, mounts: &[Mount<'_>]) -> bool {
        if mounts.iter().any(|m| m.parent == self.id && m.point == self.point) {
            return true;
        }
        let mut upper = self;
        while let Some(lower) = mounts.iter().find(|m| m.id == upper.parent && m.id != upper.id) {
            // Beside the mount that leads here, one that is nearer to the lower one's root is met first.
            let way = Path::new(upper.point.as_ref());
            let nearer = |m: &Mount<'_>| m.point != upper.point && way.starts_with(m.point.as_ref());
            if mounts.iter().any(|m| m.parent == lower.id && m.id != lower.id && nearer(m)) {
                return true;
            }
            upper = lower;
        }
        false
    }

    fn hierarchy(&self, controllers: &str, name: &Path) -> Hierarchy {
        let mut hierarchy = Hierarchy {
            version: if self.fs_type == "cgroup2" { Version::V2 } else { Version::V1 },
            controllers: controllers.to_owned(),
            mount: PathBuf::from(self.point.as_ref()),
            root: PathBuf::from(self.root.as_ref()),
            own: None,
        };
        hierarchy.own = hierarchy.directory(name);
        hierarchy
    }
}

/// Undoes mountinfo's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> Cow<'_, str> {
    if !field.contains('\\') {
        return field.into();
    }
    let mut text = field.to_owned();
    for (escape, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escape, plain);
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "12:cpuset:/\n4:cpu,cpuacct:/user\n1:name=systemd:/init.scope\n0::/init.scope\n";
    const MOUNTS: &str = "\
        25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        31 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
        32 31 0:27 / /sys/fs/cgroup/unified rw shared:6 - cgroup2 cgroup2 rw,nsdelegate\n\
        33 31 0:28 / /sys/fs/cgroup/systemd rw shared:7 - cgroup cgroup rw,xattr,name=systemd\n\
        40 31 0:35 / /sys/fs/cgroup/cpu,cpuacct rw shared:14 - cgroup cgroup rw,cpu,cpuacct\n";

    fn own(h: &Hierarchy) -> &str {
        h.own.as_deref().unwrap().to_str().unwrap()
    }

    #[test]
    fn hybrid_puts_cgroup2_first_and_leaves_out_what_is_not_mounted() {
        let found = combine(HYBRID, MOUNTS);
        let controllers: Vec<_> = found.iter().map(|h| h.controllers.as_str()).collect();
        assert_eq!(controllers, ["", "cpu,cpuacct", "name=systemd"]);
        assert_eq!(own(&found[0]), "/sys/fs/cgroup/unified/init.scope");
        assert_eq!(own(&found[1]), "/sys/fs/cgroup/cpu,cpuacct/user");
        assert!(found[1].has("cpuacct") && !found[1].has("cpuset") && !found[0].has("cpu"));
    }

    #[test]
    fn a_bind_mounted_part_is_honoured() {
        let found = combine(
            "3:memory:/docker/abc/sub\n2:pids:/docker/abc\n",
            "1 0 0:9 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
             2 0 0:8 /docker/abc /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n",
        );
        assert_eq!(own(&found[0]), "/sys/fs/cgroup/memory/sub");
        assert_eq!(own(&found[1]), "/sys/fs/cgroup/pids");
    }

    #[test]
    fn the_mount_that_shows_us_wins_and_odd_places_work() {
        let found = combine(
            "3:memory:/a/b\n",
            "1 0 0:9 /x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             2 0 0:9 / /odd\\040place rw - cgroup cgroup rw,memory\n",
        );
        assert_eq!(own(&found[0]), "/odd place/a/b");
    }

    #[test]
    fn what_lies_under_another_mount_is_not_there() {
        let mounts = "\
            1 0 8:1 / / rw - ext4 d rw\n\
            2 1 0:2 / /sys rw - sysfs s rw\n\
            3 2 0:3 / /sys/fs/cgroup rw - tmpfs t rw\n\
            4 3 0:4 / /sys/fs/cgroup/pids rw - cgroup c rw,pids\n\
            5 3 0:5 / /sys/fs/cgroup/memory rw - cgroup c rw,memory\n\
            6 5 0:6 / /sys/fs/cgroup/memory rw - tmpfs t rw\n";
        let names = |mounts: &str| {
            let found = combine("1:pids:/\n2:memory:/\n", mounts);
            found.into_iter().map(|h| h.controllers).collect::<Vec<_>>()
        };
        assert_eq!(names(mounts), ["pids"]);
        assert!(names(&format!("{mounts}7 3 0:7 / /sys/fs/cgroup rw - tmpfs t rw\n")).is_empty());
        assert!(names(&format!("{mounts}7 2 0:7 / /sys rw - tmpfs t rw\n")).is_empty());
    }

    #[test]
    fn outside_of_the_namespace_nothing_is_known() {
        let found = combine("0::/\n", "1 0 0:9 /../.. /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
        assert_eq!(found[0].own, None);
        let found = combine("0::/../x\n", "1 0 0:9 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
        assert_eq!(found[0].own, None);
    }

    #[test]
    fn this_machine_has_a_layout_with_our_own_cgroup_in_it() {
        for hierarchy in detect().unwrap() {
            if let Some(own) = &hierarchy.own {
                assert!(own.join("cgroup.procs").exists(), "{own:?}");
            }
        }
    }
}
