//! A ring in shared memory: two byte queues and two doorbells in one file.
//!
//! ```text
//!  0x000  magic          8  "CKRING\0\1"
//!  0x008  size           4  bytes in each queue, a power of two
//!  0x00c  state          4  1 open, 2 closed by the server
//!  0x040  requests: head 4  bytes that the job has ever put in, modulo 2³²
//!  0x080  requests: tail 4  bytes that the server has ever taken out
//!  0x0c0  replies: head  4  the same, from the server
//!  0x100  replies: tail  4  to the job
//!  0x140  server's bell  4  futex word; +4: 1 while the server sleeps on it
//!  0x180  job's bell     4  futex word; +4: 1 while the job sleeps on it
//!  0x1000 the bytes of the requests, then those of the replies
//! ```
//!
//! Whoever moves a head or a tail adds one to the other side's bell, and wakes it by FUTEX_WAKE if it sleeps. Who wants
//! to sleep reads its own bell, looks at the queues, sets its flag, and does FUTEX_WAIT for the value it has read.
//! The futexes are shared ones: the kernel knows them by file and offset, in whatever namespace they are mapped.
//!
//! The server holds a write lock on the file (F_OFD_SETLK, byte 0). The kernel drops it when the server dies, however;
//! so the job notices, because it never sleeps longer than [`PATIENCE`] without a look at the lock.

use crate::error::{Doing, Error, Result};
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{fstat, ftruncate};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::futex;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

const MAGIC: [u8; 8] = *b"CKRING\0\x01";
const SIZE: usize = 0x008;
const STATE: usize = 0x00c;
const REQUESTS: Queue = Queue { head: 0x040, tail: 0x080, second: false };
const REPLIES: Queue = Queue { head: 0x0c0, tail: 0x100, second: true };
const SERVER_BELL: usize = 0x140;
const JOB_BELL: usize = 0x180;
const DATA: usize = 0x1000;

const OPEN: u32 = 1;
const CLOSED: u32 = 2;

/// How long the job sleeps, in seconds, before it looks whether the server still lives.
const PATIENCE: i64 = 1;

/// Where a queue's words are.
#[derive(Debug, Clone, Copy)]
struct Queue {
    head: usize,
    tail: usize,
    second: bool,
}

/// A mapped ring.
#[derive(Debug)]
pub struct Ring {
    base: *mut u8,
    size: u32,
    file: File,
}

// SAFETY: the mapping belongs to this value, lives as long as it, and is only touched through atomics and through
// copies of bytes that the protocol gives to one side at a time.
unsafe impl Send for Ring {}
// SAFETY: as above; methods by shared reference touch atomics only.
unsafe impl Sync for Ring {}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this base and length, and nothing borrows from it any more. Failure would
        // leave it mapped, which harms nobody.
        let _ = unsafe { munmap(self.base.cast(), length(self.size)) };
    }
}

fn length(size: u32) -> usize {
    DATA + 2 * size as usize
}

impl Ring {
    /// Makes a ring of two queues of `size` bytes in a new file, and locks it: the server's side.
    pub fn create(path: &Path, size: u32) -> Result<Ring> {
        let doing = || format!("make the ring {}", path.display());
        let file =
            File::options().read(true).write(true).create_new(true).mode(0o600).open(path).doing(doing)?;
        ftruncate(&file, length(size) as u64).doing(doing)?;
        fcntl(&file, FcntlArg::F_OFD_SETLK(&lock())).map_err(std::io::Error::from).doing(doing)?;
        let ring = Ring::map(file, size).doing(doing)?;
        ring.word(SIZE).store(size, Ordering::Relaxed);
        ring.write(0, &MAGIC);
        ring.word(STATE).store(OPEN, Ordering::Release);
        Ok(ring)
    }

    /// Opens a ring that a server has made: the job's side.
    pub fn open(path: &Path) -> Result<Ring> {
        let doing = || format!("open the link shm:{}", path.display());
        let file = File::options().read(true).write(true).open(path).doing(doing)?;
        let bytes = fstat(&file).doing(doing)?.st_size;
        let broken = |why: &str| Error::Protocol { link: format!("shm:{}", path.display()), why: why.into() };
        let size = u32::try_from((bytes - DATA as i64) / 2).unwrap_or(0);
        if !size.is_power_of_two() || length(size) as i64 != bytes {
            return Err(broken("not a ring: its size is impossible"));
        }
        let ring = Ring::map(file, size).doing(doing)?;
        if ring.read(0, MAGIC.len()) != MAGIC || ring.word(SIZE).load(Ordering::Relaxed) != size {
            return Err(broken("not a ring of version 1"));
        }
        Ok(ring)
    }

