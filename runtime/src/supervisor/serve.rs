//! The supervisor's loop: verbs, plugins, the job's end.

use super::desk::Desk;
use super::guest::Guest;
use super::keeper::{Kept, Shelf};
use super::launch;
use super::record::Record;
use super::request::{self, Request};
use super::story::Story;
use crate::error::Result;
use ckrun_plugin::message::Message;
use ckrun_plugin::wire::{Filled, Incoming, Wire};
use ckrun_plugin::{Code, Fault, Job};
use ckrun_virt::Doing;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockFlag, accept4};
use serde_json::Value;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Serves the container in `home` until its job is gone. `socket` leads to the verb that has started us, if one has.
///
/// # Errors
/// The kernel's.
pub fn serve(home: &Path, socket: Option<OwnedFd>, mut kept: Kept) -> Result<()> {
    launch::own(&kept.verbs)?;
    let job = Job { id: String::new(), generation: 0, host: String::new(), bundle: "/".into() };
    let record = Record { keeper: Some(kept.keeper), ..Record::new(job, Vec::new()) };
    let shelf = std::mem::replace(&mut kept.shelf, Shelf::new()?);
    let mut desk = Desk::new(home, record, kept.pending, shelf);
    desk.owner = socket.and_then(Guest::new);
    let mut story = Story::new(desk);
    if kept.again {
        story.take_over(&mut kept)?;
    } else if story.desk.owner.is_none() {
        return Ok(());
    }
    let mut service = Service { listener: kept.verbs, story, visitors: Vec::new() };
    while !service.story.is_over() {
        service.turn()?;
    }
    service.story.leave();
    Ok(())
}

struct Service {
    listener: OwnedFd,
    story: Story,
    /// Verbs that have connected and whose story has not begun.
    visitors: Vec<Guest>,
}

impl Service {
    fn turn(&mut self) -> Result<()> {
        self.wait()?;
        self.story.attend();
        let guests = self.story.desk.owner.iter_mut().chain(&mut self.visitors);
        // One that has gone is found out by the next look.
        guests.for_each(|guest| drop(guest.wire.flush(false)));
        self.accept();
        self.hear_owner();
        self.hear_visitors();
        let gone = self.story.desk.job.as_ref().map(|job| job.wait(std::time::Duration::ZERO));
        if self.story.awaits_end() && matches!(gone, Some(Ok(true))) {
            self.story.ended();
        }
        self.story.desk.save();
        Ok(())
    }

    /// Waits until there is something to do.
    fn wait(&self) -> Result<()> {
        let desk = &self.story.desk;
        let mut fds = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        let guests = desk.owner.iter().chain(&self.visitors);
        fds.extend(guests.map(|guest| PollFd::new(guest.as_fd(), guest.wanted())));
        if let Some(job) = desk.job.as_ref().filter(|_| self.story.awaits_end()) {
            fds.push(PollFd::new(job.as_fd(), PollFlags::POLLIN));
        }
        let plugins = self.story.company.iter().flat_map(|company| company.polled());
        fds.extend(
            plugins.chain(crate::plugin::Calls::polled(desk)).map(|(fd, flags)| PollFd::new(fd, flags)),
        );
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(()),
            ready => Ok(ready.map(drop).doing(|| "wait for plugins and verbs")?),
        }
    }

    fn accept(&mut self) {
        let mut ready = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut ready, PollTimeout::ZERO), Ok(1)) {
            return;
        }
        match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: a new descriptor, which nobody else owns.
            Ok(fd) => self.visitors.extend(Guest::new(unsafe { OwnedFd::from_raw_fd(fd) })),
            Err(e) => log::debug!("accept a verb: {e}"),
        }
    }

    /// The verb whose story is under way.
    fn hear_owner(&mut self) {
        loop {
            let Some(owner) = &mut self.story.desk.owner else { return };
            match next(&mut owner.wire) {
                Heard::Nothing => return,
                Heard::Said(incoming) => {
                    let answer = said(&mut self.story, incoming);
                    if let (Some((message, fds)), Some(owner)) = (answer, &mut self.story.desk.owner) {
                        owner.say(&message, fds);
                    }
                }
                Heard::Gone => {
                    if let Some(owner) = self.story.desk.owner.take() {
                        self.story.orphaned(&owner.process);
                    }
                    return;
                }
            }
        }
    }

    /// The others: the first who asks for something becomes the owner, unless there is one.
    fn hear_visitors(&mut self) {
        for mut guest in std::mem::take(&mut self.visitors) {
            let incoming = match next(&mut guest.wire) {
                Heard::Nothing => {
                    self.visitors.push(guest);
                    continue;
                }
                Heard::Gone => continue,
                Heard::Said(incoming) => incoming,
            };
            let ends = matches!(&incoming.message, Message::Request { method, .. } if method == "end");
            if self.story.desk.owner.is_some() && !ends {
                let refused = Fault::new(Code::State, "another ckrun is at work on this job");
                reply(&mut guest, incoming, Err(refused));
                self.visitors.push(guest);
            } else if self.story.desk.owner.is_some() {
                if let Some((message, fds)) = said(&mut self.story, incoming) {
                    guest.say(&message, fds);
                }
                self.visitors.push(guest);
            } else {
                self.story.desk.owner = Some(guest);
                let answer = said(&mut self.story, incoming);
                if let (Some((message, fds)), Some(owner)) = (answer, &mut self.story.desk.owner) {
                    owner.say(&message, fds);
                }
            }
        }
    }
}

enum Heard {
    Nothing,
    Said(Incoming),
    Gone,
}

fn next(wire: &mut Wire) -> Heard {
    loop {
        match wire.take() {
            Ok(Some(incoming)) => return Heard::Said(incoming),
            Ok(None) => {}
            Err(_) => return Heard::Gone,
        }
        match wire.fill(false) {
            Ok(Filled::Bytes) => {}
            Ok(Filled::Nothing) => return Heard::Nothing,
            Err(_) => return Heard::Gone,
        }
    }
}

/// Carries a request out: its answer.
fn said(story: &mut Story, incoming: Incoming) -> Option<(Message, Vec<OwnedFd>)> {
    let Incoming { message, fds } = incoming;
    let Message::Request { id, method, params, .. } = message else { return None };
    let answered = match Request::parse(&method, params) {
        Ok(request) => story.answer(request, fds).map_err(request::fault),
        Err(fault) => Err(fault),
    };
    let (outcome, fds): (Result<Value, Fault>, Vec<OwnedFd>) = match answered {
        Ok((value, fds)) => (Ok(value), fds),
        Err(fault) => (Err(fault), Vec::new()),
    };
    Some((Message::Answer { id, outcome, fds: fds.len() }, fds))
}

fn reply(guest: &mut Guest, incoming: Incoming, outcome: Result<Value, Fault>) {
    if let Message::Request { id, .. } = incoming.message {
        guest.say(&Message::Answer { id, outcome, fds: 0 }, Vec::new());
    }
}
