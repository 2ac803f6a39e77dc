//! Standard streams that lead out of the job: a terminal, a pipe to somebody else, a file of the host.
//!
//! What they lead to is not the job's and can't be carried. At a restart their place is taken by the standard streams of
//! whoever restarts the job. Only descriptors 0 to 2 of the job's first process are such streams, and everything else in
//! the job that leads to the same.

use super::capture::Job;
use super::container::same;
use super::graph::Graph;
use super::making::Making;
use super::seen::Seen;
use super::socket::World;
use super::stream::Ends;
use super::terminal::Terminals;
use super::{Description, Locks, Object};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// The stream is the one that the restarted job's first process gets under a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Given {
    /// 0, 1 or 2.
    pub number: u8,
    /// What it was, for people.
    pub was: String,
    /// It was a terminal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminal: bool,
}

/// The standard streams of a job.
#[derive(Debug, Default)]
pub(super) struct Standard {
    /// The description of each, if it leads out.
    streams: [Option<usize>; 3],
    /// For other descriptions, the number of the stream that leads to the same.
    same: Vec<Option<u8>>,
}

impl Standard {
    pub fn of(graph: &Graph, ends: &Ends, terminals: &Terminals, unix: &World) -> Standard {
        let leads_out = |node: usize| !terminals.has(node) && leads_out(graph, ends, unix, node);
        let outside = |node: &usize| leads_out(*node);
        let streams = [0, 1, 2].map(|fd| graph.find(0, fd).filter(outside));
        let number = |node: usize| {
            let seen = &graph.nodes[node].seen;
            let like = |stream: Option<usize>| {
                stream.is_some_and(|stream| {
                    let given = &graph.nodes[stream].seen;
                    stream == node || (same(&given.stat, &seen.stat) && serves(given, seen))
                })
            };
            // The same description before another one of the same thing.
            let exact = streams.iter().position(|&stream| stream == Some(node));
            let number = exact.or_else(|| {
                let other = streams.iter().position(|&stream| like(stream));
                other.filter(|_| leads_out(node))
            });
            number.and_then(|number| u8::try_from(number).ok())
        };
        let same = (0..graph.nodes.len()).map(number).collect();
        Standard { streams, same }
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        self.streams.iter().flatten().count() as u32
    }

    /// The numbers of those that there are, and what they lead to.
    pub fn given(&self) -> Vec<(u8, usize)> {
        (0..).zip(self.streams).filter_map(|(number, stream)| Some((number, stream?))).collect()
    }

    /// A description that one of them stands for.
    pub fn replaces(&self, node: usize) -> bool {
        self.same.get(node).is_some_and(Option::is_some)
    }

    /// The number of the description that stands for `node` as descriptor `fd`.
    pub fn description(&self, node: usize, fd: RawFd) -> Option<u32> {
        let fallback = (*self.same.get(node)?)?;
        // Two streams may have been one description; which of them is meant, only the number can tell.
        let own = u8::try_from(fd).ok().filter(|&n| self.streams.get(usize::from(n)) == Some(&Some(node)));
        let number = own.unwrap_or(fallback);
        Some(self.streams.iter().take(usize::from(number)).flatten().count() as u32)
    }
}

/// `given` can do what `wanted` was opened for.
fn serves(given: &Seen, wanted: &Seen) -> bool {
    (given.reads() || !wanted.reads()) && (given.writes() || !wanted.writes())
}

fn leads_out(graph: &Graph, ends: &Ends, unix: &World, node: usize) -> bool {
    let seen = &graph.nodes[node].seen;
    match seen.type_() {
        FileType::Fifo if !seen.has_path() => ends.lead_out(seen),
        FileType::Socket if !seen.has_path() => unix.socket(node).is_none() || unix.leads_out(graph, node),
        FileType::CharacterDevice if is_terminal(seen.stat.st_rdev) => true,
        _ => seen.has_path() && graph.mount(seen.info.mount).is_none() && !is_internal(seen),
    }
}

/// Terminals of all kinds, by their major numbers (the kernel's devices.txt).
pub(super) fn is_terminal(device: u64) -> bool {
    matches!(rustix::fs::major(device), 4 | 5 | 136..=143 | 204 | 229)
}

/// On a file system that the kernel has for itself.
fn is_internal(seen: &Seen) -> bool {
    seen.stat.st_nlink == 0 && seen.link.starts_with(b"/memfd:")
}

impl Job<'_> {
    /// The description for standard stream `number`, which leads to `node`.
    pub(super) fn standard_description(&self, number: u8, node: usize) -> Description {
        let seen = &self.graph.nodes[node].seen;
        Description {
            flags: seen.info.flags,
            position: 0,
            owner: None,
            signal: None,
            locks: Locks::default(),
            namespace: 0,
            object: Object::Given(Given {
                number,
                was: seen.name(),
                terminal: seen.type_() == FileType::CharacterDevice && is_terminal(seen.stat.st_rdev),
            }),
        }
    }
}

impl Given {
    pub(super) fn make(&self, to: RawFd, making: &mut Making<'_>) {
        let what = format!("take over standard stream {}", self.number);
        let cloexec = libc::O_CLOEXEC;
        making.program.call(
            what,
            libc::SYS_dup3,
            &[i32::from(self.number).into(), to.into(), cloexec.into()],
        );
    }
}
