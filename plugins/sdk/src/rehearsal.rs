//! ckrun's side of the socket, for a plugin's own tests: starts the program as ckrun would, sends it events, and answers
//! its calls for a job that is not there.
//!
//! It does not judge: `ckrun plugin check` does.

use crate::binding::{Attachment, Binding, Name};
use crate::call::{Answer, Call, Task};
use crate::event::{Event, Log, PROTOCOL};
use crate::fault::{Code, Fault};
use crate::message::{Id, Message};
use crate::occasion::{
    After, Exit, Going, Hello, Job, Named, Occasion, Params, Precheckpoint, Reason, Saved,
};
use crate::serve::SOCKET;
use crate::wire::{Broken, Incoming, Wire};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

/// A job's answer to the calls that its memory, its tasks or its names are needed for.
pub type Answers = Box<dyn FnMut(&Call) -> Result<Answer, Fault>>;

/// A plugin's process, killed at the end if it still lives.
pub struct Rehearsal {
    wire: Wire,
    child: Child,
    asked: u64,
    /// What every event says of the job.
    pub job: Job,
    /// The deadline of each event, in seconds; the protocol's if None.
    pub deadline: Option<f64>,
    /// The plugin's key-value area.
    pub area: BTreeMap<String, Value>,
    /// The calls that it has made, by name.
    pub calls: Vec<&'static str>,
    /// What it has told people.
    pub logs: Vec<String>,
    /// Descriptors that came with the last answer: what is behind its bindings.
    pub passed: Vec<OwnedFd>,
    /// Answers the calls beside `put` and `get`; at first a job of one process, 1, which is this one.
    pub answers: Answers,
}

impl std::fmt::Debug for Rehearsal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rehearsal")
            .field("child", &self.child)
            .field("job", &self.job)
            .finish_non_exhaustive()
    }
}

impl Rehearsal {
    /// Starts a program and its arguments. The next event is [`Rehearsal::hello`].
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(words: &[impl AsRef<OsStr>]) -> io::Result<Rehearsal> {
        let (ours, theirs) = UnixStream::pair()?;
        // The shell puts the socket where ckrun would, between a fork and an exec that nobody else takes part in.
        let child = Command::new("/bin/sh")
            .args(["-c", "exec \"$@\" 3<&0 0</dev/null", "sh"])
            .args(words)
            .current_dir("/")
            .env(SOCKET, "3")
            .stdin(OwnedFd::from(theirs))
            .spawn()?;
        Ok(Rehearsal {
            wire: Wire::new(ours.into()),
            child,
            asked: 0,
            job: Job { id: "tb1".into(), generation: 0, host: "a".into(), bundle: "/srv/tb1".into() },
            deadline: None,
            area: BTreeMap::new(),
            calls: Vec::new(),
            logs: Vec::new(),
            passed: Vec::new(),
            answers: Box::new(nobody),
        })
    }

    /// Introduces ckrun, with these options and all capabilities.
    ///
    /// # Errors
    /// The plugin's.
    pub fn hello(&mut self, options: &[(&str, &str)]) -> Result<Value, Fault> {
        let options = options.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        self.ask(Occasion::Hello(Hello {
            protocol: PROTOCOL.into(),
            ckrun: env!("CARGO_PKG_VERSION").into(),
            plugin: Named { name: "emu".into(), options },
            granted: crate::Grant::ALL.to_vec(),
        }))
    }

    /// A new job.
    ///
    /// # Errors
    /// The plugin's.
    pub fn init(&mut self) -> Result<Attachment, Fault> {
        Ok(serde_json::from_value(self.ask(Occasion::Init)?)?)
    }

    /// Saves into a folder, which is made, and answers with the requirements.
    ///
    /// # Errors
    /// The plugin's.
    pub fn precheckpoint(&mut self, folder: &Path) -> Result<Map<String, Value>, Fault> {
        fs::create_dir_all(folder)?;
        let answer = self.ask(Occasion::Precheckpoint(Precheckpoint { folder: folder.into() }))?;
        Ok(answer["requirements"].as_object().cloned().unwrap_or_default())
    }

    /// `running`.
    ///
    /// # Errors
    /// The plugin's.
    pub fn running(&mut self, after: After) -> Result<(), Fault> {
        self.ask(Occasion::Running(Going { after })).map(drop)
    }

    /// `resume`.
    ///
    /// # Errors
    /// The plugin's.
    pub fn resume(&mut self, after: After) -> Result<Vec<Binding>, Fault> {
        Ok(serde_json::from_value::<Attachment>(self.ask(Occasion::Resume(Going { after }))?)?.bindings)
    }

