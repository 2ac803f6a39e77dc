//! The host's ckrun binary must not be writable from inside.
//!
//! While ckrun enters a container, a process there may open `/proc/PID/exe`, or trick ckrun into executing
//! `/proc/self/exe`, and then write to the host's binary when nobody runs it any more (CVE-2019-5736). So the verbs that
//! enter a container run from a detached read-only bind mount of the binary: what is opened through it can never be
//! written, whatever rights the opener has, and since the mount is in no namespace nobody can remount it. That costs one
//! exec of a static binary, which is done before main where that can be done (entry.rs of the binary). A binary that is on
//! a read-only file system already is left as it is.

use super::tree::clone_path;
use crate::error::Result;
use ckrun_virt::sys::{MountAttr, mount_setattr};
use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::unistd::{execveat, geteuid};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags, fstatvfs, open};
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const OWN: &str = "/proc/self/exe";

/// The verbs that enter a container. entry.rs knows them, too.
const ENTERING: &[&str] = &["run", "create", "exec", "restore"];

/// Makes ckrun safe to enter a container with, if the command line has a verb that does. It is called first of all, so
/// that nothing is done twice; that an id or a file may have the name of a verb too costs no more than an exec.
pub fn raise(args: impl IntoIterator<Item = OsString>) -> Result<()> {
    if !args.into_iter().any(|word| ENTERING.iter().any(|verb| word == *verb)) {
        return Ok(());
    }
    if geteuid().is_root() {
        // Nobody in the container may trace us or read our memory. An ordinary user's ckrun must stay accessible to
        // itself until the id maps are written; in its user namespace the change of ids does the same.
        prctl::set_dumpable(false).doing(|| "become undumpable")?;
    }
    let own = open(OWN, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).doing(|| format!("open {OWN}"))?;
    if shielded(&own)? {
        // The exec named us after a descriptor.
        return Ok(prctl::set_name(c"ckrun").doing(|| "set the name of the process")?);
    }
    let copy = match read_only_view() {
        // Without CAP_SYS_ADMIN there are no mounts to be had, but a copy can be sealed.
        Err(e) if e.errno == Errno::EPERM => sealed_copy()?,
        other => other?,
    };
    let strings = |all: Vec<&OsStr>| -> Vec<CString> {
        all.into_iter().filter_map(|s| CString::new(s.as_bytes()).ok()).collect()
    };
    let args: Vec<_> = std::env::args_os().collect();
    let env: Vec<_> = std::env::vars_os().map(|(k, v)| [k.as_bytes(), b"=", v.as_bytes()].concat()).collect();
    let args = strings(args.iter().map(|a| a.as_os_str()).collect());
    let env = strings(env.iter().map(|e| OsStr::from_bytes(e)).collect());
    let Err(errno) = execveat(copy.as_fd(), c"", &args, &env, AtFlags::AT_EMPTY_PATH);
    Err(Failure::new("execute a protected copy of ckrun", errno).into())
}

/// Whether nothing that is opened through our executable can be written.
fn shielded(own: &OwnedFd) -> Result<bool> {
    let mount = fstatvfs(own).doing(|| format!("statvfs {OWN}"))?;
    if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    let readable =
        open(OWN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).doing(|| format!("open {OWN}"))?;
    let seals = fcntl(&readable, FcntlArg::F_GET_SEALS).unwrap_or(0);
    Ok(SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_WRITE))
}

fn read_only_view() -> std::result::Result<OwnedFd, Failure> {
    let view = clone_path(Path::new(OWN), false).doing(|| format!("bind {OWN}"))?;
    let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let attr = MountAttr { set, ..Default::default() };
    mount_setattr(view.as_fd(), false, attr).doing(|| "make the view of ckrun read-only")?;
    Ok(view)
}

fn sealed_copy() -> Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let copy = memfd_create(c"ckrun", flags).doing(|| "make a memfd")?;
    let mut copy = std::fs::File::from(copy);
    let mut own = std::fs::File::open(OWN).doing(|| format!("open {OWN}"))?;
    std::io::copy(&mut own, &mut copy).doing(|| "copy ckrun")?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals)).doing(|| "seal the copy of ckrun")?;
    Ok(copy.into())
}
