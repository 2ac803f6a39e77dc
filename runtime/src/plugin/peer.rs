//! One plugin: its process and its socket, the event that is under way, its calls.

use super::attach::{Bound, Reply};
use super::calls::{Calls, allowed};
use super::failed::{Failed, Why};
use super::manifest::Manifest;
use super::start::{Confined, how, start};
use crate::error::Result;
use ckrun_plugin::call::{Answer, Call};
use ckrun_plugin::event::{Cancel, Log, duration};
use ckrun_plugin::message::{Id, Message};
use ckrun_plugin::occasion::{Occasion, Params, Welcome};
use ckrun_plugin::wire::{Broken, Filled, Incoming, LINE, Wire};
use ckrun_plugin::{After, Code, Event, Fault, Job};
use nix::poll::PollFlags;
use serde_json::{Value, json};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Answers to calls that a plugin has not read: beyond this it is not listened to until it has.
const UNREAD: usize = 2 * LINE;

/// How long a process may go on after it has closed its socket, before its end is not waited for.
const DYING: Duration = Duration::from_millis(500);

/// How an event ended.
pub type Outcome = Result<Reply, Failed>;

/// An event that has not been answered.
#[derive(Debug)]
struct UnderWay {
    id: u64,
    event: Event,
    after: Option<After>,
    since: Instant,
    limit: Duration,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    Answered,
    /// The answer is still to come, and will be ignored.
    Cancelled,
}

/// A plugin of a job. When this is dropped, its process is killed.
#[derive(Debug)]
pub struct Peer {
    /// How it was asked for.
    pub manifest: Manifest,
    /// Its answer to `hello`.
    pub welcome: Welcome,
    /// What it has bound, as far as its answers say.
    pub bindings: Vec<Bound>,
    process: Option<Confined>,
    wire: Option<Wire>,
    /// The requests that were made, in their order: the first has the id 1.
    requests: Vec<(Event, Fate)>,
    under_way: Option<UnderWay>,
    outcome: Option<Outcome>,
    barrier: Option<(Id, String)>,
    last: Option<(Event, Duration)>,
    gone: Option<String>,
}

impl Peer {
    /// Starts the process; nothing has been said yet. See [`start`] for `log` and the errors.
    pub fn start(manifest: Manifest, log: BorrowedFd<'_>) -> Result<Peer> {
        let (process, socket) = start(&manifest, log)?;
        Ok(Peer {
            process: Some(process),
            wire: Some(Wire::new(socket)),
            gone: None,
            ..Peer::absent(manifest, String::new())
        })
    }

    /// One that has no process, and why.
    pub fn absent(manifest: Manifest, why: String) -> Peer {
        Peer {
            manifest,
            welcome: Welcome::default(),
            bindings: Vec::new(),
            process: None,
            wire: None,
            requests: Vec::new(),
            under_way: None,
            outcome: None,
            barrier: None,
            last: None,
            gone: Some(why),
        }
    }

    /// Its name in the job.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// Its process.
    pub fn process(&self) -> Option<&Confined> {
        self.process.as_ref()
    }

    /// Why it can't be used any more.
    pub fn gone(&self) -> Option<&str> {
        self.gone.as_deref()
    }

    /// Whether it wants to hear of an event.
    pub fn wants(&self, event: Event) -> bool {
        event == Event::Hello || self.welcome.events.as_ref().is_none_or(|events| events.contains(&event))
    }

    /// How long an event may take.
    pub fn limit(&self, event: Event) -> Duration {
        let asked = self.manifest.deadlines.get(&event).or_else(|| self.welcome.deadlines.get(&event));
        duration(asked.copied().unwrap_or_else(|| event.deadline()))
    }

