//! One mount of config.json: understood, and put in its place.

use super::mount_options::Options;
use super::root::{Links, Root, clean};
use super::tree::{attach_fd, is_dir};
use crate::config::Ask;
use crate::error::{Error, Result};
use ckrun_virt::Doing;
use ckrun_virt::sys::{MountAttr, mount_setattr};
use libc::MS_REC;
use nix::errno::Errno;
use oci_spec::runtime::{Mount, Spec};
use std::os::fd::{AsFd, OwnedFd};
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
    pub fn takes_label(&self) -> bool {
        !matches!(self.kind, "proc" | "sysfs" | "mqueue" | "devpts")
    }

    /// It has an id mapping of its own.
    pub fn has_map(&self) -> bool {
        self.entry.uid_mappings().is_some()
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

/// Puts a finished tree at its destination, which is made when missing.
pub fn attach(root: &Root, wanted: &Wanted<'_>, tree: &OwnedFd) -> Result<()> {
    // A procfs or sysfs somewhere else than where the masks are would be an open door.
    let links = if matches!(wanted.kind, "proc" | "sysfs") { Links::Refuse } else { Links::Follow };
    let target = if is_dir(tree.as_fd())? {
        root.make_dir(&wanted.destination, links)
    } else {
        root.make_file(&wanted.destination)
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
