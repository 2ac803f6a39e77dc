//! All plugins of a job: in which order they hear of what happens to it, and what follows when one fails. Whole or nothing.

use super::attach::{Attached, Bound, Reply, rebound};
use super::calls::Calls;
use super::failed::{Failed, Why};
use super::manifest::Manifest;
use super::peer::Peer;
use super::round::{Asked, Round, Turn, look};
use crate::error::{Error, Result};
use ckrun_plugin::event::PROTOCOL;
use ckrun_plugin::occasion::{
    Committed, Exit, Going, Hello, Named, Occasion, Precheckpoint, Requirements, Saved, Welcome,
};
use ckrun_plugin::{After, Binding, Event, Job, Reason};
use nix::poll::PollFlags;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The plugins of a job, in the order in which they were given. When this is dropped, they are killed.
#[derive(Debug)]
pub struct Company {
    pub(super) job: Job,
    pub(super) peers: Vec<Peer>,
    /// Those whose turn came at the last `presuspend`, in the order given: they hear of a failure.
    pub(super) sent: Vec<usize>,
}

/// A folder of an image, for `precheckpoint`, `check` and `restart`.
#[derive(Debug)]
pub struct Folder {
    /// Its path.
    pub path: PathBuf,
    /// It itself, open; read-only but at `precheckpoint`.
    pub fd: OwnedFd,
}

/// A binding that replaces another of the same virtual name.
#[derive(Debug, Clone)]
pub struct Rebound {
    /// Whose it is.
    pub plugin: String,
    /// The new one.
    pub new: Bound,
}

/// What is given to `check` and `restart`.
#[derive(Debug)]
pub struct Kept {
    /// What the plugin saved.
    pub folder: Folder,
    /// What its answer to `precheckpoint` had.
    pub requirements: Map<String, Value>,
    /// The bindings at the checkpoint.
    pub bindings: Vec<Binding>,
}

impl Company {
    /// Starts the plugins of a job and says hello. `log` is where the output of the plugin of that name goes.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that is there twice; see [`Peer::start`]; [`Error::Plugin`] for the first that fails.
    pub fn start(
        job: Job,
        manifests: Vec<Manifest>,
        mut log: impl FnMut(&str) -> Result<OwnedFd>,
        calls: &mut dyn Calls,
    ) -> Result<Company> {
        let mut names = BTreeSet::new();
        if let Some(twice) = manifests.iter().find(|manifest| !names.insert(manifest.name.clone())) {
            return Err(Error::Usage(format!("plugin {:?} was given twice", twice.name)));
        }
        let start = |manifest: Manifest| {
            let log = log(&manifest.name)?;
            Peer::start(manifest, log.as_fd())
        };
        let peers = manifests.into_iter().map(start).collect::<Result<Vec<Peer>>>()?;
        for peer in &peers {
            if let Some(process) = peer.process() {
                calls.started(peer.name(), process.pid());
            }
        }
        let mut company = Company { job, peers, sent: Vec::new() };
        company.hello(calls)?;
        Ok(company)
    }

    /// The plugins.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// The plugins, for requests that are no event of a life.
    pub fn peers_mut(&mut self) -> &mut [Peer] {
        &mut self.peers
    }

    /// What to wait for between events; then [`Company::attend`].
    pub fn polled(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.peers.iter().flat_map(Peer::polled).collect()
    }

    /// Answers the calls that have come between events, without waiting. A plugin that has ended or broken the framing is
    /// killed; the next event that it wants says so.
    pub fn attend(&mut self, calls: &mut dyn Calls) {
        look(&mut self.peers, Some(Duration::ZERO), calls);
    }

    /// The job has been restarted.
    pub fn set_generation(&mut self, generation: u64) {
        self.job.generation = generation;
    }

    fn hello(&mut self, calls: &mut dyn Calls) -> Result<()> {
        let asked = self.each(|peer| Ok((hello(peer), None)))?;
        for turn in self.round(asked, true, calls) {
            let peer = turn.peer;
            self.peers[peer].welcome = self.understood(turn, welcome)?;
        }
        Ok(())
    }

