//! bpf(2).

use super::check;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

const BPF_PROG_QUERY: libc::c_long = 16;

/// For `BPF_PROG_QUERY`.
#[repr(C)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    rest: u32,
}

/// Whether programs of any kind (`enum bpf_attach_type`) are attached to this very cgroup2. Where that can't be asked there
/// are none, for the same right is needed to attach one.
pub fn attached(cgroup: &Path) -> bool {
    const KINDS: [std::ops::RangeInclusive<u32>; 7] =
        [0..=3, 6..=6, 8..=15, 18..=22, 29..=34, 43..=43, 48..=53];
    let Ok(dir) = File::open(cgroup) else { return false };
    KINDS.into_iter().flatten().any(|kind| count(&dir, kind).is_ok_and(|count| count > 0))
}

fn count(cgroup: &File, kind: u32) -> Result<u32, Errno> {
    let target = cgroup.as_raw_fd().cast_unsigned();
    let mut query = Query { target, kind, query_flags: 0, attach_flags: 0, programs: 0, count: 0, rest: 0 };
    // SAFETY: query is a #[repr(C)] prefix of union bpf_attr without padding bytes, and its size is passed, beyond which the
    // kernel takes zeroes. It has no pointer in it.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    match check(ret) {
        // So many that there is no room for their ids.
        Err(Errno::ENOSPC) => Ok(1),
        answer => answer.map(|_| query.count),
    }
}
