//! Terminals in the first process of a restarted job.
//!
//! The kernel gives each new terminal the lowest free index of its devpts. So they are made in the order of their
//! indices, others that fill the gaps among them, and those are closed again.

use super::super::container;
use super::super::making::{Making, OPEN};
use super::super::{Files, Object};
use super::state::Slave;
use super::{End, Master, Terminal, TerminalUse, check};
use crate::sys::tty;
use crate::{Doing, Failure};
use nix::errno::Errno;
use std::os::fd::RawFd;

/// A terminal in the making.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Numbers {
    /// The number of its master, of the job's or one for the moment; -1 for the console.
    pub master: RawFd,
    /// A number for its slave, until all processes have their own descriptors; -1 when nobody has opened it.
    pub slave: RawFd,
}

impl Files {
    /// The numbers that [`Files::make_terminals`] needs.
    pub(in super::super) fn terminal_numbers(&self) -> usize {
        let own = self.terminals.iter().filter(|t| t.master != Master::Outside).map(|t| t.index);
        2 * self.terminals.len() + own.max().map_or(0, |highest| highest as usize + 1)
    }

    pub(super) fn ends_of(&self, terminal: usize) -> impl Iterator<Item = (u32, &TerminalUse, u32)> {
        (0..).zip(&self.descriptions).filter_map(move |(id, description)| match &description.object {
            Object::Terminal(of) if of.terminal as usize == terminal => Some((id, of, description.flags)),
            _ => None,
        })
    }

    /// Makes all terminals, and all descriptions of them that can be made yet.
    pub(in super::super) fn make_terminals(&self, making: &mut Making<'_>) -> Result<(), Failure> {
        let Some(first) = self.terminals.first() else { return Ok(()) };
        let point = container::parent(&first.path);
        let mut taken = check::present(making.root(0), point)?.unwrap_or_default();
        let multiplexer = container::join(point, b"ptmx");
        let nowhere = Numbers { master: -1, slave: -1 };
        making.terminals = vec![nowhere; self.terminals.len()];
        let mut sorted: Vec<(usize, &Terminal)> = self.terminals.iter().enumerate().collect();
        sorted.sort_by_key(|(_, terminal)| terminal.index);
        let mut passing = Vec::new();
        for (at, terminal) in sorted {
            let slave = making.number();
            if terminal.master == Master::Outside {
                making.copy(0, slave);
                making.terminals[at].slave = slave;
                continue;
            }
            while let Some(lower) = (0..terminal.index).find(|index| !taken.contains(index)) {
                let filler = making.number();
                making.open(&multiplexer, libc::O_RDWR as u32, filler);
                passing.push(filler);
                taken.insert(lower);
            }
            if !taken.insert(terminal.index) {
                return Err(Failure::new(format!("make terminal {}", terminal.path), Errno::EEXIST));
            }
            let own = self.ends_of(at).find(|(_, of, _)| of.end == End::Master);
            let (master, path, flags) = match own {
                Some((id, of, flags)) => (making.at(id), of.path.to_vec(), flags),
                None => (making.number(), multiplexer.clone(), libc::O_RDWR as u32),
            };
            if terminal.master == Master::Nobody {
                passing.push(master);
            }
            making.open(&path, flags & OPEN, master);
            let unlock = making.program.put(&0_i32.to_ne_bytes());
            let args = [master.into(), libc::TIOCSPTLCK.into(), unlock.into()];
            making.program.call("unlock a terminal", libc::SYS_ioctl, &args);
            making.terminals[at].master = master;
            if terminal.state.as_ref().is_none_or(|state| state.slave != Slave::Unopened) {
                let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
                let args = [master.into(), libc::TIOCGPTPEER.into(), flags.into()];
                let what = format!("open the slave of {}", terminal.path);
                let opened = making.program.call(what, libc::SYS_ioctl, &args);
                making.put_at(opened.into(), slave);
                making.terminals[at].slave = slave;
            }
            making.run_if_large()?;
        }
        making.run()?;
        for (at, terminal) in self.terminals.iter().enumerate() {
            terminal.check_index(making.terminals[at], making)?;
            terminal.give_to_owner(making.terminals[at], making);
            for (id, of, flags) in self.ends_of(at).filter(|(_, of, _)| of.end != End::Master) {
                if making.is_late(id) {
                    continue;
                }
                let to = making.at(id);
                if of.end == End::Slave && of.path != terminal.path {
                    making.go(self.description(id).map_or(0, |description| description.namespace));
                    making.open(&of.path, flags & OPEN, to);
                    making.go(0);
                } else if terminal.master == Master::Outside {
                    // Here it may have another index.
                    making.reopen(0, flags, to);
                } else {
                    making.open(&terminal.path, flags & OPEN, to);
                }
            }
            making.run_if_large()?;
        }
        for fd in passing {
            making.program.call("close a terminal", libc::SYS_close, &[fd.into()]);
        }
        making.run()
    }

    /// Gives the terminals their state, by descriptors of ckrun's own.
    pub(in super::super) fn settle_terminals(&self, making: &Making<'_>) -> Result<(), Failure> {
        for (terminal, numbers) in self.terminals.iter().zip(&making.terminals) {
            let Some(state) = &terminal.state else { continue };
            let take = |fd: RawFd| (fd >= 0).then(|| making.worker.pidfd_getfd(fd)).transpose();
            let (master, slave) = (take(numbers.master)?, take(numbers.slave)?);
            let what = || format!("set up terminal {}", terminal.path);
            state.put(master.as_ref(), slave.as_ref()).doing(what)?;
            state.close_off(master.as_ref(), slave.as_ref()).doing(what)?;
        }
        Ok(())
    }
}

impl Terminal {
    /// The kernel has given it the wanted index.
    fn check_index(&self, numbers: Numbers, making: &Making<'_>) -> Result<(), Failure> {
        if self.master == Master::Outside {
            return Ok(());
        }
        let what = || format!("make terminal {}", self.path);
        let index = tty::index(making.worker.pidfd_getfd(numbers.master)?).doing(what)?;
        if index == self.index { Ok(()) } else { Err(Failure::new(what(), Errno::EEXIST)) }
    }

    fn give_to_owner(&self, numbers: Numbers, making: &mut Making<'_>) {
        let Some(state) = &self.state else { return };
        let what = || format!("give {} to its owner", self.path);
        let (user, group) = state.owner;
        let mode = state.mode & 0o7777;
        if numbers.slave >= 0 {
            let slave = numbers.slave;
            making.program.call(what(), libc::SYS_fchown, &[slave.into(), user.into(), group.into()]);
            making.program.call(what(), libc::SYS_fchmod, &[slave.into(), mode.into()]);
        } else {
            let path = making.program.put_cstr(&self.path);
            making.program.call(what(), libc::SYS_chown, &[path.into(), user.into(), group.into()]);
            making.program.call(what(), libc::SYS_chmod, &[path.into(), mode.into()]);
        }
    }
}
