//! userfaultfd(2), as far as it puts pages in place: UFFDIO_COPY is the cheapest way to fill another process's memory.

use super::check;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// Only faults of user mode are handled (Linux 5.11): all that filling needs, and it asks for no privilege.
pub const USER_MODE_ONLY: libc::c_int = 1;

/// `linux/userfaultfd.h`: `_IOWR(0xaa, …)`.
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03;
const UFFD_API: u64 = 0xaa;
const REGISTER_MISSING: u64 = 1;
/// The task is stopped: nobody waits for the page.
const COPY_DONTWAKE: u64 = 1;

/// A userfaultfd of a stopped process, held by ckrun. Dropping it ends all of its registrations.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl Uffd {
    /// Agrees on the interface, which a descriptor fresh from userfaultfd(2) needs.
    ///
    /// # Errors
    /// `EINVAL` (it has been done).
    pub fn open(fd: OwnedFd) -> Result<Self, Errno> {
        let mut api = [UFFD_API, 0, 0];
        // SAFETY: three words are struct uffdio_api, which lives through the call.
        check(libc::c_long::from(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) }))?;
        Ok(Uffd(fd))
    }

    /// Makes the pages between `start` and `end` fillable. They must be of one or more whole private mappings.
    ///
    /// # Errors
    /// `EINVAL` (a mapping of another kind), `EBUSY` (another userfaultfd has it).
    pub fn register(&self, start: u64, end: u64) -> Result<(), Errno> {
        let mut register = [start, end - start, REGISTER_MISSING, 0];
        // SAFETY: four words are struct uffdio_register, which lives through the call.
        check(libc::c_long::from(unsafe {
            libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr())
        }))
        .map(drop)
    }

    /// Lets the kernel handle missing pages of a range again. The last copy of the descriptor does so with its end; but
    /// there may be copies elsewhere.
    ///
    /// # Errors
    /// `EINVAL` (nothing is mapped there).
    pub fn unregister(&self, start: u64, end: u64) -> Result<(), Errno> {
        let mut range = [start, end - start];
        // SAFETY: two words are struct uffdio_range, which lives through the call.
        check(libc::c_long::from(unsafe {
            libc::ioctl(self.0.as_raw_fd(), UFFDIO_UNREGISTER, range.as_mut_ptr())
        }))
        .map(drop)
    }

    /// Puts new pages with the given bytes at `address`; both are whole pages. The protection of the mapping does not
    /// matter.
    ///
    /// # Errors
    /// `EEXIST` (a page is there already), `ENOENT` (not registered), `ENOMEM` (the memory cgroup's limit).
    pub fn copy(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let mut copy = [address + done as u64, rest.as_ptr() as u64, rest.len() as u64, COPY_DONTWAKE, 0];
            // SAFETY: five words are struct uffdio_copy, which lives through the call; the source is a slice.
            let ret = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_COPY, copy.as_mut_ptr()) };
            match (check(libc::c_long::from(ret)), copy[4].cast_signed()) {
                (Ok(_), _) => return Ok(()),
                // The address space is changing, or a part was done before something was in the way.
                (Err(Errno::EAGAIN), copied @ 1..) => done += copied as usize,
                (Err(Errno::EAGAIN), _) => {}
                (Err(errno), _) => return Err(errno),
            }
        }
        Ok(())
    }
}
