//! A system call that waits for an answer, and the task that makes it.

use super::pending::Held;
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A call. Its task waits and can't be stopped, only killed (`SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`): so a checkpoint
/// never finds it half done, and nothing is done twice.
#[derive(Debug)]
pub struct Call<'a> {
    listener: BorrowedFd<'a>,
    /// Where it is kept until it is answered.
    pub slot: &'a mut Held,
    id: u64,
    /// The thread, in ckrun's pid namespace.
    task: Pid,
    /// `SYS_*`.
    pub number: libc::c_long,
    /// Its arguments.
    pub args: [u64; 6],
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is none of ours: the kernel carries it out.
    GoOn,
    /// It has been carried out, with this result.
    Done(i64),
    /// It has failed.
    Failed(Errno),
}

impl From<Errno> for Answer {
    fn from(errno: Errno) -> Answer {
        Answer::Failed(errno)
    }
}

impl<'a> Call<'a> {
    /// The one in a slot.
    pub fn of(listener: BorrowedFd<'a>, slot: &'a mut Held) -> Option<Call<'a>> {
        let got = slot.call()?;
        let task = Pid::from_raw(got.pid.cast_signed());
        Some(Call { listener, slot, id: got.id, task, number: got.data.nr.into(), args: got.data.args })
    }

    /// Answers it. That its task is gone is no error.
    pub fn answer(self, answer: Answer) {
        let (val, error, flags) = match answer {
            Answer::GoOn => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Answer::Done(value) => (value, 0, 0),
            Answer::Failed(errno) => (0, -(errno as i32), 0),
        };
        let mut response = libc::seccomp_notif_resp { id: self.id, val, error, flags };
        // SAFETY: the kernel reads one `struct seccomp_notif_resp`, which this is.
        let done = unsafe {
            libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response)
        };
        if let Err(e) = Errno::result(done)
            && e != Errno::ENOENT
        {
            log::warn!("a call of task {} can't be answered: {e}", self.task);
        }
        self.slot.clear();
    }

    /// A duplicate of its task's descriptor `number`.
    pub fn descriptor(&self, number: u64) -> Result<OwnedFd, Errno> {
        // The kernel takes the lower half only, an `unsigned int` or an `int`.
        let number = number as RawFd;
        let task = rustix::process::Pid::from_raw(self.task.as_raw()).ok_or(Errno::ESRCH)?;
        // Any thread may call, and has a table of descriptors of its own if it likes (`PIDFD_THREAD`, Linux 6.9).
        let thread = PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned());
        let process = pidfd_open(task, thread).map_err(errno)?;
        // The id is still its task's if the call still waits.
        self.still_waits()?;
        pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).map_err(errno)
    }

    /// Puts `new` in the place of its task's descriptor `number`; only that descriptor, whose flag for exec stays.
    pub fn replace(&self, number: u64, new: &OwnedFd) -> Result<(), Errno> {
        let number = number as u32;
        let path = format!("/proc/{}/fdinfo/{number}", self.task);
        let text = std::fs::read_to_string(path).map_err(|_| Errno::EBADF)?;
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).ok_or(Errno::EBADF)?;
        let own = rustix::fs::OFlags::from_bits_retain(flags & libc::O_NONBLOCK as u32);
        rustix::fs::fcntl_setfl(new, own).map_err(errno)?;
        let mut add = libc::seccomp_notif_addfd {
            id: self.id,
            flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
            srcfd: new.as_raw_fd().cast_unsigned(),
            newfd: number,
            newfd_flags: flags & libc::O_CLOEXEC as u32,
        };
        // SAFETY: the kernel reads one `struct seccomp_notif_addfd`, which this is.
        let done =
            unsafe { libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw mut add) };
        Errno::result(done).map(drop)
    }

    /// Reads `length` bytes of its task's memory; fewer if the memory ends before.
    pub fn read(&self, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        let there = [RemoteIoVec { base: address as usize, len: length }];
        let read = process_vm_readv(self.task, &mut [IoSliceMut::new(&mut bytes)], &there)?;
        self.still_waits()?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Reads `length` bytes of its task's memory into the room of its slot.
    pub fn fetch(&mut self, address: u64, length: usize) -> Result<(), Errno> {
        let there = [RemoteIoVec { base: address as usize, len: length }];
        let here = self.slot.room().get_mut(..length).ok_or(Errno::EINVAL)?;
        let read = process_vm_readv(self.task, &mut [IoSliceMut::new(here)], &there)?;
        self.still_waits()?;
        if read == length { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Writes to its task's memory.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.still_waits()?;
        let there = [RemoteIoVec { base: address as usize, len: bytes.len() }];
        match process_vm_writev(self.task, &[IoSlice::new(bytes)], &there)? {
            written if written == bytes.len() => Ok(()),
            _ => Err(Errno::EFAULT),
        }
    }

    /// Its task has not been killed.
    pub fn still_waits(&self) -> Result<(), Errno> {
        // SAFETY: the kernel reads one u64.
        let valid = unsafe {
            libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const self.id)
        };
        Errno::result(valid).map(drop)
    }
}

/// The same error in the other crate's words.
pub fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}
