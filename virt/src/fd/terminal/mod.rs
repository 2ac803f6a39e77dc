//! Pseudoterminals (pty(7)) of the container's own devpts.
//!
//! Those whose master is in the job are made again, both ends, with the index that they had. The console's master is with
//! whoever holds the container's terminal; its place is taken by the console of the restarted container, which gets the
//! old one's settings. A slave that has lost its master is hung up, and stays so.

mod check;
mod make;
mod queue;
mod session;
mod state;

pub(super) use make::Numbers;
pub use session::Session;
pub use state::State;

use super::capture::Job;
use super::graph::Graph;
use super::seen::Seen;
use super::{Trouble, container};
use crate::image::Bytes;
use crate::sys::tty;
use crate::{Doing, Failure};
use nix::errno::Errno;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// The device of `/dev/tty`, which is another terminal for every session, and that of `/dev/ptmx` (the kernel's
/// devices.txt).
const OWN: (u32, u32) = (5, 0);
const MULTIPLEXER: (u32, u32) = (5, 2);

/// A pseudoterminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Terminal {
    /// Its number in the devpts.
    pub index: u32,
    /// Where the slave is, or was.
    pub path: Bytes,
    /// Who has its master.
    pub master: Master,
    /// What the kernel knows of it; nothing once it is hung up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// The session that it controls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
}

/// Who has the master of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Master {
    /// The job.
    Job,
    /// Whoever has the container's terminal.
    Outside,
    /// Nobody: the slave is hung up.
    Nobody,
}

/// A description of one end of a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TerminalUse {
    /// Which one of [`super::Files::terminals`].
    pub terminal: u32,
    /// Which end.
    pub end: End,
    /// What was opened.
    pub path: Bytes,
    /// A process that has the description and can open the terminal as `/dev/tty`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opener: Option<i32>,
}

/// An end of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// `/dev/ptmx`.
    Master,
    /// `/dev/pts/N` or `/dev/console`.
    Slave,
    /// `/dev/tty`, which is the slave under another name.
    Own,
}

/// The terminals that a job has to do with.
#[derive(Debug, Default)]
pub(super) struct Terminals {
    /// Where the container's devpts is mounted.
    point: Vec<u8>,
    /// By their indices.
    all: BTreeMap<u32, Ends>,
    /// Of each description of an end, which terminal's and which.
    nodes: HashMap<usize, (u32, End)>,
    /// Members whose controlling terminal is none of the container's: its device number.
    strange: Vec<(usize, (u32, u32))>,
}

/// Who has what of a terminal.
#[derive(Debug, Default, Clone)]
struct Ends {
    master: Option<usize>,
    /// One of the descriptions of the slave.
    slave: Option<usize>,
    hung_up: bool,
    session: Option<Session>,
}

impl Terminals {
    /// Finds out which description is of which terminal. The terminals of the host are not among them.
    pub fn of(graph: &Graph, ids: &HashMap<i32, i32>, running: bool) -> Result<Terminals, Failure> {
        let mut found = Terminals::default();
        let whole = graph.container.mounted(b"devpts").filter(|mount| mount.root == b"/");
        let Some(mount) = whole.min_by_key(|mount| (mount.point != b"/dev/pts", mount.point.clone())) else {
            found.strange(graph);
            return Ok(found);
        };
        found.point.clone_from(&mount.point);
        for (node, device) in devices(graph) {
            match found.enter(graph, mount.device, node, device) {
                Err(failure) if running && graph.is_gone(&failure, graph.nodes[node].member) => {}
                entered => entered?,
            }
        }
        found.sessions(graph, ids)?;
        Ok(found)
    }

    fn enter(
        &mut self,
        graph: &Graph,
        instance: (u32, u32),
        node: usize,
        device: (u32, u32),
    ) -> Result<(), Failure> {
        let seen = &graph.nodes[node].seen;
        let here = (rustix::fs::major(seen.stat.st_dev), rustix::fs::minor(seen.stat.st_dev)) == instance;
        let what = || format!("look at terminal {}", seen.name());
        match device {
            MULTIPLEXER => {
                // Another node than that of the devpts finds the devpts beside it (devpts_acquire).
                if !here && self.beside(&seen.link) != self.point {
                    return Ok(());
                }
                let index = tty::index(graph.take(node)?).doing(what)?;
                self.all.entry(index).or_default().master = Some(node);
                self.nodes.insert(node, (index, End::Master));
            }
            OWN => match tty::device(graph.take(node)?) {
                Ok(device) if is_slave(rustix::fs::major(device)) => {
                    let index = rustix::fs::minor(device);
                    self.all.entry(index).or_default().slave.get_or_insert(node);
                    self.nodes.insert(node, (index, End::Own));
                }
                Ok(_) | Err(Errno::EIO) => {}
                Err(errno) => return Err(errno).doing(what),
            },
            (_, index) if here => {
                let hung_up = match tty::discipline(graph.take(node)?) {
                    Err(Errno::EIO) => true,
                    answer => answer.map(|_| false).doing(what)?,
                };
                let ends = self.all.entry(index).or_default();
                ends.slave.get_or_insert(node);
                ends.hung_up |= hung_up;
                self.nodes.insert(node, (index, End::Slave));
            }
            _ => {}
        }
        Ok(())
    }