    fn map(file: File, size: u32) -> rustix::io::Result<Ring> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else is replaced.
        let base =
            unsafe { mmap(ptr::null_mut(), length(size), access, MapFlags::SHARED, &file, 0) }?.cast::<u8>();
        Ok(Ring { base, size, file })
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset.is_multiple_of(4) && offset < DATA);
        // SAFETY: inside the mapping, which is page-aligned and lives as long as self; all offsets are multiples
        // of 4 below DATA; every access by any process is atomic.
        unsafe { AtomicU32::from_ptr(self.base.add(offset).cast()) }
    }

    fn read(&self, offset: usize, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        assert!(offset + count <= length(self.size), "inside the ring");
        // SAFETY: inside the mapping, as asserted. Another process that writes at the same time breaks the protocol,
        // and bytes of any value are valid.
        unsafe { ptr::copy_nonoverlapping(self.base.add(offset), bytes.as_mut_ptr(), count) };
        bytes
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= length(self.size), "inside the ring");
        // SAFETY: as for read(); bytes is no part of the mapping.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(offset), bytes.len()) };
    }

    /// Bytes that are in a queue. What the other side has written there is not to be trusted.
    fn filled(&self, queue: Queue) -> std::result::Result<u32, String> {
        let head = self.word(queue.head).load(Ordering::Acquire);
        let count = head.wrapping_sub(self.word(queue.tail).load(Ordering::Acquire));
        if count > self.size {
            return Err(format!("the ring's positions are impossible: {count} bytes in {}", self.size));
        }
        Ok(count)
    }

    fn put(&self, queue: Queue, bytes: &[u8]) -> std::result::Result<usize, String> {
        let count = bytes.len().min((self.size - self.filled(queue)?) as usize);
        let head = self.word(queue.head).load(Ordering::Relaxed);
        let (start, at) = self.place(queue, head);
        let (one, two) = bytes[..count].split_at(count.min(self.size as usize - at));
        self.write(start + at, one);
        self.write(start, two);
        self.word(queue.head).store(head.wrapping_add(count as u32), Ordering::Release);
        Ok(count)
    }

    fn take(&self, queue: Queue, into: &mut Vec<u8>, most: usize) -> std::result::Result<usize, String> {
        let count = (self.filled(queue)? as usize).min(most);
        let tail = self.word(queue.tail).load(Ordering::Relaxed);
        let (start, at) = self.place(queue, tail);
        let one = count.min(self.size as usize - at);
        into.extend(self.read(start + at, one));
        into.extend(self.read(start, count - one));
        self.word(queue.tail).store(tail.wrapping_add(count as u32), Ordering::Release);
        Ok(count)
    }

    /// Where a queue's bytes begin, and where in them a position is.
    fn place(&self, queue: Queue, position: u32) -> (usize, usize) {
        let start = if queue.second { DATA + self.size as usize } else { DATA };
        (start, (position & (self.size - 1)) as usize)
    }

    /// Rings a bell. The order matters: the number first, then the look whether somebody sleeps.
    fn ring(&self, bell: usize) {
        self.word(bell).fetch_add(1, Ordering::SeqCst);
        if self.word(bell + 4).load(Ordering::SeqCst) != 0 {
            let _ = futex::wake(self.word(bell), futex::Flags::empty(), 1);
        }
    }

    /// Sleeps until the bell no longer has the value `seen`, at most `seconds`.
    fn sleep(&self, bell: usize, seen: u32, seconds: Option<i64>) {
        let limit = seconds.map(|tv_sec| futex::Timespec { tv_sec, tv_nsec: 0 });
        self.word(bell + 4).store(1, Ordering::SeqCst);
        // Whatever the end of the sleep, the caller looks again.
        let _ = futex::wait(self.word(bell), futex::Flags::empty(), seen, limit.as_ref());
        self.word(bell + 4).store(0, Ordering::SeqCst);
    }

    /// The job's view of it.
    pub fn job(&self) -> Side<'_> {
        Side { ring: self, out: REQUESTS, back: REPLIES, other: SERVER_BELL }
    }

    /// The server's view of it.
    pub fn server(&self) -> Side<'_> {
        Side { ring: self, out: REPLIES, back: REQUESTS, other: JOB_BELL }
    }

    /// The job sleeps until the server has done something. The error says why it never will.
    pub fn wait_for_server(&self) -> std::result::Result<(), String> {
        let seen = self.word(JOB_BELL).load(Ordering::SeqCst);
        if self.word(STATE).load(Ordering::Acquire) == CLOSED {
            return Err("it has closed the ring".into());
        }
        if self.filled(REPLIES)? > 0 {
            return Ok(());
        }
        self.sleep(JOB_BELL, seen, Some(PATIENCE));
        if self.word(JOB_BELL).load(Ordering::SeqCst) == seen && !self.server_lives() {
            return Err("nobody holds the lock of the ring any more".into());
        }
        Ok(())
    }

    fn server_lives(&self) -> bool {
        let mut lock = lock();
        // When the lock can't be asked for, nothing is known, and the job goes on waiting.
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut lock)).is_err() || lock.l_type != libc::F_UNLCK as i16
    }

    /// The number of the server's bell, to be given to [`Ring::wait_for_job`].
    pub fn bell(&self) -> u32 {
        self.word(SERVER_BELL).load(Ordering::SeqCst)
    }

    /// The server sleeps until its bell no longer has the value `seen`.
    pub fn wait_for_job(&self, seen: u32) {
        self.sleep(SERVER_BELL, seen, None);
    }

    /// Rings the server's own bell: its sleeper is to look around.
    pub fn wake_server(&self) {
        self.ring(SERVER_BELL);
    }

    /// Closes it, and tells the job.
    pub fn close(&self) {
        self.word(STATE).store(CLOSED, Ordering::Release);
        self.ring(JOB_BELL);
    }

    /// All of its bytes.
    pub fn image(&self) -> Vec<u8> {
        self.read(0, length(self.size))
    }

    /// Whether these bytes are those of a ring of this one's size.
    pub fn fits(&self, image: &[u8]) -> bool {
        image.len() == length(self.size)
            && image.starts_with(&MAGIC)
            && image[SIZE..SIZE + 4] == self.size.to_le_bytes()
            && image[STATE..STATE + 4] == OPEN.to_le_bytes()
    }

    /// Becomes the ring whose bytes these are: positions, contents and the job's bell. The server's bell stays, because
    /// somebody sleeps on it.
    pub fn adopt(&self, image: &[u8]) {
        self.write(SERVER_BELL - 0x100, &image[SERVER_BELL - 0x100..SERVER_BELL]);
        self.write(JOB_BELL, &image[JOB_BELL..]);
        self.ring(SERVER_BELL);
        self.ring(JOB_BELL);
    }
}

