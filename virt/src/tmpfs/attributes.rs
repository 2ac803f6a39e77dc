//! Owners, permissions, times and extended attributes.

use crate::creds::translate;
use crate::image::Bytes;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use rustix::fs::{AtFlags, Gid, Mode, Statx, Timespec, Timestamps, Uid, XattrFlags};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd};

/// What a file has besides its content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Attributes {
    /// Permissions, as chmod(2) takes them.
    pub mode: u32,
    /// Owner and group in the container's user namespace; [`NOBODY`] for one that has no number there.
    pub owner: (u32, u32),
    /// When it was read and changed last: seconds and nanoseconds since 1970.
    pub times: [(i64, u32); 2],
    /// Extended attributes: names and values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extended: Vec<(Bytes, Bytes)>,
}

/// What chown(2) takes for no change.
const NOBODY: u32 = u32::MAX;

impl Attributes {
    /// Those that statx(2) tells.
    pub(super) fn of(about: &Statx, ids: &Ids) -> Self {
        Attributes {
            mode: u32::from(about.stx_mode) & 0o7777,
            owner: (ids.user(about.stx_uid), ids.group(about.stx_gid)),
            times: [
                (about.stx_atime.tv_sec, about.stx_atime.tv_nsec),
                (about.stx_mtime.tv_sec, about.stx_mtime.tv_nsec),
            ],
            extended: Vec::new(),
        }
    }

    /// Whether they could be a file's.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.mode > 0o7777 || self.times.iter().any(|&(_, nanos)| nanos >= 1_000_000_000) {
            return Err("impossible permissions or times");
        }
        let possible = |(name, value): &(Bytes, Bytes)| carried(name) && value.len() <= 1 << 16;
        if self.extended.iter().all(possible) {
            Ok(())
        } else {
            Err("an extended attribute that none may have")
        }
    }

    /// Reads the extended attributes of an open file or directory; nothing else can have any that are carried.
    pub(super) fn read_extended(&mut self, file: impl AsFd, ids: &Ids) -> rustix::io::Result<()> {
        let mut names = [0; 4096];
        let len = match rustix::fs::flistxattr(&file, &mut names[..]) {
            Ok(0) | Err(rustix::io::Errno::NOTSUP) => return Ok(()),
            Ok(len) => len,
            Err(e) => return Err(e),
        };
        let names = names[..len].split_inclusive(|&b| b == 0).filter_map(|name| name.strip_suffix(b"\0"));
        for name in names.filter(|name| carried(name)) {
            // The most that an attribute may have (XATTR_SIZE_MAX).
            let mut value = vec![0; 1 << 16];
            let len = rustix::fs::fgetxattr(&file, name, &mut value[..])?;
            value.truncate(len);
            ids.translate_in(name, &mut value);
            self.extended.push((name.into(), value.into()));
        }
        Ok(())
    }

    /// Gives them to the open file or directory `file`. To change the owner takes away some permissions and the file's
    /// capabilities, and whatever is changed, the times are too.
    pub(super) fn give(&self, file: impl AsFd, name: &dyn Fn() -> String) -> Result<(), Failure> {
        let (user, group) = self.ids();
        rustix::fs::fchown(&file, user, group).doing(|| self.chown(name))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(self.mode)).doing(|| format!("chmod {}", name()))?;
        for (key, value) in &self.extended {
            match rustix::fs::fsetxattr(&file, key.as_bytes(), value, XattrFlags::empty()) {
                // Only the host's root may set it, and only the host's root can have.
                Err(rustix::io::Errno::PERM) if key.starts_with(b"trusted.") => {
                    log::warn!("{}: it loses its attribute {key}", name());
                }
                other => other.doing(|| format!("set the attribute {key} of {}", name()))?,
            }
        }
        rustix::fs::futimens(&file, &self.timestamps()).doing(|| format!("set the times of {}", name()))
    }

    /// Gives them to what has just been made as `entry` of `dir` and can't be opened; a symbolic link has no permissions.
    pub(super) fn give_at(
        &self,
        dir: BorrowedFd<'_>,
        entry: &[u8],
        symlink: bool,
        name: &dyn Fn() -> String,
    ) -> Result<(), Failure> {
        let (user, group) = self.ids();
        rustix::fs::chownat(dir, entry, user, group, AtFlags::SYMLINK_NOFOLLOW).doing(|| self.chown(name))?;
        if !symlink {
            rustix::fs::chmodat(dir, entry, Mode::from_raw_mode(self.mode), AtFlags::empty())
                .doing(|| format!("chmod {}", name()))?;
        }
        rustix::fs::utimensat(dir, entry, &self.timestamps(), AtFlags::SYMLINK_NOFOLLOW)
            .doing(|| format!("set the times of {}", name()))
    }

    fn ids(&self) -> (Option<Uid>, Option<Gid>) {
        let (user, group) = self.owner;
        ((user != NOBODY).then(|| Uid::from_raw(user)), (group != NOBODY).then(|| Gid::from_raw(group)))
    }

    fn chown(&self, name: &dyn Fn() -> String) -> String {
        format!("give {} to user {} and group {}", name(), self.owner.0, self.owner.1)
    }

    fn timestamps(&self) -> Timestamps {
        let [last_access, last_modification] =
            self.times.map(|(tv_sec, nanos)| Timespec { tv_sec, tv_nsec: nanos.into() });
        Timestamps { last_access, last_modification }
    }
}

