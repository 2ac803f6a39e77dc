//! POSIX message queues (mq_overview(7)), which belong to an IPC namespace as those of System V do.
//!
//! No call shows messages without taking them. So they are taken, and put back at once, while the job stands still: what
//! is taken first is the oldest of the highest priority, and put back in that order they are as they were. Nobody waits in
//! a call meanwhile, since a thread that stands still has been interrupted in it; and a kill of ckrun does not come between the
//! two ([`apart`]). A queue about whose first message somebody is to be told (mq_notify(3)) is left alone, for to put
//! that back would tell him; it is refused, since the kernel shows to nobody what he is to be told.
//!
//! Queues without a name are refused. Not kept are the times.

use crate::image::Bytes;
use crate::namespace::{Kind, Namespace};
use crate::resource::Blocker;
use crate::sys::apart;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use serde::{Deserialize, Serialize};
use std::ffi::{CStr, CString};
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Queue {
    /// Without the slash in front.
    pub name: Bytes,
    /// User and group that own it, by the host's ids.
    pub owner: (u32, u32),
    /// Permissions.
    pub mode: u32,
    /// How many messages may wait.
    pub most: i64,
    /// How large each may be, in bytes.
    pub size: i64,
    /// What waits, in the order in which it is received.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// Somebody is to be told when a message comes to it while it is empty. Such a queue is in no image.
    #[serde(skip)]
    pub watched: bool,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Message {
    /// Those of higher priority are received first.
    pub priority: u32,
    /// Its content.
    pub text: Bytes,
}

/// The queues of a namespace, as a file system has them.
#[derive(Debug)]
pub(crate) struct Folder(OwnedFd);

impl Folder {
    /// Those of `namespace`, whether or not the job has mounted them anywhere; None if the kernel has no such thing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(namespace: &Namespace) -> Result<Option<Folder>, Failure> {
        let _abroad = namespace.enter()?;
        Folder::here()
    }

    fn here() -> Result<Option<Folder>, Failure> {
        let made = fsopen("mqueue", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|fs| {
            fsconfig_create(&fs)?;
            let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
            rustix::fs::openat(
                &mount,
                ".",
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        });
        if matches!(made, Err(rustix::io::Errno::NODEV)) {
            return Ok(None);
        }
        made.map(|fd| Some(Folder(fd))).doing(|| "mount the POSIX message queues of the job")
    }

    /// The names of all queues.
    pub fn names(&self) -> Result<Vec<CString>, Failure> {
        let what = || "list the POSIX message queues of the job";
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.0).doing(what)? {
            let entry = entry.doing(what)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The device and the inode of a queue; None when there is none of this name.
    pub fn find(&self, name: &[u8]) -> Option<(u64, u64)> {
        let stat = rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some((stat.st_dev, stat.st_ino))
    }

    /// Somebody is to be told when a message comes to the empty queue.
    pub fn is_watched(&self, name: &CStr) -> Result<bool, Failure> {
        let what = || format!("read POSIX message queue {}", name.to_string_lossy());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file =
            std::fs::File::from(rustix::fs::openat(&self.0, name, flags, Mode::empty()).doing(what)?);
        // `QSIZE:129 NOTIFY:2 SIGNO:0 NOTIFY_PID:8260` (mq_overview(7)).
        let mut text = String::new();
        file.read_to_string(&mut text).doing(what)?;
        let pid = text.split_ascii_whitespace().find_map(|word| word.strip_prefix("NOTIFY_PID:"));
        Ok(pid != Some("0"))
    }

    fn queue(&self, name: &CStr) -> Result<Queue, Failure> {
        let what = || format!("look at POSIX message queue {}", name.to_string_lossy());
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.0, name, flags, Mode::empty()).doing(what)?;
        let stat = rustix::fs::fstat(&fd).doing(what)?;
        let attributes = attributes(&fd).doing(what)?;
        let watched = self.is_watched(name)?;
        let messages = if watched { Vec::new() } else { look(&fd, &attributes).doing(what)? };
        Ok(Queue {
            name: name.to_bytes().into(),
            owner: (stat.st_uid, stat.st_gid),
            mode: stat.st_mode & 0o7777,
            most: attributes.mq_maxmsg,
            size: attributes.mq_msgsize,
            messages,
            watched,
        })
    }
}

/// Names the queues of `init`'s namespace that can't be carried, while the job runs.
///
/// # Errors
/// The kernel's.
pub(crate) fn survey(init: Pid) -> Result<Vec<Blocker>, Failure> {
    let Some(namespace) = Namespace::of(init, Kind::Ipc)? else {
        // They are the host's, and stay.
        return Ok(Vec::new());
    };
    let Some(folder) = Folder::of(&namespace)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for name in folder.names()? {
        match folder.is_watched(&name) {
            Ok(true) => found.push(blocker(&String::from_utf8_lossy(name.to_bytes()), init)),
            Err(failure) if failure.errno != Errno::ENOENT => return Err(failure),
            _ => {}
        }
    }
    Ok(found)
}

/// The queue `name` is watched.
pub(crate) fn blocker(name: &str, init: Pid) -> Blocker {
    let comm = std::fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default();
    Blocker {
        pid: 1,
        comm: comm.trim_end().into(),
        what: format!("POSIX message queue /{name}"),
        why: "somebody is to be told of its next message (mq_notify), and nobody shows what".into(),
        remedy: Some("let the job wait for messages in mq_receive(3) or by poll(2)".into()),
    }
}

/// Those of the namespace that this thread is in.
pub(super) fn capture() -> Result<Vec<Queue>, Failure> {
    let Some(folder) = Folder::here()? else { return Ok(Vec::new()) };
    folder.names()?.iter().map(|name| folder.queue(name)).collect()
}

fn attributes(fd: &OwnedFd) -> Result<libc::mq_attr, Errno> {
    // SAFETY: a plain C structure of numbers.
    let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is of a queue, and the structure is filled.
    Errno::result(unsafe { libc::mq_getattr(fd.as_raw_fd(), &raw mut attributes) })?;
    Ok(attributes)
}

/// Takes all messages, and puts them back, whatever happens, and even if ckrun is killed.
fn look(fd: &OwnedFd, attributes: &libc::mq_attr) -> Result<Vec<Message>, Errno> {
    let number = |value: libc::c_long| usize::try_from(value).map_err(|_| Errno::EOVERFLOW);
    let (count, size) = (number(attributes.mq_curmsgs)?, number(attributes.mq_msgsize)?.max(1));
    // The kernel puts none into a place that is too small for the longest.
    let mut places = vec![0_u8; count.checked_mul(size).ok_or(Errno::EOVERFLOW)?];
    let mut told = vec![(0_u32, 0_usize); count];
    if count == 0 {
        return Ok(Vec::new());
    }
    let taken = apart(|| {
        let (mut taken, mut failed) = (0, Ok(()));
        for (place, (priority, length)) in places.chunks_exact_mut(size).zip(&mut told) {
            match receive(fd, place, priority) {
                Ok(got) => *length = got,
                Err(Errno::EAGAIN) => break,
                Err(errno) => {
                    failed = Err(errno);
                    break;
                }
            }
            taken += 1;
        }
        let back = places.chunks_exact(size).zip(&told).take(taken);
        let put = back
            .map(|(place, (priority, length))| send(fd, place.get(..*length).unwrap_or(place), *priority));
        put.fold(failed, Result::and).map(|()| taken)
    })??;
    let texts = places.chunks_exact(size).zip(told).take(taken);
    Ok(texts
        .map(|(place, (priority, length))| Message {
            priority,
            text: place.get(..length).unwrap_or(place).into(),
        })
        .collect())
}

fn receive(fd: &OwnedFd, place: &mut [u8], priority: &mut u32) -> Result<usize, Errno> {
    loop {
        // SAFETY: the buffer has the length that is said.
        let got =
            unsafe { libc::mq_receive(fd.as_raw_fd(), place.as_mut_ptr().cast(), place.len(), priority) };
        match Errno::result(got) {
            Err(Errno::EINTR) => {}
            got => return got.map(isize::cast_unsigned),
        }
    }
}

fn send(fd: &OwnedFd, text: &[u8], priority: u32) -> Result<(), Errno> {
    loop {
        // SAFETY: the text has the length that is said.
        let sent = unsafe { libc::mq_send(fd.as_raw_fd(), text.as_ptr().cast(), text.len(), priority) };
        match Errno::result(sent) {
            Err(Errno::EINTR) => {}
            sent => return sent.map(drop),
        }
    }
}

impl Queue {
    /// Makes it in the namespace that this thread is in.
    ///
    /// # Errors
    /// `EEXIST`, `EINVAL` (larger than `fs.mqueue.msg_max` or `msgsize_max` allow), `EMFILE` (RLIMIT_MSGQUEUE of ckrun).
    pub(super) fn make(&self) -> Result<(), Failure> {
        let what = || format!("make POSIX message queue {}", self.name);
        let path = CString::new([b"/", &self.name[..]].concat()).map_err(|_| Errno::EINVAL).doing(what)?;
        // SAFETY: a plain C structure of numbers.
        let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
        (attributes.mq_maxmsg, attributes.mq_msgsize) = (self.most, self.size);
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
        // SAFETY: the name ends with a NUL, and the structure is read.
        let fd = unsafe { libc::mq_open(path.as_ptr(), flags, 0o600, &raw mut attributes) };
        // SAFETY: the kernel has just made it, for nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(Errno::result(fd).doing(what)?) };
        let (user, group) = self.owner;
        let ids = (rustix::fs::Uid::from_raw(user), rustix::fs::Gid::from_raw(group));
        rustix::fs::fchown(&fd, Some(ids.0), Some(ids.1)).doing(what)?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(self.mode)).doing(what)?;
        let put = |message: &Message| {
            send(&fd, &message.text, message.priority)
                .doing(|| format!("fill POSIX message queue {}", self.name))
        };
        self.messages.iter().try_for_each(put)
    }
}
