//! The folders of images that no checkpoint made.

use crate::error::{Error, Result};
use crate::plugin::company::Folder;
use ckrun_virt::Doing;
use nix::unistd::mkdtemp;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A temporary directory. When this is dropped, it goes with all that is in it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one that every user may enter: a plugin may be another's process.
    pub fn new() -> Result<Scratch> {
        let template = std::env::temp_dir().join("ckrun-plugin-check.XXXXXX");
        let path = mkdtemp(&template).doing(|| format!("make a directory {}", template.display()))?;
        let scratch = Scratch(path);
        open_to_all(&scratch.0)?;
        Ok(scratch)
    }

    /// An image's directory.
    pub fn image(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// An empty folder for a plugin in an image.
    pub fn folder(&self, image: &str, plugin: &str) -> Result<Folder> {
        let path = self.image(image).join("plugins").join(plugin);
        std::fs::create_dir_all(&path).map_err(|e| Error::file(&path, &e))?;
        open_to_all(&path)?;
        open(path)
    }

    /// The folder of a plugin in an image that is there.
    pub fn kept(&self, image: &str, plugin: &str) -> Result<Folder> {
        open(self.image(image).join("plugins").join(plugin))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed is no reason to fail; the name says whose it is.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open_to_all(path: &Path) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(0o1777)).map_err(|e| Error::file(path, &e))
}

fn open(path: PathBuf) -> Result<Folder> {
    let fd = File::open(&path).map_err(|e| Error::file(&path, &e))?.into();
    Ok(Folder { path, fd })
}

/// The files below a directory and their sizes; links are not followed.
///
/// # Errors
/// What is there beside files and directories, for a person.
pub fn files(dir: &Path) -> Result<Vec<(PathBuf, u64)>, String> {
    let mut found = Vec::new();
    let read = |e: std::io::Error| format!("{}: {e}", dir.display());
    for entry in std::fs::read_dir(dir).map_err(read)? {
        let entry = entry.map_err(read)?;
        let meta = entry.metadata().map_err(read)?;
        if meta.is_dir() {
            found.extend(files(&entry.path())?);
        } else if meta.is_file() {
            found.push((entry.path(), meta.len()));
        } else {
            return Err(format!("{} is neither a file nor a directory", entry.path().display()));
        }
    }
    Ok(found)
}

/// Copies the files of one folder to another, half of each.
///
/// # Errors
/// Names the file.
pub fn truncated_copy(from: &Path, to: &Path) -> Result<()> {
    for (path, size) in files(from).map_err(Error::Usage)? {
        let Ok(inside) = path.strip_prefix(from) else { continue };
        let copy = to.join(inside);
        let done = copy.parent().map_or(Ok(()), std::fs::create_dir_all);
        let done = done
            .and_then(|()| std::fs::copy(&path, &copy))
            .and_then(|_| File::options().write(true).open(&copy));
        done.and_then(|file| file.set_len(size / 2)).map_err(|e| Error::file(&copy, &e))?;
    }
    Ok(())
}
