//! State that ckrun reads and sets from outside a task, without the task's help.

use crate::Failure;
use crate::resource::Stopped;
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One kind of such state. See [`Resource`](crate::resource::Resource) for what only the task itself can say or do.
pub trait Outside: Serialize + DeserializeOwned + Sized {
    /// A restart without it is worth nothing. Otherwise a failure is told, and the restart goes on.
    const NEEDED: bool = true;

    /// Reads it.
    ///
    /// # Errors
    /// What could not be read, and why.
    fn capture(task: &Stopped) -> Result<Self, Failure>;

    /// Gives it to the task whose id in ckrun's pid namespace is `host`.
    ///
    /// # Errors
    /// What could not be set, and why.
    fn restore(&self, host: Pid) -> Result<(), Failure>;

    /// As [`Outside::restore`], for a task that was born with `born`, if that is known.
    ///
    /// # Errors
    /// As [`Outside::restore`].
    fn restore_over(&self, born: Option<&Self>, host: Pid) -> Result<(), Failure>
    where
        Self: PartialEq,
    {
        if born == Some(self) { Ok(()) } else { self.restore(host) }
    }
}
