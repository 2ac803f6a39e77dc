//! What flows through pipes and FIFOs.
//!
//! The bytes are the pipe's, not a descriptor's. They are read by tee(2), which leaves them where they are. Each write
//! in packet mode (O_DIRECT) is a packet of its own, and stays one: tee(2) keeps the borders, and so does writing the
//! packets one by one again.

use super::capture::Job;
use super::captured::{Content, Source};
use super::graph::Graph;
use super::seen::Seen;
use crate::image::Image;
use crate::{Doing, Error, Failure};
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::pipe::{PipeFlags, SpliceFlags};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The most bytes that a pipe may hold by an image's word: the kernel's own limit (`round_pipe_size`).
const MOST: u64 = 1 << 31;

/// A pipe's size, and what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Stream {
    /// Bytes that fit into it (F_GETPIPE_SZ).
    pub capacity: u32,
    /// The file of the image with the bytes that nobody has read yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The sizes of the packets that they are, in packet mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packets: Vec<u32>,
}

/// Who in the job has which end of each pipe and FIFO.
#[derive(Debug, Default)]
pub(super) struct Ends {
    ends: HashMap<(u64, u64), End>,
}

#[derive(Debug, Default, Clone)]
struct End {
    reader: Option<usize>,
    writer: Option<usize>,
    /// Somebody outside of the job has the end that nobody inside has.
    out: bool,
    packets: bool,
}

impl Ends {
    pub fn of(graph: &Graph) -> Result<Ends, Failure> {
        let mut ends: HashMap<(u64, u64), End> = HashMap::new();
        for node in graph.all(|seen| seen.type_() == FileType::Fifo && !seen.path_only()) {
            let seen = &graph.nodes[node].seen;
            let end = ends.entry((seen.stat.st_dev, seen.stat.st_ino)).or_default();
            if seen.reads() {
                end.reader.get_or_insert(node);
            }
            if seen.writes() {
                end.writer.get_or_insert(node);
                end.packets |= seen.info.flags & libc::O_DIRECT as u32 != 0;
            }
        }
        for end in ends.values_mut() {
            end.out = match (end.reader, end.writer) {
                (None, Some(writer)) => take(graph, writer)?.is_some_and(|fd| has_readers(fd.as_fd())),
                (Some(reader), None) => take(graph, reader)?.is_some_and(|fd| has_writers(fd.as_fd())),
                _ => false,
            };
        }
        Ok(Ends { ends })
    }

    /// The other end of this one is outside of the job.
    pub fn lead_out(&self, seen: &Seen) -> bool {
        self.ends.get(&(seen.stat.st_dev, seen.stat.st_ino)).is_some_and(|end| end.out)
    }

    /// Somebody in the job can read from it.
    pub fn has_reader(&self, seen: &Seen) -> bool {
        self.ends.get(&(seen.stat.st_dev, seen.stat.st_ino)).is_some_and(|end| end.reader.is_some())
    }
}

/// A descriptor of a running job may have gone.
fn take(graph: &Graph, node: usize) -> Result<Option<OwnedFd>, Failure> {
    match graph.take(node) {
        Err(failure) if graph.is_gone(&failure, graph.nodes[node].member) => Ok(None),
        fd => fd.map(Some),
    }
}

pub(super) fn ready(fd: BorrowedFd<'_>, wanted: PollFlags) -> PollFlags {
    let mut fds = [PollFd::from_borrowed_fd(fd, wanted)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).map_or(PollFlags::empty(), |_| fds[0].revents())
}

/// The kernel reports an error to a writer when there is no reader.
fn has_readers(writer: BorrowedFd<'_>) -> bool {
    !ready(writer, PollFlags::OUT).contains(PollFlags::ERR)
}

/// It reports the end to a reader when there is no writer any more. To the reader of a FIFO that never had one it does
/// not, but tee(2) then finds the end of the file instead of having to wait.
fn has_writers(reader: BorrowedFd<'_>) -> bool {
    if hung_up(reader) {
        return false;
    }
    let empty = rustix::io::ioctl_fionread(reader).is_ok_and(|bytes| bytes == 0);
    !(empty && copy_out(reader, 4096).is_ok_and(|copied| copied.is_none()))
}

