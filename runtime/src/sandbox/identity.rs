//! Who the job is: `process.user`.

use crate::error::{Error, Result};
use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::unistd::{Gid, Uid, fchown, setgroups, setresgid, setresuid};
use oci_spec::runtime::User;
use std::os::fd::BorrowedFd;

/// The file mode creation mask of a job that asks for none.
const UMASK: u32 = 0o022;

/// Sets the file mode creation mask.
pub fn set_umask(user: &User) {
    umask(Mode::from_bits_truncate(user.umask().unwrap_or(UMASK)));
}

/// Takes on the groups and the user, in this order, for good. For its capabilities to survive see
/// [`caps`](super::caps).
///
/// # Errors
/// Names the field: an id without a mapping in the user namespace, a namespace that denies groups, no privilege.
pub fn assume(user: &User) -> Result<()> {
    set_groups(user.additional_gids().as_deref().unwrap_or_default())?;
    let gid = Gid::from_raw(user.gid());
    setresgid(gid, gid, gid).map_err(|e| refused("gid", "gidMappings", user.gid(), e))?;
    let uid = Uid::from_raw(user.uid());
    setresuid(uid, uid, uid).map_err(|e| refused("uid", "uidMappings", user.uid(), e))
}

fn set_groups(wanted: &[u32]) -> Result<()> {
    let groups: Vec<Gid> = wanted.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match setgroups(&groups) {
        Ok(()) => Ok(()),
        // A user namespace that an unprivileged user made: its setgroups file says deny, so that nobody can shed a
        // group that keeps him out of a file (CVE-2014-8989). The groups of the caller stay.
        Err(Errno::EPERM) if wanted.is_empty() => Ok(()),
        Err(Errno::EPERM) => Err(Error::config(
            "process.user.additionalGids",
            format!(
                "{}: this needs CAP_SETGID, and a user namespace whose /proc/self/setgroups does not say deny",
                Failure::new(format!("set the groups to {wanted:?}"), Errno::EPERM)
            ),
        )),
        Err(Errno::EINVAL) => Err(Error::config(
            "process.user.additionalGids",
            format!("one of {wanted:?} has no mapping in linux.gidMappings, or there are too many"),
        )),
        Err(errno) => Err(Failure::new("set the groups", errno).into()),
    }
}

fn refused(field: &str, mappings: &str, id: u32, errno: Errno) -> Error {
    let why = match errno {
        Errno::EINVAL => format!("{id} has no mapping in linux.{mappings}"),
        errno => Failure::new(format!("become {id}"), errno).to_string(),
    };
    Error::config(format!("process.user.{field}"), why)
}

/// Gives the standard streams to the user, as a login does: otherwise he could not open `/dev/stdout`. `/dev/null`
/// stays as it is, and so does what can't be given away (a file from outside the user namespace or on a read-only
/// file system).
///
/// # Errors
/// Any other failure of chown(2).
pub fn own_streams(user: &User) -> Result<()> {
    for number in 0..=2 {
        // SAFETY: only borrowed for the two calls below; a closed number makes the first of them fail with EBADF.
        let stream = unsafe { BorrowedFd::borrow_raw(number) };
        let Ok(stat) = fstat(stream) else { continue };
        let null = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR
            && stat.st_rdev == libc::makedev(1, 3);
        if null || stat.st_uid == user.uid() {
            continue;
        }
        match fchown(stream, Some(Uid::from_raw(user.uid())), None) {
            Ok(()) | Err(Errno::EPERM | Errno::EROFS | Errno::EINVAL) => {}
            Err(errno) => return Err(errno).doing(|| format!("chown stream {number} to the job's user"))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::testing::in_child;
    use nix::sched::{CloneFlags, unshare};
    use serde_json::json;
    use std::os::unix::fs::MetadataExt;

    fn user(json: serde_json::Value) -> User {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn user_groups_and_mask() {
        let user = user(json!({"uid": 1000, "gid": 2000, "additionalGids": [5, 6], "umask": 0o77}));
        in_child(move || {
            set_umask(&user);
            assume(&user).unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = |name: &str| status.lines().find(|l| l.starts_with(name)).unwrap().to_owned();
            assert_eq!(line("Uid:"), "Uid:\t1000\t1000\t1000\t1000");
            assert_eq!(line("Gid:"), "Gid:\t2000\t2000\t2000\t2000");
            assert_eq!(line("Groups:").trim_end(), "Groups:\t5 6");
            assert_eq!(line("Umask:"), "Umask:\t0077");
        });
    }

    #[test]
    fn without_a_wish_the_mask_is_022_and_no_group_stays() {
        in_child(|| {
            setgroups(&[Gid::from_raw(7)]).unwrap();
            let user = user(json!({"uid": 0, "gid": 0}));
            set_umask(&user);
            assume(&user).unwrap();
            assert_eq!(umask(Mode::empty()).bits(), 0o22);
            assert_eq!(nix::unistd::getgroups().unwrap(), []);
        });
    }

    #[test]
    fn a_user_namespace_says_what_is_missing() {
        in_child(|| {
            unshare(CloneFlags::CLONE_NEWUSER).unwrap();
            std::fs::write("/proc/self/setgroups", "deny").unwrap();
            std::fs::write("/proc/self/uid_map", "0 0 1").unwrap();
            std::fs::write("/proc/self/gid_map", "0 0 1").unwrap();
            let said = |json| assume(&user(json)).unwrap_err().to_string();
            assert!(said(json!({"additionalGids": [0]})).starts_with(
                "process.user.additionalGids: set the groups to [0]: operation not permitted: this needs"
            ));
            assert_eq!(said(json!({"gid": 5})), "process.user.gid: 5 has no mapping in linux.gidMappings");
            assert_eq!(said(json!({"uid": 5})), "process.user.uid: 5 has no mapping in linux.uidMappings");
            assume(&user(json!({}))).unwrap();
        });
    }

    #[test]
    fn the_streams_change_hands() {
        in_child(|| {
            let file = tempfile::tempfile().unwrap();
            nix::unistd::dup2_stdout(&file).unwrap();
            let null = std::fs::File::open("/dev/null").unwrap();
            nix::unistd::dup2_stdin(&null).unwrap();
            own_streams(&user(json!({"uid": 1000}))).unwrap();
            assert_eq!(file.metadata().unwrap().uid(), 1000);
            assert_eq!(null.metadata().unwrap().uid(), 0);
        });
    }
}
