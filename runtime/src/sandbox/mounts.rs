//! The mounts of config.json.
//!
//! Every mount is made detached, complete with its flags, and then attached to a descriptor of its destination
//! (fsopen(2), open_tree(2), move_mount(2)). So no half-configured mount is ever visible, no path below the root is
//! resolved by mount(2), and the kernel's own words on a bad option can be read back.

use super::labels;
use super::mount_options::{Attributes, IdMap, Options};
use super::root::{Links, Root, clean};
use super::{cgroup_mount, copy_up};
use crate::cgroup::Cgroups;
use crate::config::Ask;
use crate::error::{Error, Result};
use ckrun_virt::error::text;
use ckrun_virt::sys::{MountAttr, mount_setattr};
use ckrun_virt::{Doing, Failure};
use libc::MS_REC;
use nix::errno::Errno;
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{CWD, FileType, fstat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// One mount of config.json, understood.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// `mounts[3]`, for errors.
    pub field: String,
    /// Where, as the container will see it.
    pub destination: PathBuf,
    /// The type of file system; empty or "none" for a bind.
    pub kind: &'a str,
    /// The host's path, or what the file system calls its source.
    pub source: PathBuf,
    /// The sorted options.
    pub options: Options,
    /// Its own entry, for the id mappings.
    pub entry: &'a Mount,
}

impl Wanted<'_> {
    /// procfs, sysfs and the like have labels of their own.
    fn takes_label(&self) -> bool {
        !matches!(self.kind, "proc" | "sysfs" | "mqueue" | "devpts")
    }

    /// A new file system at /dev becomes read-only only when it is furnished.
    pub fn late_read_only(&self) -> bool {
        let read_only =
            (self.options.attributes.set | self.options.recursive.set) & libc::MOUNT_ATTR_RDONLY != 0;
        !self.options.bind && self.destination == Path::new("/dev") && read_only
    }
}

/// Understands all mounts, before anything is made.
///
/// # Errors
/// A relative destination, a bind without a source, options that exclude each other.
pub fn plan<'a>(spec: &'a Spec, bundle: &Path) -> Result<Vec<Wanted<'a>>> {
    spec.mount_list().iter().enumerate().map(|(i, entry)| understand(i, entry, bundle)).collect()
}

fn understand<'a>(index: usize, entry: &'a Mount, bundle: &Path) -> Result<Wanted<'a>> {
    let field = format!("mounts[{index}] ({})", entry.destination().display());
    let mut options = Options::parse(&field, entry.options().as_deref().unwrap_or_default())?;
    let kind = entry.typ().as_deref().unwrap_or("");
    options.bind |= kind == "bind";
    let mut source = entry.source().clone().unwrap_or_default();
    if options.bind {
        if source.as_os_str().is_empty() {
            return Err(Error::config(format!("{field}.source"), "a bind mount needs one"));
        }
        source = bundle.join(source);
    } else if kind.is_empty() || kind == "none" {
        return Err(Error::config(
            format!("{field}.type"),
            "is missing, and the options do not make it a bind mount",
        ));
    }
    Ok(Wanted { field, destination: clean(entry.destination()), kind, source, options, entry })
}