/// poll(2) reports a hang-up.
pub(super) fn hung_up(reader: BorrowedFd<'_>) -> bool {
    ready(reader, PollFlags::IN).contains(PollFlags::HUP)
}

/// The content of a pipe in another pipe; None when it has ended, with nothing in it.
fn copy_out(reader: BorrowedFd<'_>, capacity: usize) -> Result<Option<(OwnedFd, usize)>, Errno> {
    let raw = |e: rustix::io::Errno| Errno::from_raw(e.raw_os_error());
    let (out, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(raw)?;
    if capacity > 4096 {
        rustix::pipe::fcntl_setpipe_size(&into, capacity).map_err(raw)?;
    }
    match rustix::pipe::tee(reader, &into, capacity.max(4096), SpliceFlags::NONBLOCK).map_err(raw)? {
        0 => Ok(None),
        size => Ok(Some((out, size))),
    }
}

impl Job<'_> {
    /// The pipe behind `node`: its size and its content, which goes to the image as `name`.
    pub(super) fn stream(&mut self, node: usize, name: String) -> Result<Stream, Failure> {
        let key = &self.graph.nodes[node].seen.stat;
        let end = self.ends.ends.get(&(key.st_dev, key.st_ino)).cloned().unwrap_or_default();
        let any = self.graph.take(node)?;
        let what = || format!("read the content of {}", self.graph.nodes[node].seen.name());
        let capacity = rustix::pipe::fcntl_getpipe_size(&any).doing(what)?;
        let mut stream =
            Stream { capacity: u32::try_from(capacity).unwrap_or(u32::MAX), ..Stream::default() };
        // What nobody can read any more is lost already.
        let Some(reader) = end.reader.filter(|_| !self.running()) else { return Ok(stream) };
        let reader = self.graph.take(reader)?;
        if rustix::io::ioctl_fionread(&reader).doing(what)? == 0 {
            return Ok(stream);
        }
        let Some((copy, size)) = copy_out(reader.as_fd(), capacity).doing(what)? else { return Ok(stream) };
        let mut bytes = vec![0; size];
        let mut filled = 0;
        while filled < size {
            match rustix::io::read(&copy, &mut bytes[filled..]).doing(what)? {
                0 => break,
                read => {
                    filled += read;
                    stream.packets.push(u32::try_from(read).unwrap_or(u32::MAX));
                }
            }
        }
        bytes.truncate(filled);
        if stream.packets.len() == 1 && !end.packets {
            stream.packets.clear();
        }
        stream.content = Some(name.clone());
        self.contents.push(Content { name, source: Source::Bytes(bytes) });
        Ok(stream)
    }
}

impl Stream {
    /// Fills a new pipe, of which `writer` is an end that does not block.
    pub(super) fn fill(&self, writer: OwnedFd, image: &Image) -> Result<(), Error> {
        let Some(name) = &self.content else { return Ok(()) };
        let bytes = image.bytes(name, MOST)?;
        let what = || format!("fill a pipe with {name}");
        let mut writer = File::from(writer);
        if self.packets.is_empty() {
            writer.write_all(&bytes).doing(what)?;
            return Ok(());
        }
        let flags = rustix::fs::fcntl_getfl(&writer).doing(what)?;
        rustix::fs::fcntl_setfl(&writer, flags | OFlags::DIRECT).doing(what)?;
        let mut rest = bytes.as_slice();
        for &size in &self.packets {
            let Some((packet, tail)) = rest.split_at_checked(size as usize) else {
                return Err(Error::Damaged(format!("{name}: shorter than its packets")));
            };
            writer.write_all(packet).doing(what)?;
            rest = tail;
        }
        rustix::fs::fcntl_setfl(&writer, flags).doing(what)?;
        Ok(())
    }
}

/// Opens what `fd` is of once more: a description of its own, with these flags.
pub(super) fn reopen(fd: impl AsFd, flags: u32) -> Result<OwnedFd, Failure> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let flags = OFlags::from_bits_retain(flags) | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open {path} again"))
}
