//! A whole life with a plugin that is to be tried, for a job that does not exist.

mod folder;
mod job;

use super::attach::{Attached, Bound};
use super::company::{Company, Kept};
use super::failed::{Failed, Why};
use super::manifest::Manifest;
use super::round::settle;
use crate::error::{Error, Result};
use ckrun_plugin::occasion::{Occasion, Params};
use ckrun_plugin::{After, Binding, Code, Event, Job, Real, Reason};
use folder::{Scratch, files, truncated_copy};
use job::NoJob;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::os::fd::AsFd;
use std::time::Instant;

/// An event that no version has.
const UNHEARD_OF: &str = "x-ckrun-check";

/// How a step was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As the protocol says.
    Ok,
    /// Allowed, but worth knowing.
    Note,
    /// Not as the protocol says.
    Wrong,
}

impl Verdict {
    /// The word for a person.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Wrong => "wrong",
        }
    }
}

/// One step of the trial.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// Which of the plugin's processes, from 1.
    pub process: u32,
    /// The event, or what was tried.
    pub step: String,
    /// How it was.
    pub verdict: Verdict,
    /// A sentence, unless there is nothing to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub said: String,
    /// How long it took.
    pub seconds: f64,
}

/// Tries a plugin. What it writes to its log appears on standard error.
///
/// # Errors
/// Only what is no fault of the plugin: it can't be started, the temporary directory can't be made.
pub fn check(manifest: &Manifest) -> Result<Vec<Step>> {
    let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    let mut trial = Trial {
        manifest,
        job: Job { id: "plugin-check".into(), generation: 0, host, bundle: "/".into() },
        scratch: Scratch::new()?,
        no_job: NoJob::default(),
        requirements: Map::new(),
        steps: Vec::new(),
        process: 0,
    };
    if let Some(saved) = trial.first_process()? {
        trial.job.generation = 1;
        trial.restart(saved)?;
        trial.failed_restart(saved)?;
        trial.damaged(saved)?;
    }
    Ok(trial.steps)
}

struct Trial<'a> {
    manifest: &'a Manifest,
    job: Job,
    scratch: Scratch,
    no_job: NoJob,
    requirements: Map<String, Value>,
    steps: Vec<Step>,
    process: u32,
}

/// What a step has to say, or what the plugin did wrong.
type Said = Result<String, String>;

fn wordless(failed: Vec<Failed>) -> Said {
    failed.first().map_or(Ok(String::new()), |failed| Err(failed.to_string()))
}

/// Tells what the plugin did wrong from what is no fault of its.
fn blame<T>(result: Result<T>) -> Result<Result<T, String>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Error::Plugin(failed)) => Ok(Err(failed.to_string())),
        Err(other) => Err(other),
    }
}

/// What `check` and `restart` are given of an image.
fn kept<'a>(
    scratch: &'a Scratch,
    image: &'a str,
    requirements: &'a Map<String, Value>,
    bindings: &'a [Binding],
) -> impl FnMut(&str) -> Result<Kept> + 'a {
    move |plugin| {
        let (requirements, bindings) = (requirements.clone(), bindings.to_vec());
        Ok(Kept { folder: scratch.kept(image, plugin)?, requirements, bindings })
    }
}