/// The trees that must be opened by ckrun itself, not by the init: those whose sources a container's root without the
/// host's rights might not reach, and those with an id mapping, which only the host's root may set.
///
/// The result has one place for each mount.
pub fn open_early(spec: &Spec, wanted: &[Wanted<'_>], own_userns: bool) -> Result<Vec<Option<OwnedFd>>> {
    wanted
        .iter()
        .map(|mount| {
            let early = mount.options.bind && (own_userns || mount.options.idmap.is_some() || has_map(mount));
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

fn has_map(mount: &Wanted<'_>) -> bool {
    mount.entry.uid_mappings().is_some()
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
            return self.attach(wanted, tree);
        }
        if matches!(wanted.kind, "cgroup" | "cgroup2") {
            return cgroup_mount::make(self, wanted);
        }
        let label = labels::mount_option(self.spec).filter(|_| wanted.takes_label());
        let mount = new_filesystem(wanted, label.as_deref())?;
        if wanted.options.copy_up
            && let Ok(under) = self.root.open(&wanted.destination, Links::Follow)
        {
            copy_up::copy(under.as_fd(), mount.as_fd())
                .map_err(|e| Error::config(&wanted.field, format!("tmpcopyup: {e}")))?;
            // Only a full tmpfs may become read-only.
            set_attributes(wanted, mount.as_fd(), false, wanted.options.attributes)?;
        }
        self.attach(wanted, mount)
    }

    /// Puts a finished tree at its destination, which is made when missing.
    pub fn attach(&self, wanted: &Wanted<'_>, tree: OwnedFd) -> Result<()> {
        // A procfs or sysfs somewhere else than where the masks are would be an open door.
        let links = if matches!(wanted.kind, "proc" | "sysfs") { Links::Refuse } else { Links::Follow };
        let target = if is_dir(tree.as_fd())? {
            self.root.make_dir(&wanted.destination, links)
        } else {
            self.root.make_file(&wanted.destination)
        };
        let target = target.map_err(|e| match e.errno {
            Errno::ELOOP if links == Links::Refuse => Error::config(
                &wanted.field,
                format!("{} must be mounted on ordinary directory, and this is a symlink", wanted.kind),
            ),
            _ => Error::config(&wanted.field, e.to_string()),
        })?;
        for flags in &wanted.options.propagation {
            let attr = MountAttr { propagation: flags & !MS_REC, ..Default::default() };
            mount_setattr(tree.as_fd(), flags & MS_REC != 0, attr)
                .doing(|| format!("{}: propagation", wanted.field))?;
        }
        attach_fd(tree.as_fd(), target.as_fd()).doing(|| format!("{}: mount", wanted.field))?;
        Ok(())
    }
}

/// Whether the root of a tree is a directory.
pub fn is_dir(tree: BorrowedFd<'_>) -> Result<bool, Failure> {
    let stat = fstat(tree).doing(|| "stat the source of a mount")?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Attaches a detached tree to the place that `target` is.
pub fn attach_fd(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let both_empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", target, c"", both_empty)
}

/// A detached copy of the mount at `path` of the host; with `recursive`, of all that is mounted below too.
pub fn clone_path(path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(CWD, path, flags)
}

/// A detached copy of the mount at the place that `fd` is.
pub fn clone_fd(fd: BorrowedFd<'_>, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(fd, c"", flags)
}

fn open_source(spec: &Spec, wanted: &Wanted<'_>) -> Result<OwnedFd> {
    let Options { attributes, recursive, .. } = wanted.options;
    let tree = clone_path(&wanted.source, wanted.options.recursive_bind)
        .doing(|| format!("{}: bind {}", wanted.field, wanted.source.display()))?;
    if wanted.options.idmap.is_some() || has_map(wanted) {
        super::idmapped::apply(spec, wanted, tree.as_fd(), wanted.options.idmap == Some(IdMap::Tree))?;
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

/// Makes a file system with the options of config.json, mounted nowhere yet.
fn new_filesystem(wanted: &Wanted<'_>, label: Option<&str>) -> Result<OwnedFd> {
    let Options { attributes, recursive, copy_up, .. } = wanted.options;
    let context = fsopen(wanted.kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| match e {
        rustix::io::Errno::NODEV => Error::config(
            format!("{}.type", wanted.field),
            format!("this kernel has no file system {:?}", wanted.kind),
        ),
        e => Failure::new(
            format!("{}: fsopen {}", wanted.field, wanted.kind),
            Errno::from_raw(e.raw_os_error()),
        )
        .into(),
    })?;
    let refused = |option: &str| {
        let (context, option) = (context.as_fd(), option.to_owned());
        move |e: rustix::io::Errno| refused(wanted, context, &option, e)
    };
    if !wanted.source.as_os_str().is_empty() {
        fsconfig_set_string(&context, "source", &*wanted.source).map_err(refused("source"))?;
    }
    for option in wanted.options.data.iter().map(String::as_str).chain(label) {
        if option == "ro" && (copy_up || wanted.late_read_only()) {
            continue;
        }
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, option),
        }
        .map_err(refused(option))?;
    }
    fsconfig_create(&context).map_err(refused(""))?;
    let mut early = if copy_up { 0 } else { attributes.set | recursive.set };
    if wanted.late_read_only() {
        early &= !libc::MOUNT_ATTR_RDONLY;
    }
    let flags = MountAttrFlags::from_bits_retain(early as _);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(refused(""))
}

/// The kernel's words on why it refused an option: a file system context keeps a log, one message a read, each with a
/// letter for its level (fsopen(2)).
fn refused(wanted: &Wanted<'_>, context: BorrowedFd<'_>, option: &str, e: rustix::io::Errno) -> Error {
    let mut said = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length) = rustix::io::read(context, &mut buffer)
        && length > 2
    {
        said.push(String::from_utf8_lossy(&buffer[2..length]).trim().to_owned());
    }
    let errno = Errno::from_raw(e.raw_os_error());
    let reason = if said.is_empty() { text(errno) } else { format!("{} ({})", said.join("; "), text(errno)) };
    let what =
        if option.is_empty() { format!("mount {}", wanted.kind) } else { format!("option {option:?}") };
    Error::config(&wanted.field, format!("{what}: {reason}"))
}
