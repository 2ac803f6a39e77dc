//! A new process for a plugin whose job runs: the one before was killed with ckrun's supervisor, or has failed alone.

use super::attach::Bound;
use super::calls::Calls;
use super::company::{Company, Rebound, hello, welcome};
use super::failed::{Failed, Why};
use super::manifest::Manifest;
use super::peer::Peer;
use super::round::{Asked, Turn};
use crate::error::{Error, Result};
use ckrun_plugin::occasion::{Occasion, Recover};
use ckrun_plugin::{Binding, Job};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

impl Company {
    /// The plugins of a job that runs, none of which has a process.
    pub fn orphaned(job: Job, manifests: Vec<Manifest>) -> Company {
        let absent = |manifest| Peer::absent(manifest, "ckrun's supervisor was killed".into());
        Company { job, peers: manifests.into_iter().map(absent).collect(), sent: Vec::new() }
    }

    /// Starts those that have no process any more, and says `hello` and `recover` with the bindings `in_force`, but for the
    /// handles. The answer has the bindings that are new, and the failures: a plugin that can't take over is killed, and the
    /// job goes on without it. `log` is where the output of the plugin of that name goes.
    pub fn mend(
        &mut self,
        in_force: impl Fn(&str) -> Vec<Binding>,
        mut log: impl FnMut(&str) -> Result<OwnedFd>,
        calls: &mut dyn Calls,
    ) -> (Vec<Rebound>, Vec<Failed>) {
        let (mut started, mut failed) = (Vec::new(), Vec::new());
        let gone: Vec<usize> = (0..self.peers.len()).filter(|at| self.peers[*at].gone().is_some()).collect();
        for at in gone {
            let manifest = self.peers[at].manifest.clone();
            match log(&manifest.name).and_then(|log| Peer::start(manifest, log.as_fd())) {
                Ok(peer) => {
                    if let Some(process) = peer.process() {
                        calls.started(peer.name(), process.pid());
                    }
                    self.peers[at] = peer;
                    started.push(at);
                }
                Err(e) => failed.push(self.not_started(at, e)),
            }
        }
        let asked = started.into_iter().map(|at| ask(at, hello(&self.peers[at]))).collect();
        let (met, lost) = self.split(asked, calls);
        failed.extend(lost);
        let mut asked = Vec::new();
        for turn in met {
            let at = turn.peer;
            match self.understood(turn, welcome) {
                Ok(welcome) => {
                    let bindings = in_force(self.peers[at].name());
                    let others = bindings.iter().filter(|binding| !matches!(binding, Binding::Handle { .. }));
                    let bound = others.map(|binding| Bound { binding: binding.clone(), fd: None });
                    self.peers[at].bindings = bound.collect();
                    self.peers[at].welcome = welcome;
                    asked.push(ask(at, Occasion::Recover(Recover { bindings })));
                }
                Err(e) => failed.push(self.given_up(at, e)),
            }
        }
        let (recovered, lost) = self.split(asked, calls);
        failed.extend(lost);
        let (bound, wrong) = self.rebind(recovered);
        failed.extend(wrong);
        (bound, failed)
    }

    /// Asks all, and gives up those that fail.
    fn split(&mut self, asked: Vec<Asked>, calls: &mut dyn Calls) -> (Vec<Turn>, Vec<Failed>) {
        let (mut well, mut failed) = (Vec::new(), Vec::new());
        for turn in self.round(asked, false, calls) {
            match turn.outcome {
                Ok(_) => well.push(turn),
                Err(e) => failed.push(self.given_up(turn.peer, e)),
            }
        }
        (well, failed)
    }

    fn given_up(&mut self, at: usize, failed: Failed) -> Failed {
        let event = failed.event.map_or_else(String::new, |event| format!("{event}: "));
        self.peers[at].give_up(format!("{event}{}", failed.why));
        failed
    }

    fn not_started(&mut self, at: usize, why: Error) -> Failed {
        let why = match why {
            Error::Sys(failure) => Why::NotStarted(failure),
            other => Why::Quoted(other.to_string()),
        };
        let name = self.peers[at].name().to_owned();
        self.peers[at] = Peer::absent(self.peers[at].manifest.clone(), why.to_string());
        Failed { plugin: name, event: None, after: Duration::ZERO, why }
    }
}

fn ask(peer: usize, occasion: Occasion) -> Asked {
    Asked { peer, occasion, fds: Vec::new() }
}
