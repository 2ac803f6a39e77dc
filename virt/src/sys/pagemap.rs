//! /proc/PID/pagemap: which pages of a process exist (PAGEMAP_SCAN, or before Linux 6.7 page by page) and which frames hold
//! them.

use super::check;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// `PAGE_IS_*` of `linux/fs.h`.
pub mod page_is {
    /// A page of a file, or of memory that is shared; not one of the process's own.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// On a swap device; a guard page counts as such.
    pub const SWAPPED: u64 = 1 << 4;
    /// The kernel's page of zeroes: read, never written.
    pub const PFNZERO: u64 = 1 << 5;
    /// Part of a huge page that is mapped as one.
    pub const HUGE: u64 = 1 << 6;
    /// A guard page of `MADV_GUARD_INSTALL` (shown since Linux 6.15).
    pub const GUARD: u64 = 1 << 8;
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610;
/// How many ranges the kernel may answer at a time.
const REGIONS: usize = 1024;

/// Adjacent pages of the same kind: `struct page_region`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Region {
    /// The first address.
    pub start: u64,
    /// The first address behind it.
    pub end: u64,
    /// Those of [`page_is`] that were asked for and hold.
    pub categories: u64,
}

/// Which pages are looked for.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    /// None of these may hold.
    pub without: u64,
    /// At least one of these must hold.
    pub any: u64,
    /// These are told.
    pub told: u64,
}

/// `struct pm_scan_arg`.
#[derive(Debug, Default)]
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The same as [`scan`] for a kernel without it, by the entries of all pages: `without` and `any` of the query may have
/// [`page_is::FILE`], [`page_is::PRESENT`] and [`page_is::SWAPPED`]; nothing else is known, and nothing is told. The kernel's
/// page of zeroes counts as any other.
///
/// # Errors
/// The kernel's, and those of `found`.
pub fn walk<E: From<Errno>>(
    pagemap: &File,
    start: u64,
    end: u64,
    query: Query,
    mut found: impl FnMut(Region) -> Result<(), E>,
) -> Result<(), E> {
    const PAGE: u64 = 4096;
    const ENTRY: u64 = size_of::<u64>() as u64;
    let mut buffer = vec![0; (64 << 10) * ENTRY as usize];
    let mut open: Option<Region> = None;
    let mut at = start;
    while at < end {
        let bytes = (((end - at) / PAGE * ENTRY) as usize).min(buffer.len());
        let window = &mut buffer[..bytes];
        pagemap
            .read_exact_at(window, at / PAGE * ENTRY)
            .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
        for entry in window.as_chunks().0 {
            let is = Entry(u64::from_ne_bytes(*entry)).categories();
            if is & query.without == 0 && is & query.any != 0 {
                open =
                    Some(Region { start: open.map_or(at, |open| open.start), end: at + PAGE, categories: 0 });
            } else if let Some(region) = open.take() {
                found(region)?;
            }
            at += PAGE;
        }
    }
    open.map_or(Ok(()), found)
}

/// Calls `found` for every range of pages between `start` and `end` that answers the query, in ascending order. Neither
/// ends of mappings nor 2 MiB borders cut a range.
///
/// # Errors
/// The kernel's, `EINVAL` for a category that it does not know; and those of `found`.
pub fn scan<E: From<Errno>>(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    query: Query,
    mut found: impl FnMut(Region) -> Result<(), E>,
) -> Result<(), E> {
    let mut regions = vec![Region::default(); REGIONS];
    let mut from = start;
    while from < end {
        let (count, walked) = scan_once(pagemap, from, end, query, &mut regions)?;
        let regions = &regions[..count];
        for region in regions {
            found(*region)?;
        }
        // The kernel fills its own buffer of 512 ranges several times in a call, and when it comes to the end it may
        // leave the place of an earlier filling in walk_end: going on from there would report ranges twice.
        let Some(last) = regions.last().filter(|_| count == REGIONS) else { break };
        from = walked.max(last.end);
    }
    Ok(())
}