impl Trial<'_> {
    /// From init to a checkpoint that the job does not survive. The answer is the name of the image; None if something went
    /// wrong before.
    fn first_process(&mut self) -> Result<Option<&'static str>> {
        let Some(mut company) = self.start()? else { return Ok(None) };
        let it = &mut company;
        let good = self.step(it, "init", |company, trial| {
            let attached = company.init(&mut trial.no_job).map_err(|e| e.to_string());
            Ok(attached.and_then(|all| trial.attached(company, all)))
        })?;
        let good = good && self.running(it, After::Init)?;
        let good = good && self.checkpoint(it, "first")?;
        let good = good && self.committed(it, "first")? && self.goes_on(it, After::Checkpoint)?;
        let good = good && self.checkpoint(it, "failed")? && self.goes_on(it, After::Failure)?;
        let good = good && self.unheard_of(it)?;
        let good = good && self.unknown_members(it)? && self.goes_on(it, After::Failure)?;
        if !good || !self.checkpoint(it, "second")? || !self.committed(it, "second")? {
            return Ok(None);
        }
        self.exit(company, Reason::Checkpointed);
        Ok(Some("second"))
    }

    fn running(&mut self, company: &mut Company, after: After) -> Result<bool> {
        self.step(company, &format!("running after {}", word(after)), |company, trial| {
            Ok(wordless(company.running(after, &mut trial.no_job)))
        })
    }

    /// presuspend and precheckpoint.
    fn checkpoint(&mut self, company: &mut Company, image: &'static str) -> Result<bool> {
        let good = self.step(company, "presuspend", |company, trial| {
            let done = company.presuspend(&mut trial.no_job);
            Ok(done.map(|()| String::new()).map_err(|e| e.to_string()))
        })?;
        if !good {
            return Ok(false);
        }
        self.step(company, "precheckpoint", |company, trial| {
            let Trial { scratch, no_job, .. } = trial;
            let saved = blame(company.precheckpoint(|plugin| scratch.folder(image, plugin), no_job))?;
            trial.requirements = match saved {
                Ok(all) => all.into_iter().next().unwrap_or_default(),
                Err(said) => return Ok(Err(said)),
            };
            let (name, needs) = (&trial.manifest.name, trial.requirements.len());
            let folder = trial.scratch.kept(image, name)?.path;
            let found =
                files(&folder).map_err(|why| format!("plugin {name}: precheckpoint: its folder: {why}"));
            Ok(found.map(|found| {
                let bytes: u64 = found.iter().map(|(_, size)| size).sum();
                format!("files: {} with {bytes} bytes, requirements: {needs}", found.len())
            }))
        })
    }

    fn committed(&mut self, company: &mut Company, image: &'static str) -> Result<bool> {
        self.step(company, "committed", |company, trial| {
            Ok(wordless(company.committed(&trial.scratch.image(image), &mut trial.no_job)))
        })
    }

    /// resume and running.
    fn goes_on(&mut self, company: &mut Company, after: After) -> Result<bool> {
        let good = self.step(company, &format!("resume after {}", word(after)), |company, trial| {
            let (bound, failed) = match after {
                After::Failure => company.roll_back(&mut trial.no_job),
                _ => company.resume(after, &mut trial.no_job),
            };
            let bound: Vec<Bound> = bound.into_iter().map(|rebound| rebound.new).collect();
            Ok(wordless(failed).and_then(|_| trial.bound(company, &bound)))
        })?;
        Ok(good && self.running(company, after)?)
    }

    /// What a later version of ckrun might ask.
    fn unheard_of(&mut self, company: &mut Company) -> Result<bool> {
        self.step(company, "an unknown event is refused by error -32601", |company, trial| {
            let params = json!({"deadline": 10, "job": trial.job});
            company.peers_mut()[0].request_raw(Event::Check, UNHEARD_OF, params);
            let why = match settle(company.peers_mut(), 0, &mut trial.no_job) {
                Err(Failed { why: Why::Refused(fault), .. }) if fault.kind() == Some(Code::NoSuchMethod) => {
                    return Ok(Ok(String::new()));
                }
                Err(Failed { why: Why::Refused(fault), .. }) => {
                    format!("its error is {} ({}), not -32601", fault.code, fault.message)
                }
                Err(Failed { why, after, .. }) => {
                    format!("{why} (after {} s)", super::failed::seconds(after))
                }
                Ok(_) => "it answered with a result, not with error -32601".into(),
            };
            Ok(Err(format!("plugin {}: {UNHEARD_OF}, an unknown event: {why}", trial.manifest.name)))
        })
    }

    /// What a later version of ckrun might add. It is the beginning of a checkpoint that fails before precheckpoint.
    fn unknown_members(&mut self, company: &mut Company) -> Result<bool> {
        self.step(company, "presuspend with unknown members", |company, trial| {
            let peer = &mut company.peers_mut()[0];
            if !peer.wants(Event::Presuspend) {
                return Ok(Ok(String::new()));
            }
            let deadline = peer.limit(Event::Presuspend).as_secs_f64();
            let mut params =
                Params { deadline, job: trial.job.clone(), occasion: Occasion::Presuspend }.value();
            params[UNHEARD_OF] = json!({"of": [1, 2]});
            params["job"][UNHEARD_OF] = json!("later");
            peer.request(Event::Presuspend, params, None, Vec::new());
            let outcome = settle(company.peers_mut(), 0, &mut trial.no_job);
            Ok(outcome.map(|_| String::new()).map_err(|e| format!("{e}; unknown members are to be ignored")))
        })
    }

    /// A new process goes on with what was saved.
    fn restart(&mut self, image: &'static str) -> Result<()> {
        let Some(mut company) = self.start()? else { return Ok(()) };
        if self.restarted(&mut company, image)? && self.running(&mut company, After::Restart)? {
            self.exit(company, Reason::Ended);
        }
        Ok(())
    }

    /// Another plugin of the job fails its restart.
    fn failed_restart(&mut self, image: &'static str) -> Result<()> {
        let Some(mut company) = self.start()? else { return Ok(()) };
        if self.restarted(&mut company, image)? {
            self.exit(company, Reason::Failed);
        }
        Ok(())
    }

    /// check and restart.
    fn restarted(&mut self, company: &mut Company, image: &'static str) -> Result<bool> {
        let before = self.no_job.bindings.clone();
        let good = self.step(company, "check", |company, trial| {
            let Trial { scratch, no_job, requirements, .. } = trial;
            Ok(wordless(company.check(kept(scratch, image, requirements, &before), no_job)?))
        })?;
        if !good {
            return Ok(false);
        }
        self.step(company, "restart", |company, trial| {
            let Trial { scratch, no_job, requirements, .. } = trial;
            let attached = blame(company.restart(kept(scratch, image, requirements, &before), no_job))?;
            Ok(attached.and_then(|all| trial.attached(company, all)))
        })
    }

    /// Half of every saved file is missing; then the socket is closed.
    fn damaged(&mut self, image: &'static str) -> Result<()> {
        let name = self.manifest.name.clone();
        let whole = self.scratch.kept(image, &name)?.path;
        let cut = self.scratch.folder("truncated", &name)?.path;
        truncated_copy(&whole, &cut)?;
        let any = files(&whole).is_ok_and(|found| found.iter().any(|(_, size)| *size > 0));
        let Some(mut company) = self.start()? else { return Ok(()) };
        if any {
            let before = self.no_job.bindings.clone();
            let began = Instant::now();
            let Trial { scratch, no_job, requirements, .. } = self;
            let kept = kept(scratch, "truncated", requirements, &before);
            let failed = company.check(kept, no_job)?.into_iter().next();
            let (verdict, said) = match failed {
                Some(Failed { why: Why::Refused(fault), .. }) => (Verdict::Ok, fault.to_string()),
                Some(other) => (Verdict::Wrong, other.to_string()),
                None => (Verdict::Note, "not noticed here; the digests of the image protect it".into()),
            };
            self.push("check of a truncated state", verdict, said, began);
        }
        let began = Instant::now();
        let peer = &mut company.peers_mut()[0];
        let parted = peer.part(began, peer.limit(Event::Exit));
        let (verdict, said) = match parted {
            Ok(()) => (Verdict::Ok, String::new()),
            Err(failed) => (Verdict::Wrong, Failed { event: None, ..failed }.to_string()),
        };
        self.push("the end at the end of file", verdict, said, began);
        Ok(())
    }

    /// A new process and hello.
    fn start(&mut self) -> Result<Option<Company>> {
        self.process += 1;
        let began = Instant::now();
        let log =
            |_: &str| std::io::stderr().as_fd().try_clone_to_owned().map_err(|e| Error::file("stderr", &e));
        match Company::start(self.job.clone(), vec![self.manifest.clone()], log, &mut self.no_job) {
            Ok(company) => {
                let version = company.peers()[0].welcome.version.clone();
                self.push("hello", Verdict::Ok, version, began);
                Ok(Some(company))
            }
            Err(Error::Plugin(failed)) => {
                self.push("hello", Verdict::Wrong, failed.to_string(), began);
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    fn exit(&mut self, mut company: Company, reason: Reason) {
        let word = match reason {
            Reason::Ended => "exit, ended",
            Reason::Checkpointed => "exit, checkpointed",
            Reason::Failed => "exit, failed",
        };
        let began = Instant::now();
        let (verdict, said) = match wordless(company.exit(reason, &mut self.no_job)) {
            Ok(said) => (Verdict::Ok, said),
            Err(said) => (Verdict::Wrong, said),
        };
        self.push(word, verdict, said, began);
    }

    /// One step. The answer says whether the plugin can go on.
    fn step(
        &mut self,
        company: &mut Company,
        name: &str,
        act: impl FnOnce(&mut Company, &mut Self) -> Result<Said>,
    ) -> Result<bool> {
        let began = Instant::now();
        let said = act(company, self)?;
        // What it has said beyond the answer.
        company.attend(&mut self.no_job);
        let gone =
            company.peers()[0].gone().map(|why| format!("plugin {}: {name}: {why}", self.manifest.name));
        let (verdict, said) = match (said, gone) {
            (Err(said), _) | (Ok(_), Some(said)) => (Verdict::Wrong, said),
            (Ok(said), None) => (Verdict::Ok, said),
        };
        self.push(name, verdict, said, began);
        Ok(verdict != Verdict::Wrong)
    }

    fn push(&mut self, step: &str, verdict: Verdict, said: String, began: Instant) {
        let seconds = began.elapsed().as_secs_f64();
        self.steps.push(Step { process: self.process, step: step.into(), verdict, said, seconds });
    }

    fn attached(&mut self, company: &Company, all: Vec<Attached>) -> Said {
        let bound: Vec<Bound> = all.into_iter().flat_map(|attached| attached.bindings).collect();
        self.bound(company, &bound)
    }

    /// Looks whether there is something behind the names that were bound.
    fn bound(&mut self, company: &Company, new: &[Bound]) -> Said {
        self.no_job.bind(&company.peers()[0].bindings);
        for bound in new {
            // Of a descriptor it is what the kernel has for it: a connection has a peer with an address.
            let recorded = bound.recorded().map_err(|e| format!("plugin {}: {e}", self.manifest.name))?;
            if let Some(Real::Name(real)) = recorded.real()
                && real.starts_with('/')
                && let Err(e) = std::fs::metadata(real)
            {
                let name = recorded.virtual_name();
                return Err(format!("plugin {}: it binds {name} to {real}: {e}", self.manifest.name));
            }
        }
        let names: Vec<String> = new.iter().map(|bound| bound.binding.virtual_name()).collect();
        Ok(names.join(", "))
    }
}

fn word(after: After) -> &'static str {
    match after {
        After::Init => "init",
        After::Checkpoint => "checkpoint",
        After::Failure => "failure",
        After::Restart => "restart",
    }
}
