//! One event for several plugins: each hears of it when the one before has answered or waits at a barrier, and all that
//! they ask meanwhile is answered.

use super::attach::Reply;
use super::calls::Calls;
use super::peer::{Outcome, Peer};
use ckrun_plugin::occasion::Occasion;
use ckrun_plugin::{Code, Event, Fault, Job};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// What one plugin is sent.
#[derive(Debug)]
pub struct Asked {
    /// To whom: its place among the plugins of the job.
    pub peer: usize,
    /// The event.
    pub occasion: Occasion,
    /// The descriptors that go with it.
    pub fds: Vec<OwnedFd>,
}

/// One event for several plugins.
#[derive(Debug)]
pub struct Round<'a> {
    /// All plugins of the job: those that don't take part may make calls too.
    pub peers: &'a mut [Peer],
    /// The job, for the event.
    pub job: &'a Job,
    /// Whether those whose turn has not come are left out when one fails.
    pub stops: bool,
}

/// How it went with one plugin.
#[derive(Debug)]
pub struct Turn {
    /// Which.
    pub peer: usize,
    /// The event.
    pub event: Event,
    /// Its answer, or why there is none.
    pub outcome: Outcome,
}

/// Where a plugin stands.
#[derive(Debug)]
struct Place {
    peer: usize,
    event: Event,
    /// None when its turn has come.
    ask: Option<Asked>,
    outcome: Option<Outcome>,
}

impl Place {
    fn is_busy(&self) -> bool {
        self.ask.is_none() && self.outcome.is_none()
    }
}

impl Round<'_> {
    /// Carries it out, in this order. The answer has those whose turn came; one that does not want the event has an empty
    /// answer.
    pub fn run(mut self, asked: Vec<Asked>, calls: &mut dyn Calls) -> Vec<Turn> {
        let place = |asked: Asked| Place {
            peer: asked.peer,
            event: asked.occasion.event(),
            ask: Some(asked),
            outcome: None,
        };
        let mut places: Vec<Place> = asked.into_iter().map(place).collect();
        while self.advance(&mut places, calls) {
            attend(self.peers, calls);
            self.collect(&mut places);
        }
        let turn =
            |place: Place| Some(Turn { peer: place.peer, event: place.event, outcome: place.outcome? });
        places.into_iter().filter_map(turn).collect()
    }

    /// Asks those whose turn has come and opens the barriers. The answer says whether anybody is to be waited for.
    fn advance(&mut self, places: &mut [Place], calls: &mut dyn Calls) -> bool {
        loop {
            let busy: Vec<usize> =
                places.iter().filter(|place| place.is_busy()).map(|place| place.peer).collect();
            if busy.iter().any(|peer| self.peers[*peer].barrier().is_none()) {
                return true;
            }
            let stopped = self.stops && places.iter().any(|place| matches!(place.outcome, Some(Err(_))));
            let next = places.iter_mut().find(|place| place.ask.is_some() && !stopped);
            if let Some((place, asked)) = next.and_then(|place| place.ask.take().map(|asked| (place, asked)))
            {
                let peer = &mut self.peers[place.peer];
                if peer.wants(place.event) {
                    peer.ask(self.job, asked.occasion, asked.fds);
                    place.outcome = peer.outcome();
                } else {
                    place.outcome = Some(Ok(Reply::default()));
                }
                continue;
            }
            if busy.is_empty() {
                return false;
            }
            let verdict = self.meet(places, &busy);
            for peer in busy {
                self.peers[peer].release(verdict.clone());
                self.peers[peer].take(calls);
            }
            self.collect(places);
        }
    }

    /// All who can come to a barrier have come, `busy`: whether these are all who take part, and at the same one.
    fn meet(&self, places: &[Place], busy: &[usize]) -> Result<(), Fault> {
        let away = places.iter().find(|p| self.peers[p.peer].wants(p.event) && !busy.contains(&p.peer));
        let mut names = busy.iter().filter_map(|peer| self.peers[*peer].barrier());
        let first = names.next().unwrap_or_default();
        let why = match (away, names.find(|other| *other != first)) {
            (None, None) => return Ok(()),
            (Some(place), _) => format!("plugin {} does not come", self.peers[place.peer].name()),
            (None, Some(other)) => format!("the plugins wait at {first:?} and at {other:?}"),
        };
        Err(Fault::new(Code::State, format!("barrier: {why}")))
    }

    fn collect(&mut self, places: &mut [Place]) {
        for place in places.iter_mut().filter(|place| place.is_busy()) {
            place.outcome = self.peers[place.peer].outcome();
        }
    }
}

/// Waits for the end of what one plugin was asked by itself.
///
/// # Errors
/// As that of an event.
pub fn settle(peers: &mut [Peer], peer: usize, calls: &mut dyn Calls) -> Outcome {
    loop {
        if let Some(outcome) = peers[peer].outcome() {
            return outcome;
        }
        // Alone, it does not wait for anybody.
        if peers[peer].barrier().is_some() {
            peers[peer].release(Ok(()));
            peers[peer].take(calls);
        } else {
            attend(peers, calls);
        }
    }
}

/// Waits until a plugin has something to say or a deadline has passed, and attends to it.
fn attend(peers: &mut [Peer], calls: &mut dyn Calls) {
    let due = peers.iter().filter_map(Peer::due).min();
    // One more millisecond, so that rounding down does not turn the last wait into a spin.
    let left = due.map(|due| due.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
    look(peers, left, calls);
    let now = Instant::now();
    for peer in peers.iter_mut().filter(|peer| peer.due().is_some_and(|due| due <= now)) {
        peer.cancel();
    }
}

/// Attends to what comes within `limit`; None waits for it.
pub(super) fn look(peers: &mut [Peer], limit: Option<Duration>, calls: &mut dyn Calls) {
    let counts: Vec<usize> = peers.iter().map(|peer| peer.polled().len()).collect();
    let found: Vec<PollFlags> = {
        let polled = peers.iter().flat_map(Peer::polled).chain(calls.polled());
        // The borrow ends with the poll.
        let mut fds: Vec<PollFd<'_>> = polled.map(|(fd, flags)| PollFd::new(fd, flags)).collect();
        let limit = limit.map_or(PollTimeout::NONE, |l| PollTimeout::try_from(l).unwrap_or(PollTimeout::MAX));
        match poll(&mut fds, limit) {
            // Nothing else than a signal can interrupt it; the caller comes again.
            Err(Errno::EINTR | Errno::EAGAIN) | Ok(0) => return,
            _ => fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect(),
        }
    };
    let mut rest = found.as_slice();
    for (peer, count) in peers.iter_mut().zip(counts) {
        let (own, others) = rest.split_at(count);
        peer.attend(own, calls);
        rest = others;
    }
    calls.attend(rest);
}
