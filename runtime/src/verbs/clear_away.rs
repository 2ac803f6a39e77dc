//! `ckrun clear-away`: what a guardian becomes when its ckrun has been killed.

use super::Context;
use crate::error::{Error, Result};
use crate::sandbox::{destroy, guardian};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// Not for people: ckrun calls itself so after a sudden end
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Args {
    /// A container that has not come to be
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// A folder that was not finished
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The pipe from the ckrun that has ended
    #[arg(long, value_name = "FD")]
    line: RawFd,
}

/// Carries it out. The container's lock is among the inherited descriptors and held until the end.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    // SAFETY: no descriptor is closed now, so nobody is wronged. Hooks must inherit none.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    if args.line < 3 {
        return Err(Error::Usage(format!("--line {}: is a standard stream", args.line)));
    }
    // SAFETY: inherited for this very purpose; nobody else in this process owns it.
    let line = unsafe { OwnedFd::from_raw_fd(args.line) };
    if let Some(id) = &args.container {
        destroy::unmake(&context.store, id, guardian::last_words(line.into()))?;
    }
    args.folder.as_deref().map_or(Ok(()), remove)
}

/// Removes a folder, unless somebody works in it again.
fn remove(folder: &Path) -> Result<()> {
    let Ok(dir) = File::open(folder) else { return Ok(()) };
    match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
        Ok(_held) => std::fs::remove_dir_all(folder).map_err(|e| Error::file(folder, &e)),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_use_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("image.partial");
        remove(&folder).unwrap();
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("pages-0.img"), "half").unwrap();
        let held = Flock::lock(File::open(&folder).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        remove(&folder).unwrap();
        assert!(folder.exists());
        drop(held);
        remove(&folder).unwrap();
        assert!(!folder.exists());
    }
}
