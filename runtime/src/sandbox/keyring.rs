//! A session keyring of the container's own (keyrings(7)), so that the job can't read the keys of whoever started it.

use crate::error::Result;
use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use std::ffi::CString;

/// Joins a new session keyring named after the container. Processes that enter the container later find it by that
/// name, for which it must be searchable by its owner, or with a user namespace, whose root is not the owner outside,
/// by others.
///
/// # Errors
/// `EDQUOT` when the user has too many keys. A kernel without keyrings is no error: there is nothing to protect.
pub fn join(id: &str, with_user_namespace: bool) -> Result<()> {
    // linux/keyctl.h and linux/key.h
    const KEY_USR_SEARCH: u32 = 0x0008_0000;
    const KEY_OTH_SEARCH: u32 = 0x0000_0008;
    let name = format!("_ses.{id}");
    let failed = |errno| Failure::new(format!("join the session keyring {name}"), errno);
    let c_name = CString::new(name.as_str()).map_err(|_| failed(Errno::EINVAL))?;

    // SAFETY: the name is NUL-terminated and lives through the call.
    let ring = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, c_name.as_ptr()) };
    let ring = match Errno::result(ring) {
        Ok(ring) => ring as libc::c_int,
        Err(Errno::ENOSYS) => return Ok(()),
        Err(errno) => return Err(failed(errno).into()),
    };
    let search = if with_user_namespace { KEY_OTH_SEARCH } else { KEY_USR_SEARCH };
    let permissions = permissions(ring).doing(|| format!("describe the session keyring {name}"))? | search;
    // SAFETY: numbers only.
    let set = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_SETPERM, ring, permissions) };
    Errno::result(set).doing(|| format!("set the permissions of the session keyring {name}"))?;
    Ok(())
}

/// The permissions in the description of a key: `type;uid;gid;permissions;name`.
fn permissions(key: libc::c_int) -> Result<u32, Errno> {
    let mut text = [0u8; 512];
    // SAFETY: the kernel writes at most the length told, and says how much there is.
    let length =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_DESCRIBE, key, text.as_mut_ptr(), text.len()) };
    let length = Errno::result(length)? as usize;
    let text = std::str::from_utf8(&text[..length.min(text.len())]).map_err(|_| Errno::EILSEQ)?;
    let field = text.split(';').nth(3).ok_or(Errno::EBADMSG)?;
    u32::from_str_radix(field, 16).map_err(|_| Errno::EBADMSG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::testing::in_child;

    fn session() -> (i64, u32) {
        const KEY_SPEC_SESSION_KEYRING: libc::c_int = -3;
        // SAFETY: numbers only.
        let id = unsafe {
            libc::syscall(libc::SYS_keyctl, libc::KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0)
        };
        (id, permissions(KEY_SPEC_SESSION_KEYRING).unwrap_or(0))
    }

    #[test]
    fn each_container_has_its_own() {
        in_child(|| {
            join("one", false).unwrap();
            let (one, permissions) = session();
            if one == -1 && Errno::last() == Errno::ENOSYS {
                return;
            }
            assert_ne!(permissions & 0x0008_0000, 0, "{permissions:#x}");
            join("two", true).unwrap();
            let (two, permissions) = session();
            assert_ne!(one, two);
            assert_ne!(permissions & 0x8, 0, "{permissions:#x}");
        });
    }
}