    fn beside(&self, link: &[u8]) -> Vec<u8> {
        container::join(container::parent(link), b"pts")
    }

    /// The description is of one of them.
    pub fn has(&self, node: usize) -> bool {
        self.nodes.contains_key(&node)
    }
}

/// All descriptions of terminals, and their device numbers.
fn devices(graph: &Graph) -> Vec<(usize, (u32, u32))> {
    let device = |seen: &Seen| (rustix::fs::major(seen.stat.st_rdev), rustix::fs::minor(seen.stat.st_rdev));
    let is = |seen: &Seen| {
        let (major, minor) = device(seen);
        let terminal = [OWN, MULTIPLEXER].contains(&(major, minor)) || is_slave(major);
        terminal && seen.type_() == FileType::CharacterDevice && !seen.path_only()
    };
    graph.all(is).map(|node| (node, device(&graph.nodes[node].seen))).collect()
}

/// The major numbers of slaves (the kernel's devices.txt).
fn is_slave(major: u32) -> bool {
    (136..=143).contains(&major)
}

impl Job<'_> {
    /// None when it is none of the container's terminals.
    pub(super) fn terminal(&mut self, node: usize) -> Result<Option<TerminalUse>, Trouble> {
        let Some(&(index, end)) = self.terminals.nodes.get(&node) else { return Ok(None) };
        let seen = &self.graph.nodes[node].seen;
        let path = seen.link.strip_suffix(container::DELETED).unwrap_or(&seen.link).to_vec();
        let terminal = self.terminal_of(index)?;
        let opener = (end == End::Own).then(|| self.opener(index, node)).flatten();
        Ok(Some(TerminalUse { terminal, end, path: path.into(), opener }))
    }

    /// Terminals that nobody has open and that control a session all the same.
    pub(super) fn controlling_terminals(&mut self) -> Vec<(usize, Trouble)> {
        let mut troubles = Vec::new();
        for (member, (major, minor)) in self.terminals.strange.clone() {
            let what = format!("controlling terminal (device {major}:{minor})");
            troubles.push((member, Trouble::refused(what, "it is none of the container's own")));
        }
        let controlling: Vec<_> = self
            .terminals
            .all
            .iter()
            .filter(|(_, ends)| ends.master.or(ends.slave).is_none())
            .filter_map(|(index, ends)| Some((*index, ends.session.as_ref()?.leader)))
            .collect();
        for (index, leader) in controlling {
            if let Err(trouble) = self.terminal_of(index) {
                let member = self.graph.members.iter().position(|member| member.pid == leader);
                troubles.push((member.unwrap_or(0), trouble));
            }
        }
        troubles
    }

    /// The number in the list of the terminal with this index.
    fn terminal_of(&mut self, index: u32) -> Result<u32, Trouble> {
        if let Some(&known) = self.known_terminals.get(&index) {
            return Ok(known);
        }
        let Some(ends) = self.terminals.all.get(&index).cloned() else {
            return Err(Trouble::refused(format!("terminal {index}"), "it has gone"));
        };
        let path = container::join(&self.terminals.point, index.to_string().as_bytes());
        let master = match ends {
            Ends { hung_up: true, .. } => Master::Nobody,
            Ends { master: Some(_), .. } => Master::Job,
            _ => Master::Outside,
        };
        let state = match master {
            Master::Nobody => None,
            _ => Some(self.terminal_state(&ends, &path)?),
        };
        let number = self.files.terminals.len() as u32;
        let session = ends.session;
        self.files.terminals.push(Terminal { index, path: path.into(), master, state, session });
        self.known_terminals.insert(index, number);
        Ok(number)
    }

    fn opener(&self, index: u32, node: usize) -> Option<i32> {
        let session = self.terminals.all.get(&index)?.session.as_ref()?;
        let has = |at: usize| self.graph.edges[at].iter().any(|edge| edge.node == node);
        let members = self.graph.members.iter().enumerate();
        let mut can = members.filter(|(at, member)| {
            member.session == session.leader && !session.without.contains(&member.pid) && has(*at)
        });
        can.next().map(|(_, member)| member.pid)
    }
}
