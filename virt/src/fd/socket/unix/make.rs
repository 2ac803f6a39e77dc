//! The making of all sockets in the first process.

use super::agent::Agents;
use super::name::{Address, Yard, await_free};
use super::plan::{Pair, Plan};
use super::{Class, Credentials, Place, State, all, unix_of};
use crate::fd::Files;
use crate::fd::making::Making;
use crate::image::Bytes;
use crate::program::Program;
use crate::{Error, Failure};
use std::collections::BTreeMap;
use std::os::fd::RawFd;

/// A socket that listens for a moment: its type, its name, its file, and who has called listen(2).
type Momentary = (i32, Vec<u8>, Option<Bytes>, Option<Credentials>);

/// What is to be done when all descriptions are there.
#[derive(Debug)]
pub(in crate::fd::socket) struct Unmade {
    pub(super) yard: Yard,
    pub(super) agents: Agents,
    listeners: BTreeMap<Momentary, (RawFd, Address)>,
    /// Where each socket with a name can be reached.
    pub(super) addresses: BTreeMap<u32, Address>,
    /// The other ends of those whose other ends are to go.
    pub(super) doomed: BTreeMap<u32, RawFd>,
}

impl Unmade {
    /// Makes all sockets; None if there are none.
    pub fn make(files: &Files, making: &mut Making<'_>) -> Result<Option<Unmade>, Error> {
        if all(files).next().is_none() {
            return Ok(None);
        }
        let plan = Plan::of(files)?;
        let names = all(files).filter_map(|(_, class, unix)| Some((class.kind, &unix.name.as_ref()?[..])));
        await_free(making.worker.host(), names)?;
        let mut unmade = Unmade {
            yard: Yard::new(making)?,
            agents: Agents::default(),
            listeners: BTreeMap::new(),
            addresses: BTreeMap::new(),
            doomed: BTreeMap::new(),
        };
        // A socket that listens for a moment has to be gone before its name is given to another one.
        for pair in &plan.pairs {
            unmade.pair(files, *pair, false, making)?;
        }
        for (fd, _) in std::mem::take(&mut unmade.listeners).into_values() {
            making.program.call("close a descriptor", libc::SYS_close, &[fd.into()]);
        }
        for &id in &plan.single {
            let Some((class, _)) = unix_of(files, id) else { continue };
            socket(&mut making.program, *class, making.base.saturating_add_unsigned(id));
            unmade.bind(files, id, making)?;
        }
        for (id, _, unix) in all(files) {
            if let State::Listening { backlog, by, .. } = &unix.state {
                let (fd, backlog) = (making.at(id), *backlog);
                unmade.agents.act(making, Some(by), |program| listen(program, fd, backlog))?;
            }
        }
        for pair in &plan.pairs {
            unmade.pair(files, *pair, true, making)?;
        }
        for (id, _, unix) in all(files) {
            let State::Listening { waiting, .. } = &unix.state else { continue };
            let Some(address) = unmade.addresses.get(&id).cloned() else { continue };
            for (client, by) in waiting {
                let fd = making.at(*client);
                let yard = &unmade.yard;
                unmade.agents.act(making, Some(by), |program| yard.connect(program, fd, &address))?;
            }
        }
        making.run()?;
        Ok(Some(unmade))
    }

    fn bind(&mut self, files: &Files, id: u32, making: &mut Making<'_>) -> Result<(), Failure> {
        let Some((_, unix)) = unix_of(files, id) else { return Ok(()) };
        if let Some(name) = &unix.name {
            let address = self.yard.bind(making, making.at(id), name, unix.file.as_ref());
            self.addresses.insert(id, address);
        }
        making.run_if_large()
    }