    /// A new job: what each plugin ties it to, in the order given.
    ///
    /// # Errors
    /// The first failure. Every plugin that was sent `init` has been sent `exit` then, and all have ended.
    pub fn init(&mut self, calls: &mut dyn Calls) -> Result<Vec<Attached>, Failed> {
        let turns = self.tell(self.all(), &Occasion::Init, true, calls);
        self.attach(turns, calls)
    }

    /// The job is about to be stopped.
    ///
    /// # Errors
    /// The first failure. The caller then calls [`Company::roll_back`].
    pub fn presuspend(&mut self, calls: &mut dyn Calls) -> Result<(), Failed> {
        let turns = self.tell(self.all(), &Occasion::Presuspend, true, calls);
        self.sent = turns.iter().map(|turn| turn.peer).collect();
        turns.into_iter().try_for_each(|turn| turn.outcome.map(drop))
    }

    /// The job stands still: each plugin saves into the folder that `folder` makes for it. The answer has what each needs at
    /// a restart, in the order given.
    ///
    /// # Errors
    /// As [`Company::presuspend`].
    pub fn precheckpoint(
        &mut self,
        mut folder: impl FnMut(&str) -> Result<Folder>,
        calls: &mut dyn Calls,
    ) -> Result<Vec<Map<String, Value>>> {
        let asked = self.each(|peer| {
            let Folder { path, fd } = folder(peer.name())?;
            Ok((Occasion::Precheckpoint(Precheckpoint { folder: path }), Some(fd)))
        })?;
        let turns = self.round(asked, true, calls);
        let read = |reply: Reply| {
            let answer: Requirements = serde_json::from_value(reply.result).map_err(|e| e.to_string())?;
            Ok(answer.requirements)
        };
        let read = turns.into_iter().map(|turn| self.understood(turn, read));
        Ok(read.collect::<Result<_, Failed>>()?)
    }

    /// The image is complete. Failures change nothing, and are only reported.
    pub fn committed(&mut self, image: &std::path::Path, calls: &mut dyn Calls) -> Vec<Failed> {
        let committed = Occasion::Committed(Committed { image: image.into() });
        failures(self.tell(self.all(), &committed, false, calls))
    }

    /// The job goes on on this host after a checkpoint that was sent to all. The answer has the bindings that replace
    /// others, by plugin, and the failures.
    pub fn resume(&mut self, after: After, calls: &mut dyn Calls) -> (Vec<Rebound>, Vec<Failed>) {
        let all = self.all().into_iter().rev().collect();
        self.resume_some(all, after, calls)
    }

    /// There is no image: those that were sent `presuspend` hear that the job goes on, in reverse order.
    /// [`Company::running`] follows, when the job is about to go on.
    pub fn roll_back(&mut self, calls: &mut dyn Calls) -> (Vec<Rebound>, Vec<Failed>) {
        let sent = self.sent.iter().rev().copied().collect();
        self.resume_some(sent, After::Failure, calls)
    }

    fn resume_some(
        &mut self,
        order: Vec<usize>,
        after: After,
        calls: &mut dyn Calls,
    ) -> (Vec<Rebound>, Vec<Failed>) {
        let turns = self.tell(order, &Occasion::Resume(Going { after }), false, calls);
        self.rebind(turns)
    }

    /// The job is about to run. After a failure only those hear of it that were sent `presuspend`.
    pub fn running(&mut self, after: After, calls: &mut dyn Calls) -> Vec<Failed> {
        let order = if after == After::Failure { self.sent.clone() } else { self.all() };
        failures(self.tell(order, &Occasion::Running(Going { after }), false, calls))
    }

    /// Could the image be restarted here? All failures, of all plugins.
    pub fn check(
        &mut self,
        kept: impl FnMut(&str) -> Result<Kept>,
        calls: &mut dyn Calls,
    ) -> Result<Vec<Failed>> {
        let mut asked = self.saved(kept, Occasion::Check)?;
        asked.reverse();
        Ok(failures(self.round(asked, false, calls)))
    }

