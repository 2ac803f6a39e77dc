//! Which session a terminal controls, and who of it is in the foreground.
//!
//! Only the leader of a session gives it a terminal (TIOCSCTTY), and its children inherit that at their birth; so it is
//! done as soon as the session begins. Some of them may have let go of it, or have been born before.

use super::super::Files;
use super::super::graph::Graph;
use super::super::make::Made;
use super::{Ends, Terminal, Terminals, is_slave};
use crate::Failure;
use crate::hex::Hex;
use crate::proc::Stat;
use crate::program::Program;
use crate::signals::Action;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// A session that a terminal controls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Session {
    /// Its leader.
    pub leader: i32,
    /// The process group that may read from the terminal, if anybody is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreground: Option<i32>,
    /// Processes of the session that have no controlling terminal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<i32>,
}

/// What `/proc/PID/stat` shows of a device number, which the kernel packs (new_encode_dev).
fn unpack(device: u32) -> (u32, u32) {
    (device >> 8 & 0xfff, (device & 0xff) | (device >> 12 & 0xf_ff00))
}

/// The members that have a controlling terminal, and what `/proc` says of them.
fn controlled(graph: &Graph) -> impl Iterator<Item = (usize, (u32, u32), &Stat)> {
    let stats = graph.members.iter().map(|member| &member.stat).enumerate();
    stats.filter(|(_, stat)| stat.terminal != 0).map(|(at, stat)| (at, unpack(stat.terminal), stat))
}

impl Terminals {
    pub(super) fn sessions(&mut self, graph: &Graph, ids: &HashMap<i32, i32>) -> Result<(), Failure> {
        let mut with = Vec::new();
        for (at, (major, index), stat) in controlled(graph) {
            let leader = graph.members[at].session;
            let path = super::container::join(&self.point, index.to_string().as_bytes());
            let is_ours = is_slave(major)
                && leader != 0
                && (self.all.contains_key(&index) || graph.container.find(&path)?.is_some());
            if !is_ours {
                self.strange.push((at, (major, index)));
                continue;
            }
            with.push(at);
            let ends: &mut Ends = self.all.entry(index).or_default();
            ends.session.get_or_insert_with(|| Session {
                leader,
                foreground: ids.get(&stat.foreground).copied(),
                without: Vec::new(),
            });
        }
        for session in self.all.values_mut().filter_map(|ends| ends.session.as_mut()) {
            let members = graph.members.iter().enumerate();
            let inside =
                members.filter(|(at, member)| member.session == session.leader && !with.contains(at));
            session.without = inside.map(|(_, member)| member.pid).collect();
        }
        Ok(())
    }

    /// In a container without a devpts, no controlling terminal is its own.
    pub(super) fn strange(&mut self, graph: &Graph) {
        self.strange = controlled(graph).map(|(at, device, _)| (at, device)).collect();
    }
}

impl Files {
    /// The terminal that the session of `leader` is to have.
    fn controlled_by(&self, leader: i32) -> Option<usize> {
        let leads = |terminal: &Terminal| terminal.session.as_ref().is_some_and(|s| s.leader == leader);
        self.terminals.iter().position(leads)
    }

    /// Gives the session that `leader` has just begun its terminal.
    pub fn begin_session(&self, made: &Made, leader: i32, program: &mut Program) {
        if let Some(terminal) = self.controlled_by(leader) {
            let args = [made.slave(terminal).into(), libc::TIOCSCTTY.into(), 0.into()];
            let what = format!("make {} the controlling terminal", self.terminals[terminal].path);
            program.call(what, libc::SYS_ioctl, &args);
        }
    }

    /// The same for the job's first process, which may have the container's console already (`has`). What it has been
    /// told on the way is forgotten.
    pub fn begin_first_session(&self, made: &Made, leader: i32, has: bool, program: &mut Program) {
        let wanted = self.controlled_by(leader);
        let outside = |at: usize| self.terminals[at].master == super::Master::Outside;
        if has && !wanted.is_some_and(outside) {
            // Any terminal will do to name the console: it is descriptor 0 still.
            let args = [0.into(), libc::TIOCNOTTY.into(), 0.into()];
            program.call("let go of the console", libc::SYS_ioctl, &args);
        }
        if wanted.is_some_and(|at| !has || !outside(at)) {
            self.begin_session(made, leader, program);
        }
        // An action that ignores a signal discards those that wait.
        let ignore = program.put(&Action { handler: Hex(1), ..Action::default() }.to_bytes());
        let default = program.put(&Action::default().to_bytes());
        for signal in [libc::SIGWINCH, libc::SIGHUP, libc::SIGCONT] {
            for action in [ignore, default] {
                let args = [signal.into(), action.into(), 0.into(), 8.into()];
                program.call("forget what a terminal has told", libc::SYS_rt_sigaction, &args);
            }
        }
    }

    /// What is to be done when all sessions and groups are there, and by whom.
    pub fn settle_sessions(&self, made: &Made) -> Vec<(i32, Program)> {
        let mut all = Vec::new();
        for (at, terminal) in self.terminals.iter().enumerate() {
            let Some(session) = &terminal.session else { continue };
            let slave = made.slave(at);
            for &pid in &session.without {
                let mut program = Program::new();
                let args = [slave.into(), libc::TIOCNOTTY.into(), 0.into()];
                program.call("let go of the controlling terminal", libc::SYS_ioctl, &args);
                all.push((pid, program));
            }
            if let Some(group) = session.foreground {
                let mut program = Program::new();
                let group = program.put(&group.to_ne_bytes());
                let args = [slave.into(), libc::TIOCSPGRP.into(), group.into()];
                let what = format!("set the foreground group of {}", terminal.path);
                program.call(what, libc::SYS_ioctl, &args);
                all.push((session.leader, program));
            }
        }
        all
    }
}
