//! The mounts of a namespace with everything that the kernel says of them (proc_pid_mountinfo(5)).

use crate::fd::unescape;
use std::collections::{HashMap, HashSet};

/// File systems that a job may have mounted and that are made of nothing, or of what the kernel has anyway.
pub(super) const KINDS: [&str; 11] = [
    "tmpfs",
    "proc",
    "sysfs",
    "mqueue",
    "cgroup2",
    "cgroup",
    "securityfs",
    "debugfs",
    "tracefs",
    "configfs",
    BINFMT_MISC,
];

/// Every user namespace has one of its own, with content.
pub(super) const BINFMT_MISC: &str = "binfmt_misc";

/// The options of a mount, as mountinfo and mount(8) call them.
const OPTIONS: [(&str, u64); 8] = [
    ("ro", libc::MOUNT_ATTR_RDONLY),
    ("nosuid", libc::MOUNT_ATTR_NOSUID),
    ("nodev", libc::MOUNT_ATTR_NODEV),
    ("noexec", libc::MOUNT_ATTR_NOEXEC),
    ("nosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW),
    ("noatime", libc::MOUNT_ATTR_NOATIME),
    ("nodiratime", libc::MOUNT_ATTR_NODIRATIME),
    ("relatime", libc::MOUNT_ATTR_RELATIME),
];

/// All of them.
pub(super) const ATTRIBUTES: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR_NOSYMFOLLOW
    | libc::MOUNT_ATTR__ATIME
    | libc::MOUNT_ATTR_NODIRATIME;

/// `MOUNT_ATTR_*` of a mount's option.
pub(super) fn attribute(option: &str) -> Option<u64> {
    OPTIONS.iter().find(|(name, _)| *name == option).map(|(_, attribute)| *attribute)
}

/// `MOUNT_ATTR_*` of all of a mount's options. One that says nothing of the times of access is strict about them.
pub(super) fn attributes(options: &[String]) -> u64 {
    let strict = !options.iter().any(|option| matches!(option.as_str(), "noatime" | "relatime"));
    let set: u64 = options.iter().filter_map(|option| attribute(option)).fold(0, |all, one| all | one);
    if strict { set | libc::MOUNT_ATTR_STRICTATIME } else { set }
}

/// What the root of a mount ends with when it has been deleted.
const DELETED: &[u8] = b"//deleted";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its number, and that of what it is mounted on.
    pub(crate) id: u64,
    pub(super) parent: u64,
    /// Its file system: major and minor.
    pub(super) device: String,
    /// What of that is mounted.
    pub(super) root: Vec<u8>,
    /// Where.
    pub(crate) point: Vec<u8>,
    /// Its own options.
    pub(super) options: Vec<String>,
    /// Its group of peers.
    pub(super) shared: Option<u32>,
    /// The group that it receives from.
    pub(super) master: Option<u32>,
    /// No copies can be made of it.
    pub(super) unbindable: bool,
    pub(super) kind: String,
    pub(super) source: Vec<u8>,
    /// Options of the file system.
    pub(super) data: Vec<u8>,
}

impl Line {
    /// All that a file `mountinfo` lists.
    pub(super) fn all(text: &[u8]) -> Vec<Line> {
        text.split(|&b| b == b'\n').filter_map(Line::parse).collect()
    }

    fn parse(line: &[u8]) -> Option<Line> {
        let mut words = line.split(|&b| b == b' ');
        let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
        let mut number = || std::str::from_utf8(words.next()?).ok()?.parse().ok();
        let (id, parent) = (number()?, number()?);
        let device = text(words.next()?);
        let (root, point) = (unescape(words.next()?), unescape(words.next()?));
        let options = text(words.next()?).split(',').map(str::to_owned).collect();
        let (mut shared, mut master, mut unbindable) = (None, None, false);
        for word in words.by_ref().take_while(|&word| word != b"-") {
            match text(word).split_once(':') {
                Some(("shared", group)) => shared = group.parse().ok(),
                Some(("master", group)) => master = group.parse().ok(),
                _ => unbindable |= word == b"unbindable",
            }
        }
        let (kind, source) = (text(words.next()?), unescape(words.next()?));
        let data = unescape(words.next().unwrap_or_default());
        Some(Line {
            id,
            parent,
            device,
            root,
            point,
            options,
            shared,
            master,
            unbindable,
            kind,
            source,
            data,
        })
    }