    /// A restart: what each plugin ties the job to, in reverse order.
    ///
    /// # Errors
    /// The first failure; a virtual name that was bound at the checkpoint and is not any more is one too. Every plugin that
    /// was sent `restart` has been sent `exit` then, and all have ended.
    pub fn restart(
        &mut self,
        kept: impl FnMut(&str) -> Result<Kept>,
        calls: &mut dyn Calls,
    ) -> Result<Vec<Attached>> {
        let mut asked = self.saved(kept, Occasion::Restart)?;
        asked.reverse();
        let before = |asked: &Asked| match &asked.occasion {
            Occasion::Restart(saved) => saved.bindings.iter().map(Binding::virtual_name).collect(),
            _ => Vec::new(),
        };
        let before: Vec<(usize, Vec<String>)> =
            asked.iter().map(|asked| (asked.peer, before(asked))).collect();
        let turns = self.round(asked, true, calls);
        let attached = self.attach(turns, calls)?;
        for (peer, names) in before {
            let bindings = &self.peers[peer].bindings;
            let now: BTreeSet<String> = bindings.iter().map(|bound| bound.binding.virtual_name()).collect();
            if let Some(lost) = names.into_iter().find(|name| !now.contains(name)) {
                let why = format!("{lost} was bound at the checkpoint and is not any more");
                let failed = wrong(&self.peers[peer], Event::Restart, why);
                self.exit(Reason::Failed, calls);
                return Err(failed.into());
            }
        }
        Ok(attached)
    }

    /// The job is gone: each plugin is told so, and its end is awaited. None can be used any more.
    pub fn exit(&mut self, reason: Reason, calls: &mut dyn Calls) -> Vec<Failed> {
        self.dismiss(self.all(), reason, calls)
    }

    /// Nothing has come of it but `check`: the sockets are closed without a word, and the ends awaited.
    pub fn part(&mut self) -> Vec<Failed> {
        let since = Instant::now();
        let part = |peer: &mut Peer| {
            let limit = peer.limit(Event::Exit);
            peer.part(since, limit).err()
        };
        self.peers.iter_mut().filter_map(part).collect()
    }

    fn dismiss(&mut self, told: Vec<usize>, reason: Reason, calls: &mut dyn Calls) -> Vec<Failed> {
        let since = Instant::now();
        let told: Vec<usize> = told.into_iter().filter(|peer| self.peers[*peer].gone().is_none()).collect();
        let mut failed = failures(self.tell(told, &Occasion::Exit(Exit { reason }), false, calls));
        for peer in &mut self.peers {
            let limit = peer.limit(Event::Exit);
            failed.extend(peer.part(since, limit).err());
        }
        failed
    }

    /// Takes what plugins have bound, or ends those that were asked.
    fn attach(&mut self, turns: Vec<Turn>, calls: &mut dyn Calls) -> Result<Vec<Attached>, Failed> {
        let sent: Vec<usize> = turns.iter().map(|turn| turn.peer).collect();
        let attached = turns.into_iter().map(|turn| {
            let (peer, event) = (turn.peer, turn.event);
            let name = self.peers[peer].name().to_owned();
            let attached = self.understood(turn, |reply| Attached::of(&name, reply))?;
            let names = || attached.bindings.iter().map(|bound| bound.binding.virtual_name());
            for other in &self.peers {
                let theirs: BTreeSet<String> =
                    other.bindings.iter().map(|b| b.binding.virtual_name()).collect();
                if let Some(name) = names().find(|name| theirs.contains(name)) {
                    let why = format!("{name}: plugin {} has bound it", other.name());
                    return Err(wrong(&self.peers[peer], event, why));
                }
            }
            // Not their descriptors: whose they are to be decides when they are closed.
            let bindings = attached.bindings.iter().map(Bound::bare);
            self.peers[peer].bindings = bindings.collect();
            Ok(attached)
        });
        let attached: Result<Vec<Attached>, Failed> = attached.collect();
        if attached.is_err() {
            // That one of them can't even do this is no news.
            self.dismiss(sent, Reason::Failed, calls);
        }
        attached
    }

