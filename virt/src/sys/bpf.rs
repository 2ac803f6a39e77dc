//! bpf(2).

use super::check;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

/// `enum bpf_cmd`.
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_NEXT_KEY: libc::c_long = 4;
const MAP_BY_ID: libc::c_long = 14;
const INFO: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const MAP_FREEZE: libc::c_long = 22;

/// `union bpf_attr`, as words; it is longer than any of the commands here needs, and what is not set is zero.
#[repr(C, align(8))]
struct Attributes([u32; 20]);

impl Attributes {
    fn new(words: &[u32]) -> Attributes {
        let mut all = Attributes([0; 20]);
        all.0.iter_mut().zip(words).for_each(|(to, from)| *to = *from);
        all
    }

    /// Puts an address into two words.
    fn at(mut self, word: usize, address: usize) -> Attributes {
        let address = address as u64;
        self.0[word] = address as u32;
        self.0[word + 1] = (address >> 32) as u32;
        self
    }

    /// # Safety
    /// Every address in it is of memory that is as long as the command takes it for, may be written by commands that answer,
    /// and lives through the call.
    unsafe fn call(&mut self, command: libc::c_long) -> Result<libc::c_long, Errno> {
        // SAFETY: the size is that of the attributes; the caller answers for what is in them.
        check(unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), size_of::<Attributes>()) })
    }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has made the descriptor for this call, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Whether programs of any kind (`enum bpf_attach_type`) are attached to this very cgroup2. Where that can't be asked there
/// are none, for the same right is needed to attach one.
pub fn attached(cgroup: &Path) -> bool {
    const KINDS: [std::ops::RangeInclusive<u32>; 7] =
        [0..=3, 6..=6, 8..=15, 18..=22, 29..=34, 43..=43, 48..=53];
    let Ok(dir) = File::open(cgroup) else { return false };
    let count = |kind: u32| {
        let mut query = Attributes::new(&[dir.as_raw_fd().cast_unsigned(), kind]);
        // SAFETY: no address is in it, so that only the number of programs is told, in the seventh word.
        match unsafe { query.call(PROG_QUERY) } {
            // There are some, and no room for their ids.
            Err(Errno::ENOSPC) => 1,
            Err(_) => 0,
            Ok(_) => query.0[6],
        }
    };
    KINDS.into_iter().flatten().any(|kind| count(kind) > 0)
}

/// What a map is (`struct bpf_map_info`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct About {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Its number on this host.
    pub id: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// The most entries.
    pub entries: u32,
    /// `BPF_F_*` as MAP_CREATE takes them.
    pub flags: u32,
    /// Up to 15 bytes, and zeroes.
    pub name: [u8; 16],
    /// The device that it is offloaded to.
    pub device: u32,
    /// The description of its types.
    pub types: u32,
    /// What only some kinds have.
    pub extra: u64,
}

/// What the map `fd` is.
///
/// # Errors
/// The kernel's.
pub fn about(fd: BorrowedFd<'_>) -> Result<About, Errno> {
    let mut info = [0_u32; 22];
    let mut query = Attributes::new(&[number(fd), size_of_val(&info) as u32]).at(2, info.as_mut_ptr().addr());
    // SAFETY: the size is that of `info`, which lives through the call.
    unsafe { query.call(INFO) }?;
    let mut name = [0; 16];
    name.copy_from_slice(&info[6..10].iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>());
    Ok(About {
        kind: info[0],
        id: info[1],
        key: info[2],
        value: info[3],
        entries: info[4],
        flags: info[5],
        name,
        device: info[10],
        types: info[11] | info[16],
        extra: u64::from(info[20]) | u64::from(info[21]) << 32,
    })
}

/// A new map of this kind, `id` apart, by a descriptor that reads and writes.
///
/// # Errors
/// The kernel's.
pub fn create(of: &About) -> Result<OwnedFd, Errno> {
    let mut query = Attributes::new(&[of.kind, of.key, of.value, of.entries, of.flags]);
    for (word, bytes) in query.0[7..11].iter_mut().zip(of.name.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    query.0[16] = of.extra as u32;
    query.0[17] = (of.extra >> 32) as u32;
    // SAFETY: no address is in it.
    unsafe { query.call(MAP_CREATE) }.map(owned)
}

/// The map of this number, by a descriptor with the access mode that `flags` (`BPF_F_RDONLY`, `BPF_F_WRONLY`) says.
///
/// # Errors
/// The kernel's.
pub fn by_id(id: u32, flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: no address is in it.
    unsafe { Attributes::new(&[id, 0, flags]).call(MAP_BY_ID) }.map(owned)
}

/// Keys and values of the map `fd`, which is as `of` says, one behind the other.
///
/// # Errors
/// The kernel's; `EAGAIN` when somebody changes it meanwhile.
pub fn entries(fd: BorrowedFd<'_>, of: &About) -> Result<Vec<u8>, Errno> {
    let (key, value) = (of.key as usize, of.value as usize);
    let mut found = Vec::new();
    let mut last: Option<Vec<u8>> = None;
    for _ in 0..=of.entries {
        let mut next = vec![0; key];
        let before = last.as_ref().map_or(0, |key| key.as_ptr().addr());
        let mut query = Attributes::new(&[number(fd)]).at(2, before).at(4, next.as_mut_ptr().addr());
        // SAFETY: both buffers are as long as a key, and live through the call.
        match unsafe { query.call(MAP_NEXT_KEY) } {
            Err(Errno::ENOENT) => return Ok(found),
            answer => answer.map(drop)?,
        }
        let at = found.len();
        found.extend(&next);
        found.resize(at + key + value, 0);
        let mut query = Attributes::new(&[number(fd)])
            .at(2, next.as_ptr().addr())
            .at(4, found[at + key..].as_mut_ptr().addr());
        // SAFETY: the buffers are as long as a key and a value, and live through the call.
        unsafe { query.call(MAP_LOOKUP) }?;
        last = Some(next);
    }
    Err(Errno::EAGAIN)
}

/// Gives the map `fd` an entry.
///
/// # Errors
/// The kernel's.
pub fn update(fd: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> Result<(), Errno> {
    let query = Attributes::new(&[number(fd)]);
    let mut query = query.at(2, key.as_ptr().addr()).at(4, value.as_ptr().addr());
    // SAFETY: the caller's buffers are as long as the map's keys and values (`about`), and live through the call; the
    // kernel reads them.
    unsafe { query.call(MAP_UPDATE) }.map(drop)
}

/// Lets no program of user space change the map `fd` any more.
///
/// # Errors
/// The kernel's.
pub fn freeze(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no address is in it.
    unsafe { Attributes::new(&[number(fd)]).call(MAP_FREEZE) }.map(drop)
}
