//! The mounts of a container with everything that the kernel says of them (proc_pid_mountinfo(5)).

use crate::fd::unescape;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use rustix::mount::MountFlags;

/// File systems that a job may have mounted and that are made of nothing.
pub(super) const KINDS: [&str; 6] = ["tmpfs", "proc", "sysfs", "mqueue", "cgroup2", "cgroup"];

/// The options of a mount, as mountinfo and mount(8) call them.
const OPTIONS: [(&str, MountFlags); 7] = [
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
];

/// The flag of a mount's option.
pub(super) fn flag(option: &str) -> Option<MountFlags> {
    OPTIONS.iter().find(|(name, _)| *name == option).map(|(_, flag)| *flag)
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Its number, and that of what it is mounted on.
    pub(super) id: u64,
    pub(super) parent: u64,
    /// Its file system: major and minor.
    pub(super) device: String,
    /// What of that is mounted.
    pub(super) root: Vec<u8>,
    /// Where.
    pub(super) point: Vec<u8>,
    /// Its own options.
    pub(super) options: Vec<String>,
    /// Its group of peers.
    pub(super) shared: Option<u32>,
    /// The group that it receives from.
    pub(super) master: Option<u32>,
    pub(super) kind: String,
    pub(super) source: Vec<u8>,
    /// Options of the file system.
    pub(super) data: Vec<u8>,
}

impl Line {
    /// All mounts of the container whose first process is `init`; each after what it is mounted on.
    pub(super) fn all(init: Pid) -> Result<Vec<Line>, Failure> {
        let path = format!("/proc/{init}/mountinfo");
        let text = crate::proc::read(&path).doing(|| format!("read {path}"))?;
        Ok(text.split(|&b| b == b'\n').filter_map(Line::parse).collect())
    }

    fn parse(line: &[u8]) -> Option<Line> {
        let mut words = line.split(|&b| b == b' ');
        let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
        let mut number = || std::str::from_utf8(words.next()?).ok()?.parse().ok();
        let (id, parent) = (number()?, number()?);
        let device = text(words.next()?);
        let (root, point) = (unescape(words.next()?), unescape(words.next()?));
        let options = text(words.next()?).split(',').map(str::to_owned).collect();
        let (mut shared, mut master) = (None, None);
        for word in words.by_ref().take_while(|&word| word != b"-") {
            match text(word).split_once(':') {
                Some(("shared", group)) => shared = group.parse().ok(),
                Some(("master", group)) => master = group.parse().ok(),
                _ => {}
            }
        }
        let (kind, source) = (text(words.next()?), unescape(words.next()?));
        let data = unescape(words.next().unwrap_or_default());
        Some(Line { id, parent, device, root, point, options, shared, master, kind, source, data })
    }

    pub(super) fn read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }

    /// The file system is, and with it all its mounts.
    pub(super) fn wholly_read_only(&self) -> bool {
        self.data.split(|&b| b == b',').any(|word| word == b"ro")
    }

    /// The options that mount(2) takes as flags.
    pub(super) fn flags(&self) -> Vec<String> {
        self.options.iter().filter(|option| flag(option).is_some()).cloned().collect()
    }

    /// The file system's options for a new one like it: without what its first mount alone decides.
    pub(super) fn data(&self) -> Vec<u8> {
        let words = self.data.split(|&b| b == b',').filter(|word| ![&b"rw"[..], b"ro"].contains(word));
        words.collect::<Vec<_>>().join(&b","[..])
    }

    /// The path of what it shows as seen through `base`, another mount of the same file system.
    pub(super) fn through(&self, base: &Line) -> Option<Vec<u8>> {
        let rest = match base.root.as_slice() {
            b"/" => &self.root[..],
            root => self.root.strip_prefix(root)?,
        };
        match rest {
            b"" | b"/" => Some(base.point.clone()),
            rest if rest.starts_with(b"/") && base.point == b"/" => Some(rest.to_vec()),
            rest if rest.starts_with(b"/") => Some([&base.point, rest].concat()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_all_its_parts() {
        let line = br"36 35 0:98 /sys /mnt/a\040b rw,noatime master:1 shared:2 - tmpfs none\040x rw,size=4k";
        let line = Line::parse(line).unwrap();
        assert_eq!((line.id, line.parent, line.device.as_str()), (36, 35, "0:98"));
        assert_eq!((&line.root[..], &line.point[..]), (&b"/sys"[..], &b"/mnt/a b"[..]));
        assert_eq!((line.shared, line.master, line.kind.as_str()), (Some(2), Some(1), "tmpfs"));
        assert_eq!((line.flags(), line.data()), (vec!["noatime".to_owned()], b"size=4k".to_vec()));
        assert_eq!(line.source, b"none x");
    }

    #[test]
    fn a_bound_directory_is_found_through_another_mount() {
        let line = |root: &str, point: &str| {
            Line::parse(format!("1 0 8:1 {root} {point} rw - ext4 /dev/sda rw").as_bytes()).unwrap()
        };
        let root = line("/srv/rootfs", "/");
        for (bound, from) in [
            ("/srv/rootfs/a/b", Some("/a/b")),
            ("/srv/rootfs", Some("/")),
            ("/srv/rootfs2", None),
            ("/etc", None),
        ] {
            let found = line(bound, "/mnt").through(&root);
            assert_eq!(found.as_deref(), from.map(str::as_bytes), "{bound}");
        }
        assert_eq!(line("/x/y", "/q").through(&line("/x", "/mnt")).unwrap(), b"/mnt/y");
        assert_eq!(line("/x", "/q").through(&line("/", "/mnt")).unwrap(), b"/mnt/x");
    }
}