    /// Makes a pair, now or when the sockets of the job listen.
    fn pair(
        &mut self,
        files: &Files,
        pair: Pair<'_>,
        late: bool,
        making: &mut Making<'_>,
    ) -> Result<(), Failure> {
        match pair {
            Pair::Twins { one, other, name, by } if !late => {
                let Some((class, _)) = unix_of(files, one) else { return Ok(()) };
                let second = self.other(one, other, making);
                let (first, class) = (making.at(one), *class);
                let pose = by.cloned();
                self.agents.act(making, pose.as_ref(), |program| twins(program, class, first, second))?;
                self.bind(files, one, making)?;
                match (other, name) {
                    (Some(other), _) => {
                        self.bind(files, other, making)?;
                        self.turn_away(files, one, other, making)?;
                    }
                    (None, Some(name)) => {
                        self.yard.bind(making, second, name, None);
                    }
                    (None, None) => {}
                }
                Ok(())
            }
            Pair::Accepted { client, server, of, name, listener, listened, connected }
                if late == listener.is_some() =>
            {
                let Some((class, _)) = unix_of(files, of) else { return Ok(()) };
                let to = match client {
                    Some(client) => {
                        let to = making.at(client);
                        socket(&mut making.program, *class, to);
                        self.bind(files, client, making)?;
                        to
                    }
                    None => {
                        let to = self.other(of, None, making);
                        socket(&mut making.program, *class, to);
                        to
                    }
                };
                let (at, address) = match listener.and_then(|id| Some((id, self.addresses.get(&id)?))) {
                    Some((id, address)) => (making.at(id), address.clone()),
                    None => {
                        let file =
                            server.and_then(|id| unix_of(files, id)).and_then(|(_, u)| u.file.as_ref());
                        self.listener(making, *class, name, file, listened)?
                    }
                };
                let yard = &self.yard;
                self.agents.act(making, connected, |program| yard.connect(program, to, &address))?;
                let accepted = match server {
                    Some(server) => making.at(server),
                    None => self.other(of, None, making),
                };
                let args = [at.into(), 0.into(), 0.into(), libc::SOCK_CLOEXEC.into()];
                let fd = making.program.call("accept a connection", libc::SYS_accept4, &args);
                making.put_at(fd.into(), accepted);
                making.run_if_large()
            }
            _ => Ok(()),
        }
    }

    /// A socket that listens for a moment, in place of one that is gone; and how to reach it. All that were accepted at one
    /// have its name and its file.
    fn listener(
        &mut self,
        making: &mut Making<'_>,
        class: Class,
        name: &[u8],
        file: Option<&Place>,
        listened: Option<&Credentials>,
    ) -> Result<(RawFd, Address), Failure> {
        let key = (class.kind, name.to_vec(), file.map(|file| file.path.clone()), listened.cloned());
        if let Some((fd, address)) = self.listeners.get(&key) {
            return Ok((*fd, address.clone()));
        }
        let fd = making.number();
        socket(&mut making.program, class, fd);
        let address = self.yard.bind(making, fd, name, file);
        self.agents.act(making, listened, |program| listen(program, fd, 1))?;
        self.listeners.insert(key, (fd, address.clone()));
        Ok((fd, address))
    }

    /// The number of the other end of `one`, if that is to go a new one.
    fn other(&mut self, one: u32, other: Option<u32>, making: &mut Making<'_>) -> RawFd {
        match other {
            Some(other) => making.at(other),
            None => *self.doomed.entry(one).or_insert_with(|| making.number()),
        }
    }

    /// Of two datagram sockets that were a pair, one may have turned to another one since, or to nobody.
    fn turn_away(
        &mut self,
        files: &Files,
        one: u32,
        other: u32,
        making: &mut Making<'_>,
    ) -> Result<(), Failure> {
        let Some((class, unix)) = unix_of(files, other) else { return Ok(()) };
        let still = matches!(unix.state, State::Connected { to, .. } if to == one);
        if class.kind == libc::SOCK_DGRAM && !still {
            let nobody = making.program.put(&(libc::AF_UNSPEC as u16).to_ne_bytes());
            let args = [making.at(other).into(), nobody.into(), 2.into()];
            making.program.call("disconnect a socket", libc::SYS_connect, &args);
        }
        making.run_if_large()
    }
}

/// A new socket as descriptor `to`.
pub(super) fn socket(program: &mut Program, class: Class, to: RawFd) {
    let kind = class.kind | libc::SOCK_CLOEXEC;
    let args = [class.domain.into(), kind.into(), class.protocol.into()];
    let made = program.call(format!("make a {class}"), libc::SYS_socket, &args);
    put_at(program, made.into(), to);
}

fn twins(program: &mut Program, class: Class, one: RawFd, other: RawFd) {
    let ends = program.room(8);
    let kind = class.kind | libc::SOCK_CLOEXEC;
    let args = [class.domain.into(), kind.into(), class.protocol.into(), ends.into()];
    program.call(format!("make a pair of {class}s"), libc::SYS_socketpair, &args);
    put_at(program, ends.word(0), one);
    put_at(program, ends.word(4), other);
}

fn put_at(program: &mut Program, from: crate::program::Arg, to: RawFd) {
    let flags = libc::O_CLOEXEC;
    program.call("move a descriptor", libc::SYS_dup3, &[from, to.into(), flags.into()]);
    program.call("close a descriptor", libc::SYS_close, &[from]);
}

fn listen(program: &mut Program, fd: RawFd, backlog: u32) {
    let what = "listen at a unix socket";
    program.call(what, libc::SYS_listen, &[fd.into(), backlog.into()]);
}