    pub(super) fn has(&self, wanted: &str) -> bool {
        self.options.iter().any(|option| option == wanted)
    }

    pub(super) fn read_only(&self) -> bool {
        self.has("ro")
    }

    /// The file system is, and with it all its mounts.
    pub(super) fn wholly_read_only(&self) -> bool {
        self.data.split(|&b| b == b',').any(|word| word == b"ro")
    }

    /// The options that a mount of the same file system does not have by itself.
    pub(super) fn flags(&self) -> Vec<String> {
        self.options.iter().filter(|option| attribute(option).is_some()).cloned().collect()
    }

    /// The file system's options for a new one like it: without what its first mount alone decides, and if it is `foreign`,
    /// of another user namespace, without the owner, whose numbers are ckrun's. Its root directory gets its owner anyway.
    pub(super) fn data(&self, foreign: bool) -> Vec<u8> {
        let owner = |word: &[u8]| word.starts_with(b"uid=") || word.starts_with(b"gid=");
        let left_out = |word: &&[u8]| [&b"rw"[..], b"ro"].contains(word) || foreign && owner(word);
        let words = self.data.split(|&b| b == b',').filter(|word| !left_out(word));
        words.collect::<Vec<_>>().join(&b","[..])
    }

    /// What is mounted, and whether it has been deleted.
    pub(super) fn origin(&self) -> (&[u8], bool) {
        self.root.strip_suffix(DELETED).map_or((&self.root[..], false), |root| (root, true))
    }

    /// It shows the file system as a whole.
    pub(super) fn whole(&self) -> bool {
        self.root == b"/"
    }
}

/// What a path is below a directory; empty for the directory itself.
pub(super) fn below<'a>(path: &'a [u8], directory: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(directory.strip_suffix(b"/").unwrap_or(directory))?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
}

/// Of mounts on the same one, those that hide others.
fn hiders(siblings: &[&Line]) -> HashSet<u64> {
    let mut above = HashSet::new();
    for line in siblings {
        let mut point = &line.point[..];
        while let Some(slash) = point.iter().rposition(|&b| b == b'/') {
            point = &point[..slash];
            if !above.insert(point) {
                break;
            }
        }
    }
    let hides = |line: &&&Line| above.contains(&line.point[..]) || line.point == b"/" && siblings.len() > 1;
    siblings.iter().filter(hides).map(|line| line.id).collect()
}

/// What is mounted on what.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    /// From the oldest to the newest, as the kernel lists them.
    all: &'a [Line],
    lines: HashMap<u64, &'a Line>,
    children: HashMap<u64, Vec<&'a Line>>,
    hiders: HashSet<u64>,
}

impl<'a> Tree<'a> {
    pub(super) fn of(all: &'a [Line]) -> Tree<'a> {
        let mut children: HashMap<u64, Vec<&Line>> = HashMap::new();
        for line in all.iter().filter(|line| line.id != line.parent) {
            children.entry(line.parent).or_default().push(line);
        }
        let hiders = children.values().flat_map(|siblings| hiders(siblings)).collect();
        Tree { all, lines: all.iter().map(|line| (line.id, line)).collect(), children, hiders }
    }

    pub(super) fn line(&self, id: u64) -> Option<&'a Line> {
        self.lines.get(&id).copied()
    }

    /// What a mount is on, and where there; None for the root of the namespace.
    pub(super) fn parent(&self, line: &Line) -> Option<(&'a Line, Vec<u8>)> {
        let parent = self.line(line.parent).filter(|parent| parent.id != line.id)?;
        Some((parent, below(&line.point, &parent.point)?.to_vec()))
    }

    /// What is mounted on a mount.
    pub(super) fn children(&self, id: u64) -> &[&'a Line] {
        self.children.get(&id).map_or(&[], Vec::as_slice)
    }

