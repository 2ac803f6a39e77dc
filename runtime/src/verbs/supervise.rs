//! `ckrun supervise`: what the process of a job with plugins runs.

use crate::error::{Error, Result};
use crate::supervisor::keeper::keep;
use crate::supervisor::launch::NUMBER;
use ckrun_virt::Doing;
use nix::sys::prctl;
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

/// Not for people: ckrun calls itself so for a job with plugins
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Args {
    /// The container's directory
    #[arg(value_name = "DIR")]
    home: PathBuf,
}

/// Carries it out. The socket that leads to the verb is descriptor 3.
pub fn run(args: &Args) -> Result<()> {
    // SAFETY: only looked at, and nobody closes it meanwhile.
    let inherited = unsafe { BorrowedFd::borrow_raw(NUMBER) };
    if !matches!(socket_type(inherited), Ok(SocketType::STREAM)) {
        return Err(Error::Usage("supervise: only ckrun itself starts a supervisor".into()));
    }
    // SAFETY: inherited for this very purpose; nobody else in this process owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(NUMBER) };
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).doing(|| "keep a socket from plugins")?;
    // The exec named us after a link.
    prctl::set_name(c"ckrun").doing(|| "set the name of the process")?;
    keep(&args.home, socket)
}
