//! `ckrun clear-away`: what a guardian becomes when its ckrun has been killed.

use super::Context;
use crate::error::{Error, Result};
use crate::sandbox::{destroy, guardian};
use ckrun_virt::image::{self, Writer};
use ckrun_virt::{Process, snapshot};
use nix::unistd::{Pid, getppid};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Not for people: ckrun calls itself so after a sudden end
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Args {
    /// A container that has not come to be
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// An image that was not finished
    #[arg(long, value_name = "DIR")]
    image: Option<PathBuf>,
    /// An image that was to be used once
    #[arg(long, value_name = "DIR")]
    passing: Option<PathBuf>,
    /// The pipe from the ckrun that has ended
    #[arg(long, value_name = "FD")]
    line: RawFd,
    /// The ckrun that ends
    #[arg(long, value_name = "PID")]
    after: i32,
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
    let init = guardian::last_words(line.into());
    await_end(Pid::from_raw(args.after))?;
    if let Some(id) = &args.container {
        destroy::unmake(&context.store, id, init)?;
    } else if let Some(init) = init.and_then(|init| Process::open(Pid::from_raw(init.pid), init.started)) {
        // Of a job whose checkpoint has ended like this.
        snapshot::sweep(init.pid())?;
    }
    if let Some(dir) = args.passing.as_deref().filter(|dir| dir.exists()) {
        std::fs::remove_dir_all(dir).map_err(|e| Error::file(dir, &e))?;
    }
    args.image.iter().chain(&args.passing).try_for_each(|dir| remove(dir))
}

/// Waits until the ckrun that we watched has ended altogether. The kernel closes the pipe first, and only then lets go of
/// the processes that it traced.
fn await_end(ckrun: Pid) -> Result<()> {
    let Some(process) = Process::open_now(ckrun) else { return Ok(()) };
    // Another process may have its id already; but then it is not our parent any more.
    if getppid() == ckrun {
        process.wait(Duration::MAX)?;
    }
    Ok(())
}

/// Removes what a dead writer left at the place of an image: the next one who wants to write there does so first of all.
fn remove(dir: &Path) -> Result<()> {
    match Writer::create(dir) {
        // Complete, or somebody else is at work.
        Err(image::Error::Exists { .. } | image::Error::Busy { .. }) => Ok(()),
        other => Ok(other.map(drop).map_err(ckrun_virt::Error::from)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_image_goes_unless_somebody_works_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let (image, partial) = (dir.path().join("image"), dir.path().join("image.partial"));
        remove(&image).unwrap();
        std::fs::create_dir(&partial).unwrap();
        std::fs::write(partial.join("pages-0.img"), "half").unwrap();
        let writer = Writer::create(&image).unwrap();
        remove(&image).unwrap();
        assert!(partial.exists());
        // As after a kill: the lock is gone, the folder is not.
        std::fs::rename(&partial, dir.path().join("kept")).unwrap();
        drop(writer);
        std::fs::rename(dir.path().join("kept"), &partial).unwrap();
        remove(&image).unwrap();
        assert!(!partial.exists() && !image.exists());
    }
}