    /// All mounts, from the oldest to the newest, but each after what it is mounted on, and after those whose places it
    /// hides.
    pub(super) fn in_order(&self) -> Vec<&'a Line> {
        let mut order = Vec::with_capacity(self.all.len());
        let mut done: HashSet<u64> = HashSet::new();
        let mut rest: Vec<&Line> = self.all.iter().collect();
        while !rest.is_empty() {
            let before = rest.len();
            rest.retain(|line| {
                let hidden =
                    |other: &&Line| other.point != line.point && below(&other.point, &line.point).is_some();
                let waits = self.hiders.contains(&line.id)
                    && self.children(line.parent).iter().any(|o| hidden(o) && !done.contains(&o.id));
                let ready = !waits && self.parent(line).is_none_or(|(parent, _)| done.contains(&parent.id));
                if ready {
                    done.insert(line.id);
                    order.push(*line);
                }
                !ready
            });
            if rest.len() == before {
                break;
            }
        }
        order
    }

    /// All mounts, each before what it is mounted on, and before all that it hides.
    pub(super) fn downwards(&self) -> Vec<&'a Line> {
        let mut next: Vec<&Line> = self.all.iter().filter(|line| self.parent(line).is_none()).collect();
        let mut order = Vec::with_capacity(self.all.len());
        while let Some(line) = next.pop() {
            order.push(line);
            let mut children = self.children(line.id).to_vec();
            children.sort_by_key(|line| line.point.len());
            next.extend(children);
        }
        order.reverse();
        order
    }

    /// Nothing is mounted over it, nor over a directory on the way to it.
    pub(super) fn visible(&self, line: &Line) -> bool {
        let over = |child: &&Line| child.point == line.point;
        if self.children(line.id).iter().any(over) {
            return false;
        }
        let mut line = line;
        while let Some((parent, _)) = self.parent(line) {
            let hides = |other: &&&Line| {
                other.id != line.id && below(&line.point, &other.point).is_some() && other.point != line.point
            };
            if self.children(parent.id).iter().any(|other| hides(&other)) {
                return false;
            }
            line = parent;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_all_its_parts() {
        let line =
            br"36 35 0:98 /sys /mnt/a\040b rw,noatime master:1 shared:2 - tmpfs none\040x rw,size=4k,uid=7";
        let line = Line::parse(line).unwrap();
        assert_eq!((line.id, line.parent, line.device.as_str()), (36, 35, "0:98"));
        assert_eq!((&line.root[..], &line.point[..]), (&b"/sys"[..], &b"/mnt/a b"[..]));
        assert_eq!((line.shared, line.master, line.kind.as_str()), (Some(2), Some(1), "tmpfs"));
        assert_eq!((line.flags(), line.data(false)), (vec!["noatime".to_owned()], b"size=4k,uid=7".to_vec()));
        assert_eq!(line.data(true), b"size=4k");
        assert_eq!(line.source, b"none x");
    }

    #[test]
    fn what_hides_another_mount_comes_after_it() {
        let text = b"1 0 8:1 / / rw - ext4 r rw\n2 1 0:1 / /a rw - tmpfs t rw\n3 1 0:2 / /a/b rw - tmpfs t rw
4 2 0:3 / /a rw - tmpfs t rw\n5 4 0:4 / /a/b rw - tmpfs t rw\n6 1 0:5 / /c rw - tmpfs t rw\n";
        let lines = Line::all(text);
        let tree = Tree::of(&lines);
        let ids = |order: Vec<&Line>| order.iter().map(|line| line.id).collect::<Vec<_>>();
        assert_eq!(ids(tree.in_order()), [1, 3, 6, 2, 4, 5]);
        let order = ids(tree.downwards());
        let before = |a: u64, b: u64| order.iter().position(|&n| n == a) < order.iter().position(|&n| n == b);
        assert!(order.len() == 6 && order[5] == 1, "{order:?}");
        assert!(before(5, 4) && before(4, 2) && before(2, 3), "{order:?}");
        let visible: Vec<u64> = lines.iter().filter(|line| tree.visible(line)).map(|line| line.id).collect();
        assert_eq!(visible, [1, 4, 5, 6]);
        assert_eq!(tree.parent(&lines[4]).unwrap().1, b"b");
        assert_eq!(tree.parent(&lines[3]).unwrap().1, b"");
    }

    #[test]
    fn what_is_below_a_directory() {
        assert_eq!(below(b"/a/b", b"/"), Some(&b"a/b"[..]));
        assert_eq!(below(b"/a/b", b"/a"), Some(&b"b"[..]));
        assert_eq!(below(b"/a", b"/a"), Some(&b""[..]));
        assert_eq!(below(b"/", b"/"), Some(&b""[..]));
        assert_eq!((below(b"/ab", b"/a"), below(b"/", b"/a")), (None, None));
    }
}