    /// `restart`.
    ///
    /// # Errors
    /// The plugin's.
    pub fn restart(&mut self, saved: &Saved) -> Result<Attachment, Fault> {
        Ok(serde_json::from_value(self.ask(Occasion::Restart(saved.clone()))?)?)
    }

    /// `exit`, and the process's end: how it was.
    ///
    /// # Errors
    /// The plugin's.
    pub fn exit(mut self, reason: Reason) -> Result<ExitStatus, Fault> {
        self.ask(Occasion::Exit(Exit { reason }))?;
        Ok(self.child.wait()?)
    }

    /// The end of the file without an `exit`, as when ckrun has been killed: how the process ended.
    ///
    /// # Errors
    /// The kernel's.
    pub fn part(mut self) -> io::Result<ExitStatus> {
        let (_, nobody) = UnixStream::pair()?;
        self.wire = Wire::new(nobody.into());
        self.child.wait()
    }

    /// An event, answered.
    ///
    /// # Errors
    /// The plugin's; [`Code::Internal`] if it has gone or can't be understood.
    pub fn ask(&mut self, occasion: Occasion) -> Result<Value, Fault> {
        let event = occasion.event();
        let deadline = self.deadline.unwrap_or_else(|| event.deadline());
        let params = Params { deadline, job: self.job.clone(), occasion }.value();
        self.asked += 1;
        let mine = Id::Number(self.asked);
        self.send(&Message::Request { id: mine.clone(), method: event.name().into(), params, fds: 0 })
            .map_err(|broken| gone(event, &broken))?;
        loop {
            let Incoming { message, fds } = self.wire.receive().map_err(|broken| gone(event, &broken))?;
            match message {
                Message::Answer { id, outcome, .. } if id == mine => {
                    self.passed = fds;
                    return outcome;
                }
                Message::Request { id, method, params, .. } => {
                    let outcome = self.call(&method, params).map(|answer| answer.value());
                    self.send(&Message::Answer { id, outcome, fds: 0 })
                        .map_err(|broken| gone(event, &broken))?;
                }
                Message::Notification { method, params } if method == "log" => {
                    self.logs.push(serde_json::from_value::<Log>(params)?.message);
                }
                other => return Err(Fault::new(Code::Internal, format!("{event}: it said {other:?}"))),
            }
        }
    }

    fn call(&mut self, method: &str, params: Value) -> Result<Answer, Fault> {
        let call = Call::parse(method, params)?;
        self.calls.push(call.name());
        match call {
            Call::Put(put) => {
                match put.value {
                    Some(value) => self.area.insert(put.key, value),
                    None => self.area.remove(&put.key),
                };
                Ok(Answer::Nothing {})
            }
            Call::Get(get) => {
                let value = self.area.get(&get.key).cloned();
                let unknown = || Fault::new(Code::Unknown, format!("get: there is no key {}", get.key));
                Ok(Answer::Value { value: value.ok_or_else(unknown)? })
            }
            other => (self.answers)(&other),
        }
    }

    fn send(&mut self, message: &Message) -> Result<(), Broken> {
        self.wire.queue(message, Vec::new())?;
        self.wire.flush(true).map(drop)
    }
}

impl Drop for Rehearsal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gone(event: Event, broken: &Broken) -> Fault {
    Fault::new(Code::Internal, format!("{event}: the plugin {broken}"))
}

/// The answers of a job of which nothing is known but its only process.
fn nobody(call: &Call) -> Result<Answer, Fault> {
    let unknown = || Fault::new(Code::Unknown, format!("{}: nothing is known of that", call.name()));
    match call {
        Call::Translate(what) if what.virtual_name == Some(Name::Number(1)) => {
            let real = Name::Number(std::process::id().into());
            Ok(Answer::Names { r#virtual: Name::Number(1), real })
        }
        Call::Tasks {} => Ok(Answer::Tasks { tasks: vec![Task { pid: 1, tid: 1, command: "job".into() }] }),
        Call::Barrier(_) => Ok(Answer::Nothing {}),
        _ => Err(unknown()),
    }
}

/// What `check` and `restart` say of an image.
pub fn saved(folder: &Path, requirements: &Map<String, Value>, bindings: &[Binding]) -> Saved {
    Saved { folder: folder.into(), requirements: requirements.clone(), bindings: bindings.to_vec() }
}
