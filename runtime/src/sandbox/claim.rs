//! The name of a container that is being made, and who clears up if ckrun does not come to the end of that.

use super::guardian::{Charge, Guardian};
use crate::error::{Error, Result};
use crate::state::{Entry, Store};
use crate::supervisor::launch;
use ckrun_virt::fault;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

/// Under which name a sandbox is built.
#[derive(Debug)]
pub enum At<'a> {
    /// One that is still to be taken.
    New(&'a Store, &'a str),
    /// One that has been taken, for a job with plugins.
    Claimed(Claim),
}

/// A name that has been taken. When this is dropped, nobody has it.
#[derive(Debug)]
pub struct Claim {
    entry: Option<Entry>,
    guardian: Option<Guardian>,
    supervised: bool,
    keeps: Option<RawFd>,
}

impl Claim {
    /// Takes a name for a job with plugins. For a restart somebody clears up if ckrun is killed.
    ///
    /// # Errors
    /// [`Error::IdTaken`]; the store can't be written.
    pub fn new(store: &Store, id: &str, restart: bool) -> Result<Claim> {
        let mut claim = Claim::take(store, id, restart)?;
        claim.supervised = true;
        Ok(claim)
    }

    fn take(store: &Store, id: &str, restart: bool) -> Result<Claim> {
        let mut claim =
            Claim { entry: Some(store.claim(id)?), guardian: None, supervised: false, keeps: None };
        if restart && let Some(entry) = &claim.entry {
            claim.guardian = Some(guard(store, entry)?);
        }
        Ok(claim)
    }

    /// A descriptor of which the init must not have a copy: it waits for `ckrun start`, and somebody waits for its end.
    pub fn keep(&mut self, fd: BorrowedFd<'_>) {
        self.keeps = Some(fd.as_raw_fd());
    }

    /// The container's directory.
    pub fn dir(&self) -> &Path {
        self.entry.as_ref().map_or(Path::new("/"), Entry::dir)
    }
}

/// What a claim was.
#[derive(Debug)]
pub(super) struct Claimed {
    /// The container's directory, locked.
    pub entry: Entry,
    /// For a restart.
    pub guardian: Option<Guardian>,
    /// It has plugins.
    pub supervised: bool,
    /// See [`Claim::keep`].
    pub keeps: Option<RawFd>,
}

impl At<'_> {
    /// Takes the name, unless it has been taken.
    pub(super) fn claim(self, restart: bool) -> Result<Claimed> {
        let mut claim = match self {
            At::New(store, id) => Claim::take(store, id, restart)?,
            At::Claimed(claim) => claim,
        };
        let lost = || Error::InitEnded { during: "its making", how: "without a name".into() };
        let entry = claim.entry.take().ok_or_else(lost)?;
        let (guardian, supervised, keeps) = (claim.guardian.take(), claim.supervised, claim.keeps);
        Ok(Claimed { entry, guardian, supervised, keeps })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        let parted = if self.supervised { launch::part(entry.dir()) } else { Ok(()) };
        if let Err(e) = parted.and_then(|()| entry.remove()) {
            log::warn!("{e}");
        }
    }
}

/// Nothing may be left of a restart that ckrun did not survive.
fn guard(store: &Store, entry: &Entry) -> Result<Guardian> {
    let charge = Charge::Container(store.dir().as_os_str(), &entry.id);
    fault::point("restore:claim")?;
    Guardian::post(entry.held(), charge)
}