    pub(super) fn rebind(&mut self, turns: Vec<Turn>) -> (Vec<Rebound>, Vec<Failed>) {
        let (mut bound, mut failed) = (Vec::new(), Vec::new());
        for turn in turns {
            let (peer, event) = (turn.peer, turn.event);
            let plugin = self.peers[peer].name().to_owned();
            match self.understood(turn, rebound) {
                Err(e) => failed.push(e),
                Ok(new) => {
                    for new in new {
                        let name = new.binding.virtual_name();
                        let old = &mut self.peers[peer].bindings;
                        match old.iter_mut().find(|old| old.binding.virtual_name() == name) {
                            Some(old) => {
                                *old = new.bare();
                                bound.push(Rebound { plugin: plugin.clone(), new });
                            }
                            None if event == Event::Recover => {
                                old.push(new.bare());
                                bound.push(Rebound { plugin: plugin.clone(), new });
                            }
                            None => {
                                failed.push(wrong(&self.peers[peer], event, format!("{name} was not bound")))
                            }
                        }
                    }
                }
            }
        }
        (bound, failed)
    }

    fn saved(
        &self,
        mut kept: impl FnMut(&str) -> Result<Kept>,
        occasion: impl Fn(Saved) -> Occasion,
    ) -> Result<Vec<Asked>> {
        self.each(|peer| {
            let Kept { folder: Folder { path, fd }, requirements, bindings } = kept(peer.name())?;
            Ok((occasion(Saved { folder: path, requirements, bindings }), Some(fd)))
        })
    }

    /// Reads an answer.
    pub(super) fn understood<T>(
        &self,
        turn: Turn,
        read: impl Fn(Reply) -> Result<T, String>,
    ) -> Result<T, Failed> {
        let reply = turn.outcome?;
        let after = reply.took;
        read(reply).map_err(|why| Failed { after, ..wrong(&self.peers[turn.peer], turn.event, why) })
    }

    fn all(&self) -> Vec<usize> {
        (0..self.peers.len()).collect()
    }

    /// The same event for several.
    fn tell(
        &mut self,
        order: Vec<usize>,
        occasion: &Occasion,
        stops: bool,
        calls: &mut dyn Calls,
    ) -> Vec<Turn> {
        let ask = |peer| Asked { peer, occasion: occasion.clone(), fds: Vec::new() };
        let asked = order.into_iter().map(ask).collect();
        self.round(asked, stops, calls)
    }

    /// An event for all, in the order given.
    fn each(&self, mut ask: impl FnMut(&Peer) -> Result<(Occasion, Option<OwnedFd>)>) -> Result<Vec<Asked>> {
        let one = |(number, peer)| {
            let (occasion, fd) = ask(peer)?;
            Ok(Asked { peer: number, occasion, fds: fd.into_iter().collect() })
        };
        self.peers.iter().enumerate().map(one).collect()
    }

    pub(super) fn round(&mut self, asked: Vec<Asked>, stops: bool, calls: &mut dyn Calls) -> Vec<Turn> {
        Round { peers: &mut self.peers, job: &self.job, stops }.run(asked, calls)
    }
}

/// What a plugin is told of itself.
pub(super) fn hello(peer: &Peer) -> Occasion {
    let plugin = Named { name: peer.name().into(), options: peer.manifest.options.clone() };
    let granted = peer.manifest.grants.clone();
    let (protocol, ckrun) = (PROTOCOL.into(), env!("CARGO_PKG_VERSION").into());
    Occasion::Hello(Hello { protocol, ckrun, plugin, granted })
}

/// Reads the answer to `hello`.
pub(super) fn welcome(reply: Reply) -> Result<Welcome, String> {
    let welcome: Welcome = serde_json::from_value(reply.result).map_err(|e| e.to_string())?;
    if welcome.protocol.split('.').next() != PROTOCOL.split('.').next() {
        return Err(format!("it speaks protocol {:?}, ckrun speaks {PROTOCOL}", welcome.protocol));
    }
    Ok(welcome)
}

fn failures(turns: Vec<Turn>) -> Vec<Failed> {
    turns.into_iter().filter_map(|turn| turn.outcome.err()).collect()
}

/// An answer that is not what the event asks for.
fn wrong(peer: &Peer, event: Event, why: String) -> Failed {
    Failed { plugin: peer.name().into(), event: Some(event), after: Duration::ZERO, why: Why::Answer(why) }
}