fn scan_once(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    query: Query,
    regions: &mut [Region],
) -> Result<(usize, u64), Errno> {
    let mut arg = ScanArg {
        size: size_of::<ScanArg>() as u64,
        start,
        end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_inverted: query.without,
        category_mask: query.without,
        category_anyof_mask: query.any,
        return_mask: query.told,
        ..ScanArg::default()
    };
    // SAFETY: arg has the layout and the size of pm_scan_arg and lives through the call; vec and vec_len are those of
    // a slice of page_region that is borrowed for writing.
    let count =
        check(libc::c_long::from(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) }))?;
    Ok((count as usize, arg.walk_end))
}

/// One page's entry of /proc/PID/pagemap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    /// The number of the frame that holds the page, if it is in memory. The kernel tells it to root only, and says 0 to
    /// others.
    pub fn frame(self) -> Option<u64> {
        let frame = self.0 & ((1 << 55) - 1);
        (self.0 >> 63 == 1 && frame != 0).then_some(frame)
    }

    /// What [`walk`] knows of the page.
    fn categories(self) -> u64 {
        let is = |bit: u32, category| if self.0 >> bit & 1 == 1 { category } else { 0 };
        is(61, page_is::FILE) | is(62, page_is::SWAPPED) | is(63, page_is::PRESENT)
    }

    /// No other mapping has the same page.
    pub fn exclusive(self) -> bool {
        self.0 >> 56 & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn page_by_page_the_same_is_found() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let at = map(20 * 4096);
        for page in [0, 1, 5, 19] {
            // SAFETY: inside the mapping.
            unsafe { ((at + page * 4096) as *mut u8).write_volatile(1) };
        }
        let (mut scanned, mut walked) = (Vec::new(), Vec::new());
        let note = |to: &mut Vec<(u64, u64)>, region: Region| {
            to.push((region.start, region.end));
            Ok::<(), Errno>(())
        };
        let end = at + 20 * 4096;
        scan(pagemap.as_fd(), at, end, OWN, |region| note(&mut scanned, region)).unwrap();
        walk(&pagemap, at, end, OWN, |region| note(&mut walked, region)).unwrap();
        assert_eq!(walked, scanned);
        assert_eq!(walked.len(), 3);
        // SAFETY: the mapping above.
        unsafe { libc::munmap(at as *mut libc::c_void, 20 * 4096) };
    }

    const OWN: Query = Query {
        without: page_is::FILE | page_is::PFNZERO,
        any: page_is::PRESENT | page_is::SWAPPED,
        told: page_is::PRESENT,
    };

    fn map(len: usize) -> u64 {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        // SAFETY: the mapping above, nothing else.
        assert_eq!(unsafe { libc::madvise(at, len, libc::MADV_NOHUGEPAGE) }, 0);
        at as u64
    }

    #[test]
    fn more_ranges_than_the_kernel_buffers_come_once_each() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        // Around 512 and 1024, the sizes of the kernel's buffer and of ours.
        for pages in [1_u64, 511, 512, 513, 1023, 1024, 1025, 1536, 1700, 2048, 2500] {
            let at = map(2 * 4096 * pages as usize);
            for page in 0..pages {
                // SAFETY: inside the mapping.
                unsafe { ((at + 2 * 4096 * page) as *mut u8).write_volatile(1) };
            }
            let mut seen = Vec::new();
            scan::<Errno>(pagemap.as_fd(), at, at + 2 * 4096 * pages, OWN, |region| {
                seen.push(region.start);
                assert_eq!(region.end, region.start + 4096);
                Ok(())
            })
            .unwrap();
            let expected: Vec<u64> = (0..pages).map(|page| at + 2 * 4096 * page).collect();
            assert_eq!(seen, expected);
            // SAFETY: the mapping of this turn.
            unsafe { libc::munmap(at as *mut libc::c_void, 2 * 4096 * pages as usize) };
        }
    }

    #[test]
    fn pages_that_were_only_read_are_not_there() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let at = map(4 * 4096);
        // SAFETY: inside the mapping.
        let sum: u8 = (0..4).map(|page| unsafe { ((at + page * 4096) as *const u8).read_volatile() }).sum();
        assert_eq!(sum, 0);
        let mut seen = 0;
        let count = |_| {
            seen += 1;
            Ok::<(), Errno>(())
        };
        scan(pagemap.as_fd(), at, at + 4 * 4096, OWN, count).unwrap();
        assert_eq!(seen, 0);
        // SAFETY: the mapping above.
        unsafe { libc::munmap(at as *mut libc::c_void, 4 * 4096) };
    }
}
