//! Files of memfd_create(2).

use super::capture::Job;
use super::captured::{Content, Source};
use super::making::Making;
use super::{Files, Object, Trouble};
use crate::image::{Bytes, Image};
use crate::{Doing, Error};
use rustix::fs::{FileType, Mode, SealFlags};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::OwnedFd;

/// The file system of huge pages (`linux/magic.h`).
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// A memfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Memfd {
    /// Its name, for people.
    pub name: Bytes,
    /// Its permissions.
    pub mode: u32,
    /// Its owner and group, as the container knows them.
    pub owner: (u32, u32),
    /// `F_SEAL_*`.
    pub seals: u32,
    /// The file of the image with its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The object of the job's memory that it is. Then the memory's restore makes it, fills it and seals it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<u32>,
}

/// A description of a memfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MemfdUse {
    /// Which one of [`Files::memfds`].
    pub memfd: u32,
}

impl Job<'_> {
    /// Its name alone does not make a file a memfd: a memfd is on no mount that a container can have.
    pub(super) fn is_memfd(&self, node: usize) -> bool {
        let seen = &self.graph.nodes[node].seen;
        seen.link.starts_with(b"/memfd:")
            && seen.type_() == FileType::RegularFile
            && seen.stat.st_nlink == 0
            && self.graph.mount(seen.info.mount).is_none()
    }

    pub(super) fn memfd(&mut self, node: usize) -> Result<MemfdUse, Trouble> {
        let seen = &self.graph.nodes[node].seen;
        let stat = &seen.stat;
        let key = (stat.st_dev, stat.st_ino);
        if let Some(&memfd) = self.known.get(&key) {
            return Ok(MemfdUse { memfd });
        }
        let what = || format!("look at {}", seen.name());
        let fd = self.graph.take(node)?;
        let shared = (self.carried)(stat.st_dev, stat.st_ino);
        let file_system = rustix::fs::fstatfs(&fd).doing(what)?.f_type;
        // Of a running job it is not known what is mapped.
        if shared.is_none() && !self.running() && file_system == HUGETLBFS_MAGIC && stat.st_size > 0 {
            return Err(Trouble::refused(seen.name(), "a memfd of huge pages that is not mapped"));
        }
        let seals = if seen.path_only() {
            return Err(Trouble::refused(seen.name(), "a memfd opened with O_PATH"));
        } else {
            rustix::fs::fcntl_get_seals(&fd).doing(what)?
        };
        let memfd = self.files.memfds.len() as u32;
        let content = (shared.is_none() && stat.st_size > 0).then(|| format!("files/memfd-{memfd}"));
        if let Some(name) = content.clone().filter(|_| !self.running()) {
            self.contents.push(Content { name, source: Source::File(fd) });
        }
        let name = seen.link.strip_prefix(b"/memfd:").unwrap_or_default();
        self.files.memfds.push(Memfd {
            name: name.strip_suffix(super::container::DELETED).unwrap_or(name).into(),
            mode: stat.st_mode & 0o7777,
            owner: self.graph.container.owner(stat.st_uid, stat.st_gid)?,
            seals: seals.bits(),
            content,
            shared,
        });
        self.known.insert(key, memfd);
        Ok(MemfdUse { memfd })
    }
}

impl Memfd {
    /// Makes it and every description of it.
    pub(super) fn make(&self, id: u32, files: &Files, making: &mut Making<'_>) {
        let own = match self.shared {
            Some(shared) => making.shared(shared),
            None => {
                let name = making.program.put_cstr(&self.name);
                let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
                let args = [name.into(), flags.into()];
                let made = making.program.call("make a memfd", libc::SYS_memfd_create, &args);
                let own = making.number();
                making.put_at(made.into(), own);
                making.give_to(own, self.owner);
                own
            }
        };
        making.memfds.push(own);
        // memfd_create makes a description for reading and writing; others were opened through /proc.
        let mut first = self.shared.is_none();
        for (at, description) in files.descriptions.iter().enumerate() {
            if description.object != Object::Memfd(MemfdUse { memfd: id }) {
                continue;
            }
            let to = making.at(at as u32);
            let plain = description.flags & libc::O_ACCMODE as u32 == libc::O_RDWR as u32;
            if plain && std::mem::take(&mut first) {
                making.copy(own, to);
            } else {
                making.reopen(own, description.flags, to);
            }
        }
    }

    /// Gives it its content and all that memfd_create can't: `fd` is its own descriptor. Nobody has mapped it, or it would
    /// be the memory's, so that no seal is in the way of anything.
    pub(super) fn fill(&self, fd: OwnedFd, image: &Image) -> Result<(), Error> {
        let what = || format!("fill memfd {}", self.name);
        let file = File::from(fd);
        if let Some(name) = &self.content {
            image.copy(name, &file)?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(self.mode)).doing(what)?;
        if self.seals != 0 {
            rustix::fs::fcntl_add_seals(&file, SealFlags::from_bits_retain(self.seals)).doing(what)?;
        }
        Ok(())
    }
}
