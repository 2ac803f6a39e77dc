//! A system call that failed, with what it was for.

use crate::resource::Blocker;
use nix::errno::Errno;

/// What was being done, to what, and the kernel's answer.
///
/// It reads `mount tmpfs on /dev/shm: permission denied`: lower case and no full stop, because the clients of an OCI
/// runtime match on these words (`no such file or directory`, `permission denied`) and print them inside their own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {}", text(*errno))]
pub struct Failure {
    /// The action and its object, in the present tense: `open /etc/passwd`.
    pub what: String,
    /// The kernel's reason.
    pub errno: Errno,
}

impl Failure {
    /// A failure of `what` for the reason `errno`.
    pub fn new(what: impl Into<String>, errno: Errno) -> Self {
        Failure { what: what.into(), errno }
    }
}

/// The kernel's reason in lower case, as strerror(3) words it.
pub fn text(errno: Errno) -> String {
    let desc = errno.desc();
    let mut chars = desc.chars();
    match (chars.next(), chars.clone().next()) {
        // Leave abbreviations alone: "RFS specific error".
        (Some(first), Some(second)) if !second.is_uppercase() => first.to_lowercase().chain(chars).collect(),
        _ => desc.to_owned(),
    }
}

/// Adds what was being done to an error that knows only its errno. The text is made only when there is an error.
pub trait Doing<T> {
    /// Names the action and its object, see [`Failure::what`].
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|errno| Failure::new(what(), errno))
    }
}

impl<T> Doing<T> for Result<T, rustix::io::Errno> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|errno| Failure::new(what(), Errno::from_raw(errno.raw_os_error())))
    }
}

impl<T> Doing<T> for std::io::Result<T> {
    /// An error that did not come from the kernel (a short read, say) becomes `EIO`.
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|e| Failure::new(what(), e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))
    }
}

/// Why a checkpoint or a restart did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error(transparent)]
    Call(#[from] Failure),
    /// Something that has to do with one process of the job failed.
    #[error("process {pid} ({comm}): {failure}")]
    Process {
        /// Its id in the job.
        pid: i32,
        /// Its command name.
        comm: String,
        /// What failed.
        failure: Failure,
    },
    /// The image can't be written or read.
    #[error(transparent)]
    Image(#[from] crate::image::Error),
    /// The job has what no image can hold.
    #[error("{}", blocked(.0))]
    Blocked(Vec<Blocker>),
    /// The job has, at this moment, what no image can hold.
    #[error("{}", blocked(.0))]
    Passing(Vec<Blocker>),
    /// A file of the image is not what it should be, or does not fit to the rest.
    #[error("image: {0}")]
    Damaged(String),
    /// This host lacks what the job needs.
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    /// It may be otherwise in a moment, if the job goes on.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Error::Passing(_) => true,
            Error::Call(failure) | Error::Process { failure, .. } => failure.errno == Errno::EAGAIN,
            _ => false,
        }
    }
}

fn blocked(blockers: &[Blocker]) -> String {
    let mut text = String::from("the job can't be checkpointed:");
    for blocker in blockers {
        text.push_str(if blockers.len() == 1 { " " } else { "\n  " });
        text.push_str(&blocker.to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_find_the_words_they_look_for() {
        let e: Result<(), _> = Err(Errno::ENOENT);
        let said = e.doing(|| "stat /x").unwrap_err().to_string();
        assert_eq!(said, "stat /x: no such file or directory");
        assert_eq!(Failure::new("kill", Errno::ESRCH).to_string(), "kill: no such process");
    }
}
