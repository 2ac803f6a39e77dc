//! Memory: every kind of mapping with its content, its flags and those who share it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::{Job, size};
use ckrun_integration::modes_survive;
use std::fs::{self, File};

modes_survive!("memory":
    private many_mappings shared shared_parts memfd memfd_sealed memfd_many memfd_private prot_none
    grows_down stack mlock mlockall madvise huge copy_on_write sparse zero sysv sysv_removed sysv_alone posix posix_unlinked
    posix_semaphores posix_semaphores_unlinked file_shared_nameless
    guard mseal file_private file_read_only file_deleted file_shared file_shared_deleted program code
    changes aio
    ; else "hugetlb" "without-vdso" "without-vdso-code"
);

/// ckrun works from the end of a program's code then, if there is room.
#[test]
fn a_process_without_a_vdso() {
    for mode in ["without-vdso", "without-vdso-code"] {
        Job::up("memory", mode).survives_or_is_refused(&["[vdso]", "unmapped"]);
    }
}

const MIB: u64 = 1 << 20;

/// The size of the image of a mode.
fn image_size(mode: &str) -> u64 {
    let job = Job::up("memory", mode);
    let image = job.image("image");
    job.checkpoint(&image);
    size(&image)
}

#[test]
fn pages_that_are_zero_or_untouched_cost_nothing() {
    for mode in ["zero", "sparse", "changes"] {
        let size = image_size(mode);
        assert!(size < 3 * MIB, "{mode}: {size}");
    }
}

#[test]
fn pages_that_a_parent_and_a_child_share_are_stored_once() {
    // 16 MiB in common, of which 1 MiB is the child's own.
    let size = image_size("copy-on-write");
    assert!((16 * MIB..20 * MIB).contains(&size), "{size}");
}

/// Huge pages that are there for a test alone: it has the pool of the whole machine as long as it has the lock.
struct HugePages {
    count: u64,
    _lock: File,
}

impl HugePages {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    fn more(count: u64) -> HugePages {
        let lock = File::open(Self::FILE).unwrap();
        lock.lock().unwrap();
        let pages = HugePages { count, _lock: lock };
        pages.change(|all| all + count);
        pages
    }

    fn change(&self, to: impl Fn(u64) -> u64) {
        let all: u64 = fs::read_to_string(Self::FILE).unwrap().trim().parse().unwrap();
        fs::write(Self::FILE, to(all).to_string()).unwrap();
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        self.change(|all| all.saturating_sub(self.count));
    }
}

#[test]
fn huge_pages_of_the_pool() {
    let pages = HugePages::more(2);
    Job::up("memory", "hugetlb").survives();
    drop(pages);
}