/// Labels of security modules are the new host's business.
fn carried(name: &[u8]) -> bool {
    const WHOLE: [&[u8]; 3] =
        [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
    let free = name.starts_with(b"user.") || name.starts_with(b"trusted.");
    !name.contains(&0) && name.len() <= 255 && (free || WHOLE.contains(&name))
}

/// The ids of a user namespace.
#[derive(Debug)]
pub(super) struct Ids {
    users: Vec<u8>,
    groups: Vec<u8>,
}

impl Ids {
    /// Those of the user namespace that process `pid` is in.
    pub fn of(pid: Pid) -> Result<Self, Failure> {
        let read = |name| {
            let path = format!("/proc/{pid}/{name}");
            crate::proc::read(&path).doing(|| format!("read {path}"))
        };
        Ok(Ids { users: read("uid_map")?, groups: read("gid_map")? })
    }

    fn user(&self, outside: u32) -> u32 {
        translate(&self.users, outside).unwrap_or(NOBODY)
    }

    fn group(&self, outside: u32) -> u32 {
        translate(&self.groups, outside).unwrap_or(NOBODY)
    }

    /// Translates the ids in the value of the attribute `name`, which the kernel shows as those of who asks.
    fn translate_in(&self, name: &[u8], value: &mut [u8]) {
        let change = |word: &mut [u8; 4], to: &dyn Fn(u32) -> u32| {
            *word = to(u32::from_le_bytes(*word)).to_le_bytes();
        };
        if name == b"security.capability" {
            // struct vfs_ns_cap_data, whose last member is the root user of the namespace in which it holds.
            if let Some((_, root)) = value.split_last_chunk_mut::<4>().filter(|(rest, _)| rest.len() == 20) {
                change(root, &|id| self.user(id));
            }
        } else if name.starts_with(b"system.posix_acl_") {
            // linux/posix_acl_xattr.h: a version, then entries of tag, permissions and id.
            const USER: u8 = 2;
            const GROUP: u8 = 8;
            for entry in value.get_mut(4..).unwrap_or_default().as_chunks_mut::<8>().0 {
                let tag = entry[0];
                if let Some((_, id)) = entry.split_last_chunk_mut::<4>() {
                    match tag {
                        USER => change(id, &|id| self.user(id)),
                        GROUP => change(id, &|id| self.group(id)),
                        _ => {}
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_attributes_are_those_of_the_container() {
        let map = b"         0     100000      65536\n".to_vec();
        let ids = Ids { users: map.clone(), groups: map };
        assert_eq!((ids.user(100_005), ids.group(165_535), ids.user(5)), (5, 65_535, NOBODY));
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let mut version_3 = words(&[0x0300_0001, 1, 0, 0, 0, 100_000]);
        ids.translate_in(b"security.capability", &mut version_3);
        assert_eq!(version_3, words(&[0x0300_0001, 1, 0, 0, 0, 0]));
        let mut version_2 = words(&[0x0200_0001, 1, 0, 0, 100_000]);
        let same = version_2.clone();
        ids.translate_in(b"security.capability", &mut version_2);
        assert_eq!(version_2, same);
        // The owner, user 1, group 2, others.
        let list =
            |user, group| words(&[2, 0x6_0001, u32::MAX, 0x4_0002, user, 0x4_0008, group, 0x20, u32::MAX]);
        let mut acl = list(100_001, 100_002);
        ids.translate_in(b"system.posix_acl_access", &mut acl);
        assert_eq!(acl, list(1, 2));
    }
}
