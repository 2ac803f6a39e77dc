//! Writes to procfs that nothing can divert.
//!
//! An image may put a file of its own over `/proc/self/attr/exec` or `/proc/sys`: a label that is written there changes
//! nothing, or something else (CVE-2019-16884, CVE-2025-52881). So a write goes through a descriptor that is known to
//! be a procfs, and never across a mount or a symlink out of it.

use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstatfs, openat, openat2, readlinkat};
use std::os::fd::OwnedFd;

/// A directory that is certainly the root of a procfs. `self` in it is always the process that asks, also when it was
/// opened before the process got a pid namespace or a root directory of its own.
#[derive(Debug)]
pub struct Proc {
    root: OwnedFd,
}

impl Proc {
    /// Opens `/proc` as it is now.
    ///
    /// # Errors
    /// It is not there or no procfs (`ENOTSUP`).
    pub fn open() -> Result<Proc, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, c"/proc", flags, Mode::empty()).doing(|| "open /proc")?;
        let kind = fstatfs(&root).doing(|| "look at /proc")?.f_type;
        if kind as u64 != libc::PROC_SUPER_MAGIC as u64 {
            return Err(Failure::new("use /proc, which is no procfs", Errno::ENOTSUP));
        }
        Ok(Proc { root })
    }

    /// The id of this process in the pid namespace that this procfs shows. It is the host's, if the procfs was opened
    /// there, even when getpid(2) answers 1.
    ///
    /// # Errors
    /// `ENOENT`: this process is in no namespace that this procfs shows.
    pub fn own_pid(&self) -> Result<i32, Failure> {
        let pid = readlinkat(&self.root, c"self", Vec::new()).doing(|| "read /proc/self")?;
        let number = pid.to_str().ok().and_then(|pid| pid.parse().ok());
        number.ok_or_else(|| Failure::new("read /proc/self", Errno::EINVAL))
    }

    /// Writes `text` to a file, in one write(2) as its meaning requires. `path` is relative: `self/oom_score_adj`.
    ///
    /// # Errors
    /// `ENOENT`, `EXDEV` (something is mounted over it), `EACCES`, and what the file makes of the text, most often
    /// `EINVAL`.
    pub fn write(&self, path: &str, text: &[u8]) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let file = openat2(&self.root, path, flags, Mode::empty(), resolve).map_err(from)?;
        match rustix::io::write(&file, text).map_err(from)? {
            written if written == text.len() => Ok(()),
            _ => Err(Errno::EIO),
        }
    }
}

fn from(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::testing::in_child;
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    #[test]
    fn a_file_of_this_process_is_written() {
        in_child(|| {
            Proc::open().unwrap().write("self/comm", b"renamed").unwrap();
            assert_eq!(std::fs::read_to_string("/proc/self/comm").unwrap(), "renamed\n");
        });
    }

    #[test]
    fn what_an_image_puts_over_it_is_not_written() {
        in_child(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            let proc = Proc::open().unwrap();
            mount(Some("/dev/null"), "/proc/self/comm", None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .unwrap();
            assert_eq!(proc.write("self/comm", b"renamed"), Err(Errno::EXDEV));
            mount(Some("tmpfs"), "/proc", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            assert!(Proc::open().unwrap_err().to_string().starts_with("use /proc, which is no procfs"));
            // The handle from before still works for everything else.
            proc.write("self/oom_score_adj", b"1000").unwrap();
        });
    }

    #[test]
    fn no_way_leads_out() {
        let proc = Proc::open().unwrap();
        for path in ["../etc/passwd", "/etc/passwd", "self/root/etc/passwd", "self/cwd/Cargo.toml"] {
            assert!(matches!(proc.write(path, b"x"), Err(Errno::EXDEV | Errno::ELOOP)), "{path}");
        }
    }
}