/// One side's view of a ring.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    ring: &'a Ring,
    out: Queue,
    back: Queue,
    other: usize,
}

impl Side<'_> {
    /// Puts in as many bytes as there is room for.
    pub fn send(&self, bytes: &[u8]) -> std::result::Result<usize, String> {
        let count = self.ring.put(self.out, bytes)?;
        if count > 0 {
            self.ring.ring(self.other);
        }
        Ok(count)
    }

    /// Appends what has come, at most so many bytes.
    pub fn receive(&self, into: &mut Vec<u8>, most: usize) -> std::result::Result<usize, String> {
        let count = self.ring.take(self.back, into, most)?;
        if count > 0 {
            self.ring.ring(self.other);
        }
        Ok(count)
    }

    /// Bytes that have been sent and that the other side has not taken.
    pub fn outgoing(&self) -> std::result::Result<u32, String> {
        self.ring.filled(self.out)
    }

    /// Bytes that have come and have not been taken.
    pub fn incoming(&self) -> std::result::Result<u32, String> {
        self.ring.filled(self.back)
    }
}

/// A write lock of the first byte.
fn lock() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn bytes_go_round_and_round() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ring");
        let server = Ring::create(&path, 16).unwrap();
        let job = Ring::open(&path).unwrap();
        let (mut sent, mut got) = (0u8, Vec::new());
        for _ in 0..100 {
            let bytes: Vec<u8> = (0..11).map(|n| sent.wrapping_add(n)).collect();
            assert_eq!(job.job().send(&bytes), Ok(11));
            assert_eq!(job.job().send(&[0; 9]).map(|n| n == 5), Ok(true), "the rest of the room");
            sent = sent.wrapping_add(11);
            assert_eq!(server.server().receive(&mut got, 11), Ok(11));
            assert_eq!(got, bytes);
            got.clear();
            assert_eq!(server.server().receive(&mut got, 99), Ok(5));
            got.clear();
        }
    }

    #[test]
    fn the_job_notices_that_the_server_has_closed_or_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ring");
        let server = Ring::create(&path, 64).unwrap();
        let job = Ring::open(&path).unwrap();
        assert!(job.server_lives());
        server.close();
        assert!(job.wait_for_server().unwrap_err().contains("closed"));
        drop(server);
        // A child that another test begets at this moment has the descriptor, and so the lock, until it executes its program.
        let deadline = Instant::now() + Duration::from_secs(30);
        while job.server_lives() {
            assert!(Instant::now() < deadline, "the lock of a ring outlives its server");
            std::thread::yield_now();
        }
    }

    #[test]
    fn impossible_positions_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ring");
        let server = Ring::create(&path, 64).unwrap();
        server.word(REQUESTS.head).store(1000, Ordering::Relaxed);
        let refused = server.server().receive(&mut Vec::new(), 9).unwrap_err();
        assert!(refused.contains("impossible"), "{refused}");
        std::fs::write(&path, b"short").unwrap();
        assert!(Ring::open(&path).is_err());
    }
}