    /// Sends an event. Its [`Peer::outcome`] comes later, or at once if it can't be sent.
    pub fn ask(&mut self, job: &Job, occasion: Occasion, fds: Vec<OwnedFd>) {
        let event = occasion.event();
        let limit = self.limit(event);
        let after = match occasion {
            Occasion::Running(going) | Occasion::Resume(going) => Some(going.after),
            _ => None,
        };
        let params = Params { deadline: limit.as_secs_f64(), job: job.clone(), occasion }.value();
        self.request(event, params, after, fds);
    }

    /// Sends an event with params of the caller's making.
    pub fn request(&mut self, event: Event, params: Value, after: Option<After>, fds: Vec<OwnedFd>) {
        self.requests.push((event, Fate::Open));
        let id = self.requests.len() as u64;
        let (since, limit) = (Instant::now(), self.limit(event));
        self.outcome = None;
        self.under_way = Some(UnderWay { id, event, after, since, limit });
        if let Some(why) = &self.gone {
            let why = Why::Gone(why.clone());
            return self.conclude(Err(why));
        }
        let message =
            Message::Request { id: Id::Number(id), method: event.name().into(), params, fds: fds.len() };
        self.send(&message, fds);
    }

    /// Sends a request that is no event of the protocol, or not as the protocol says, and counts it as `event`.
    pub fn request_raw(&mut self, event: Event, method: &str, params: Value) {
        self.requests.push((event, Fate::Open));
        let id = self.requests.len() as u64;
        self.outcome = None;
        self.under_way =
            Some(UnderWay { id, event, after: None, since: Instant::now(), limit: self.limit(event) });
        self.send(
            &Message::Request { id: Id::Number(id), method: method.into(), params, fds: 0 },
            Vec::new(),
        );
    }

    /// The event that has not been answered.
    pub fn event(&self) -> Option<Event> {
        self.under_way.as_ref().map(|it| it.event)
    }

    /// When the event under way is too late.
    pub fn due(&self) -> Option<Instant> {
        self.under_way.as_ref().map(|it| it.since + it.limit)
    }

    /// How the last event ended; once.
    pub fn outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    /// The last event that has ended, and how long it took.
    pub fn last(&self) -> Option<(Event, Duration)> {
        self.last
    }

    /// The barrier at which it waits.
    pub fn barrier(&self) -> Option<&str> {
        self.barrier.as_ref().map(|(_, name)| name.as_str())
    }

    /// Lets it go on from its barrier, or says why it can't.
    pub fn release(&mut self, outcome: Result<(), Fault>) {
        if let Some((id, _)) = self.barrier.take() {
            self.reply(id, outcome.map(|()| Answer::Nothing {}));
        }
    }

