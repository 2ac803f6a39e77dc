//! Pipes of pipe(2).

use super::capture::Job;
use super::making::Making;
use super::refused::OTHER_END;
use super::stream::Stream;
use super::{Files, Object, Trouble};
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// A pipe without a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Pipe {
    /// Its size and its content.
    pub stream: Stream,
}

/// An end of a pipe; the flags of the description say which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PipeUse {
    /// Which one of [`Files::pipes`].
    pub pipe: u32,
}

impl Job<'_> {
    pub(super) fn pipe(&mut self, node: usize) -> Result<PipeUse, Trouble> {
        let seen = &self.graph.nodes[node].seen;
        // In a job that runs it may be on its way in a message.
        let unseen = self.running() && self.unix.has_messages();
        if self.ends.lead_out(seen) && !unseen {
            return Err(Trouble::refused(seen.name(), OTHER_END));
        }
        let key = (seen.stat.st_dev, seen.stat.st_ino);
        if let Some(&pipe) = self.known.get(&key) {
            return Ok(PipeUse { pipe });
        }
        let pipe = self.files.pipes.len() as u32;
        let stream = self.stream(node, format!("files/pipe-{pipe}"))?;
        self.files.pipes.push(Pipe { stream });
        self.known.insert(key, pipe);
        Ok(PipeUse { pipe })
    }
}

impl Pipe {
    /// Makes the pipe and every description of it.
    pub(super) fn make(&self, id: u32, files: &Files, making: &mut Making<'_>) {
        let ends = making.program.room(2 * size_of::<RawFd>());
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        making.program.call("make a pipe", libc::SYS_pipe2, &[ends.into(), flags.into()]);
        let mut first = [true; 2];
        let numbers = [making.number(), making.number()];
        for (end, &number) in numbers.iter().enumerate() {
            making.put_at(ends.word(end * size_of::<RawFd>()), number);
        }
        making.capacity(numbers[1], self.stream.capacity);
        making.pipes.push(numbers);
        for (at, description) in files.descriptions.iter().enumerate() {
            let Object::Pipe(PipeUse { pipe }) = description.object else { continue };
            if pipe != id {
                continue;
            }
            let to = making.at(at as u32);
            // pipe2 makes one description of each end; more can only have been opened through /proc.
            match description.flags & libc::O_ACCMODE as u32 {
                end if end < 2 && std::mem::take(&mut first[end as usize]) => {
                    making.copy(numbers[end as usize], to);
                }
                end => making.reopen(numbers[usize::from(end == 1)], description.flags, to),
            }
        }
    }
}
