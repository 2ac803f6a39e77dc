//! System calls that neither libc, nix nor rustix wraps, each wrapped once.

mod affinity;
mod apart;
pub mod bpf;
mod clone;
pub mod fanotify;
pub mod handle;
pub mod kcmp;
mod mount;
mod nsfs;
pub mod pagemap;
pub mod peek;
mod pidfd;
pub mod ptrace;
mod sched;
pub mod sockopt;
pub mod tty;
pub mod uffd;
mod undo;
mod writeback;

pub use affinity::{affinity, pin, set_affinity};
pub use apart::{apart, is_orphan};
pub use clone::{Clone3, Cloned};
pub use kcmp::same_file;
pub use mount::{MountAttr, mount_setattr};
pub use nsfs::mount_namespace;
pub use pidfd::{pidfd_send_signal, process_mrelease};
pub use sched::{SchedAttr, ioprio, sched_getattr, sched_setattr, set_ioprio};
pub use undo::Undo;
pub use writeback::start_writeback;

use nix::errno::Errno;

/// The result of a raw system call: -1 means errno.
pub(crate) fn check(ret: libc::c_long) -> Result<libc::c_long, Errno> {
    if ret == -1 { Err(Errno::last()) } else { Ok(ret) }
}
