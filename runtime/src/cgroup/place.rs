//! Where in each hierarchy a container's cgroup is, and where it must not be.

use super::layout::{Hierarchy, Version};
use super::{Request, kill};
use crate::error::{Error, Result};
use std::path::{Component, Path, PathBuf};

const FIELD: &str = "linux.cgroupsPath";

/// A place as it was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    /// From the root of the mount, or from ckrun's own cgroup.
    absolute: bool,
    /// At least one component, none of them `..`.
    path: PathBuf,
}

impl Asked {
    /// The place that `linux.cgroupsPath`, or failing that the container's id, asks for.
    pub(super) fn of(request: &Request<'_>) -> Result<Asked> {
        match request.path {
            Some(path) if !path.as_os_str().is_empty() => Self::parse(path),
            _ => Self::parse(Path::new(&format!("ckrun-{}", request.id))),
        }
    }

    /// A place from the root of the mount.
    pub(super) fn parse(path: &Path) -> Result<Asked> {
        let mut clean = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => clean.push(name),
                Component::ParentDir => return Err(refuse(path, "has a \"..\" in it")),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        if clean.as_os_str().is_empty() {
            return Err(refuse(path, "names no cgroup of the container's own: add a name"));
        }
        Ok(Asked { absolute: path.is_absolute(), path: clean })
    }

    /// The directory in `hierarchy`.
    ///
    /// # Errors
    /// It is ckrun's own cgroup or one above it: its other processes would be limited, frozen and killed together with
    /// the container.
    pub(super) fn directory(&self, hierarchy: &Hierarchy) -> Result<PathBuf> {
        let base = match &hierarchy.own {
            Some(own) if !self.absolute => match hierarchy.version {
                Version::V1 => own,
                // A cgroup2 with processes in it (ckrun's own has at least one) can't give controllers to children,
                // so the place is beside ckrun's own, if that is not the root, which is exempt from this rule.
                Version::V2 => {
                    own.parent().filter(|p| p.starts_with(&hierarchy.mount)).unwrap_or(&hierarchy.mount)
                }
            },
            _ => &hierarchy.mount,
        };
        let directory = base.join(&self.path);
        match &hierarchy.own {
            Some(own) if own.starts_with(&directory) => {
                let why = format!("{} is ckrun's own cgroup or above it", directory.display());
                Err(refuse(&self.path, &format!("{why}: choose one for the container alone")))
            }
            _ => Ok(directory),
        }
    }
}

/// Checks a directory that is there already.
///
/// # Errors
/// There are processes in it or below, which are not the container's; or it can't be known whether it is above ckrun's
/// own.
pub(super) fn must_be_free(hierarchy: &Hierarchy, directory: &Path) -> Result<()> {
    if hierarchy.own.is_none() {
        let why =
            format!("{} exists, and ckrun can't see whether it is itself below it", directory.display());
        return Err(Error::config(FIELD, why));
    }
    if kill::pids_below(directory)?.is_empty() {
        return Ok(());
    }
    let why = format!("there are processes in cgroup {} already: choose another", directory.display());
    Err(Error::config(FIELD, why))
}

fn refuse(path: &Path, why: &str) -> Error {
    Error::config(FIELD, format!("{path:?} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(version: Version, own: &str) -> Hierarchy {
        let own = Some(own.into());
        Hierarchy { version, controllers: String::new(), mount: "/m".into(), root: "/".into(), own }
    }

    fn place(path: &str, version: Version, own: &str) -> Result<PathBuf> {
        Asked::parse(Path::new(path))?.directory(&hierarchy(version, own))
    }

    #[test]
    fn absolute_is_from_the_mount_and_relative_from_our_own() {
        assert_eq!(place("/a/b", Version::V1, "/m/x/y").unwrap(), Path::new("/m/a/b"));
        assert_eq!(place("a/b", Version::V1, "/m/x/y").unwrap(), Path::new("/m/x/y/a/b"));
        assert_eq!(place("a", Version::V2, "/m/x/y").unwrap(), Path::new("/m/x/a"));
        assert_eq!(place("a", Version::V2, "/m").unwrap(), Path::new("/m/a"));
    }

    #[test]
    fn no_way_leads_up_or_to_ourselves() {
        for path in ["/", "", ".", "/.", "//", "..", "/../x", "a/../..", "/x", "/x/y", "/x/./y/", "//x"] {
            for version in [Version::V1, Version::V2] {
                let refused = place(path, version, "/m/x/y").unwrap_err().to_string();
                assert!(refused.starts_with("linux.cgroupsPath: "), "{refused}");
            }
        }
        // On v2 the place is beside our own: our own name is taken by ourselves.
        assert!(place("y", Version::V2, "/m/x/y").is_err());
        assert!(place("/x/y/z", Version::V1, "/m/x/y").is_ok());
        assert!(place("/xy", Version::V1, "/m/x/y").is_ok());
    }
}