    /// Its descriptors, and what to wait for. One whose answers to calls have not been read, or who waits at a barrier, is
    /// not listened to.
    pub fn polled(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let (Some(wire), Some(process)) = (&self.wire, &self.process) else { return Vec::new() };
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLIN, self.listens());
        wanted.set(PollFlags::POLLOUT, wire.unsent() > 0);
        vec![(wire.as_fd(), wanted), (process.as_fd(), PollFlags::POLLIN)]
    }

    /// Whether it is listened to: it waits at no barrier, and has read what it was answered.
    fn listens(&self) -> bool {
        self.barrier.is_none() && self.wire.as_ref().is_some_and(|wire| wire.unsent() < UNREAD)
    }

    /// Reads what has come, without waiting, and answers the calls in it. `found` is what poll(2) said of [`Peer::polled`].
    pub fn attend(&mut self, found: &[PollFlags], calls: &mut dyn Calls) {
        let has = |index: usize, flags| found.get(index).is_some_and(|found| found.intersects(flags));
        if has(0, PollFlags::POLLOUT) {
            self.flush();
            self.take(calls);
        }
        if has(0, PollFlags::POLLIN) {
            self.read(calls);
        }
        let over = has(1, PollFlags::POLLIN);
        // Whatever it said before its end is read first.
        while over && self.listens() {
            if !self.read(calls) {
                self.fail(Why::Broken(Broken::Ended));
            }
        }
        if !self.listens() && (over || has(0, PollFlags::POLLHUP | PollFlags::POLLERR)) {
            self.fail(Why::Broken(Broken::Ended));
        }
    }

    /// Reads once, and takes all that is whole. The answer says whether there was anything.
    fn read(&mut self, calls: &mut dyn Calls) -> bool {
        self.take(calls);
        let listens = self.listens();
        let Some(wire) = self.wire.as_mut().filter(|_| listens) else { return true };
        match wire.fill(false) {
            Ok(Filled::Nothing) => false,
            Ok(Filled::Bytes) => {
                self.take(calls);
                true
            }
            Err(broken) => {
                self.fail(broken.into());
                true
            }
        }
    }

    /// Takes the messages that have come, up to a barrier: answers come in the order of the calls.
    pub fn take(&mut self, calls: &mut dyn Calls) {
        while self.listens()
            && let Some(wire) = &mut self.wire
        {
            match wire.take() {
                Ok(None) => return,
                Ok(Some(incoming)) => self.hear(incoming, calls),
                Err(broken) => self.fail(broken.into()),
            }
        }
    }

    fn hear(&mut self, incoming: Incoming, calls: &mut dyn Calls) {
        match incoming.message {
            Message::Request { id, method, params, .. } => match Call::parse(&method, params) {
                Ok(Call::Barrier(barrier)) if self.under_way.is_some() => {
                    self.barrier = Some((id, barrier.name))
                }
                Ok(Call::Barrier(_)) => {
                    let fault = Fault::new(Code::State, "barrier: no event is under way");
                    self.reply(id, Err(fault));
                }
                Ok(call) => {
                    let (during, after) = (self.event(), self.under_way.as_ref().and_then(|it| it.after));
                    let answer = allowed(&call, during, after, &self.manifest.grants)
                        .and_then(|()| calls.call(&self.manifest.name, during, call));
                    self.reply(id, answer);
                }
                Err(fault) => self.reply(id, Err(fault)),
            },
            Message::Notification { method, params } if method == "log" => {
                // One that is no log line of this version is ignored like any other notification.
                if let Ok(log) = serde_json::from_value::<Log>(params) {
                    calls.log(&self.manifest.name, log.level, &log.message);
                }
            }
            Message::Notification { .. } => {}
            Message::Answer { id, outcome, .. } => self.answered(&id, outcome, incoming.fds),
        }
    }

    fn answered(&mut self, id: &Id, outcome: Result<Value, Fault>, fds: Vec<OwnedFd>) {
        let index = match id {
            Id::Number(number) => number.checked_sub(1).and_then(|n| usize::try_from(n).ok()),
            Id::Text(_) => None,
        };
        match index.and_then(|index| self.requests.get_mut(index)) {
            None => self.fail(Why::NeverAsked(id.to_string())),
            Some((event, Fate::Answered)) => {
                let event = *event;
                self.fail(Why::Twice(id.to_string(), event));
            }
            Some((_, fate @ Fate::Cancelled)) => *fate = Fate::Answered,
            Some((_, Fate::Open)) => {
                let outcome = outcome.map(|result| Reply { result, fds, took: Duration::ZERO });
                self.conclude(outcome.map_err(Why::Refused));
            }
        }
    }

    /// The event under way is over.
    fn conclude(&mut self, outcome: Result<Reply, Why>) {
        let Some(it) = self.under_way.take() else { return };
        if let Some((_, fate)) =
            usize::try_from(it.id - 1).ok().and_then(|index| self.requests.get_mut(index))
        {
            *fate = Fate::Answered;
        }
        self.barrier = None;
        let (plugin, after) = (self.manifest.name.clone(), it.since.elapsed());
        self.last = Some((it.event, after));
        self.outcome = Some(match outcome {
            Ok(reply) => Ok(Reply { took: after, ..reply }),
            Err(why) => Err(Failed { plugin, event: Some(it.event), after, why }),
        });
    }

    /// The deadline has passed: it is told so, and its answer will be ignored.
    pub fn cancel(&mut self) {
        let Some((event, limit, id)) = self.under_way.as_ref().map(|it| (it.event, it.limit, it.id)) else {
            return;
        };
        // Its calls get their answers in order, or none.
        self.release(Err(Fault::new(Code::State, format!("barrier: the deadline of {event} has passed"))));
        self.conclude(Err(Why::Late(limit)));
        if let Some((_, fate)) = usize::try_from(id - 1).ok().and_then(|index| self.requests.get_mut(index)) {
            *fate = Fate::Cancelled;
        }
        let params = json!(Cancel { event });
        self.send(&Message::Notification { method: "cancel".into(), params }, Vec::new());
        if matches!(event, Event::Hello | Event::Resume | Event::Running | Event::Exit) {
            self.fail(Why::Late(limit));
        }
    }

    /// It can't be understood any more, or has ended: what is left of it is killed.
    fn fail(&mut self, why: Why) {
        if self.gone.is_some() {
            return self.conclude(Err(why));
        }
        let why = match why {
            Why::Broken(broken @ (Broken::Ended | Broken::Torn)) => {
                // The kernel closes the files of a process just before its end.
                match self.process.as_mut().map(|process| (process.ends_within(DYING), process)) {
                    Some((Ok(true), process)) => Why::Ended(how(process.end())),
                    _ => Why::Broken(broken),
                }
            }
            other => other,
        };
        self.wire = None;
        if let Some(process) = &mut self.process {
            process.end();
        }
        self.gone = Some(why.to_string());
        self.conclude(Err(why));
    }

    /// It is of no use any more, and is killed.
    pub fn give_up(&mut self, why: String) {
        self.wire = None;
        if let Some(mut process) = self.process.take() {
            process.end();
        }
        self.gone.get_or_insert(why);
    }

    /// Closes the socket and waits for the end of the process, to `until`; then it is killed.
    ///
    /// # Errors
    /// [`Why::Lingers`].
    pub fn part(&mut self, since: Instant, limit: Duration) -> Result<(), Failed> {
        self.wire = None;
        if self.gone.is_some() {
            return Ok(());
        }
        let Some(process) = &mut self.process else { return Ok(()) };
        let left = (since + limit).saturating_duration_since(Instant::now());
        let ended = process.ends_within(left);
        self.gone = Some(format!("it ended ({})", how(process.end())));
        if let Ok(true) = ended {
            return Ok(());
        }
        let why = Why::Lingers(limit);
        Err(Failed {
            plugin: self.manifest.name.clone(),
            event: Some(Event::Exit),
            after: since.elapsed(),
            why,
        })
    }

    fn reply(&mut self, id: Id, outcome: Result<Answer, Fault>) {
        let outcome = outcome.map(|answer| answer.value());
        let message = Message::Answer { id: id.clone(), outcome, fds: 0 };
        let queued = self.wire.as_mut().map(|wire| wire.queue(&message, Vec::new()));
        if let Some(Err(_)) = queued {
            let fault = Fault::new(Code::Limit, format!("the answer would have more than {LINE} bytes"));
            return self.send(&Message::Answer { id, outcome: Err(fault), fds: 0 }, Vec::new());
        }
        self.flush();
    }

    fn send(&mut self, message: &Message, fds: Vec<OwnedFd>) {
        match self.wire.as_mut().map(|wire| wire.queue(message, fds)) {
            Some(Err(_)) => {
                self.conclude(Err(Why::Answer(format!("the event would have more than {LINE} bytes"))))
            }
            _ => self.flush(),
        }
    }

    fn flush(&mut self) {
        let flushed = self.wire.as_mut().map(|wire| wire.flush(false));
        match flushed {
            // What it said before it closed its end is read first; reading finds the end too.
            None | Some(Ok(_) | Err(Broken::Ended)) => {}
            Some(Err(broken)) => self.fail(broken.into()),
        }
    }
}
