//! A new file system with the options of config.json (fsopen(2)).

use super::mount_options::Options;
use super::wanted::Wanted;
use crate::error::{Error, Result};
use ckrun_virt::Failure;
use ckrun_virt::error::text;
use nix::errno::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Makes it, mounted nowhere yet. `label` is one more option, for SELinux.
///
/// # Errors
/// The kernel has no such file system, or refuses an option: in its own words.
pub fn make(wanted: &Wanted<'_>, label: Option<&str>) -> Result<OwnedFd> {
    let Options { attributes, recursive, copy_up, .. } = wanted.options;
    let context = fsopen(wanted.kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| match e {
        rustix::io::Errno::NODEV => Error::config(
            format!("{}.type", wanted.field),
            format!("this kernel has no file system {:?}", wanted.kind),
        ),
        e => Failure::new(
            format!("{}: fsopen {}", wanted.field, wanted.kind),
            Errno::from_raw(e.raw_os_error()),
        )
        .into(),
    })?;
    let refused = |option: &str| {
        let (context, option) = (context.as_fd(), option.to_owned());
        move |e: rustix::io::Errno| refused(wanted, context, &option, e)
    };
    if !wanted.source.as_os_str().is_empty() {
        fsconfig_set_string(&context, "source", &*wanted.source).map_err(refused("source"))?;
    }
    for option in wanted.options.data.iter().map(String::as_str).chain(label) {
        if option == "ro" && (copy_up || wanted.late_read_only()) {
            continue;
        }
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, option),
        }
        .map_err(refused(option))?;
    }
    fsconfig_create(&context).map_err(refused(""))?;
    let mut early = if copy_up { 0 } else { attributes.set | recursive.set };
    if wanted.late_read_only() {
        early &= !libc::MOUNT_ATTR_RDONLY;
    }
    let flags = MountAttrFlags::from_bits_retain(early as _);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(refused(""))
}

/// The kernel's words on why it refused an option: a file system context keeps a log, one message a read, each with a
/// letter for its level (fsopen(2)).
fn refused(wanted: &Wanted<'_>, context: BorrowedFd<'_>, option: &str, e: rustix::io::Errno) -> Error {
    let mut said = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length) = rustix::io::read(context, &mut buffer)
        && length > 2
    {
        said.push(String::from_utf8_lossy(&buffer[2..length]).trim().to_owned());
    }
    let errno = Errno::from_raw(e.raw_os_error());
    let reason = if said.is_empty() { text(errno) } else { format!("{} ({})", said.join("; "), text(errno)) };
    let what =
        if option.is_empty() { format!("mount {}", wanted.kind) } else { format!("option {option:?}") };
    Error::config(&wanted.field, format!("{what}: {reason}"))
}
