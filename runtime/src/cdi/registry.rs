//! The descriptions that a host has.

use super::file::{Device, File};
use super::name::Name;
use crate::config::read_json;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// All descriptions of the kinds that were asked for.
#[derive(Debug, Default)]
pub struct Registry {
    dirs: Vec<PathBuf>,
    /// By directory, the one that wins first; in it by file name.
    files: Vec<Description>,
    /// YAML files that mention a kind that was asked for.
    unread: Vec<PathBuf>,
}

#[derive(Debug)]
struct Description {
    path: PathBuf,
    file: File,
}

/// A device and the description that it is part of.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    pub(super) path: &'a Path,
    pub(super) file: &'a File,
    pub(super) device: &'a Device,
}

impl Registry {
    /// Reads the descriptions in `dirs`, a later directory winning over an earlier one. A directory that does not
    /// exist is empty; subdirectories are not read.
    ///
    /// # Errors
    /// A directory can't be read, or a file that describes one of the `wanted` kinds is broken. Broken files about
    /// other devices are no reason to keep a job from running.
    pub fn read(dirs: &[PathBuf], wanted: &[Name]) -> Result<Registry> {
        let mut registry = Registry { dirs: dirs.to_vec(), ..Registry::default() };
        for dir in dirs.iter().rev() {
            for path in list(dir)? {
                match path.extension().and_then(|ext| ext.to_str()) {
                    Some("json") => registry.files.extend(load(path, wanted)?),
                    Some("yaml" | "yml") if mentions(&path, wanted) => registry.unread.push(path),
                    _ => {}
                }
            }
        }
        Ok(registry)
    }

    /// Looks up a device.
    ///
    /// # Errors
    /// It is not there, and what there is instead; or two files of one directory describe it.
    pub fn find(&self, name: &Name) -> Result<Found<'_>> {
        let mut all = self.files.iter().filter(|d| d.file.kind == name.kind).filter_map(|d| {
            let device = d.file.devices.iter().find(|device| device.name == name.device)?;
            Some(Found { path: &d.path, file: &d.file, device })
        });
        let refuse = |why: String| Error::config(format!("CDI device {name}"), why);
        let found = all.next().ok_or_else(|| refuse(self.missing(name)))?;
        match all.next() {
            Some(other) if other.path.parent() == found.path.parent() => Err(refuse(format!(
                "is described twice, in {} and {}",
                found.path.display(),
                other.path.display()
            ))),
            _ => Ok(found),
        }
    }

    fn missing(&self, name: &Name) -> String {
        if let Some(path) = self.unread.first() {
            return format!(
                "is not described in JSON, but {} may do so in YAML: convert it, for example with `yq -o json`",
                path.display()
            );
        }
        let dirs: Vec<_> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        let dirs = dirs.join(" and ");
        let of_kind = self.files.iter().filter(|d| d.file.kind == name.kind);
        let mut others: Vec<_> = of_kind.flat_map(|d| &d.file.devices).map(|d| d.name.as_str()).collect();
        others.sort_unstable();
        others.dedup();
        if !others.is_empty() {
            return format!("is unknown: of {}, {dirs} describe {}", name.kind, others.join(", "));
        }
        let mut kinds: Vec<_> = self.files.iter().map(|d| d.file.kind.as_str()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        match kinds.is_empty() {
            true => format!("is unknown: {dirs} describe no device"),
            false => format!("is unknown: {dirs} describe devices of {} only", kinds.join(", ")),
        }
    }
}

/// The files of a directory, by name.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file(dir, &e)),
    };
    let mut paths = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|e| Error::file(dir, &e))?;
    paths.sort_unstable();
    Ok(paths)
}

fn load(path: PathBuf, wanted: &[Name]) -> Result<Option<Description>> {
    let checked = read_json::<File>(&path).and_then(|file| match file.check() {
        Ok(()) => Ok(file),
        Err(why) => Err(Error::Json { path: path.clone(), why }),
    });
    match checked {
        Ok(file) => Ok(Some(Description { path, file })),
        Err(e) if mentions(&path, wanted) => Err(e),
        Err(e) => {
            log::warn!("CDI: {e}");
            Ok(None)
        }
    }
}

/// Whether a file that can't be read as it should be is about one of the `wanted` kinds.
fn mentions(path: &Path, wanted: &[Name]) -> bool {
    let Ok(text) = std::fs::read_to_string(path) else { return false };
    let continues = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    wanted.iter().any(|name| {
        text.match_indices(&name.kind).any(|(at, kind)| !text[at + kind.len()..].starts_with(continues))
    })
}
