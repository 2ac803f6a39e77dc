//! ckrun, as a plugin's methods see it: the job, the options, and the calls.

use crate::binding::{Binding, Kind, Name, Real};
use crate::call::{
    Answer, Barrier, Call, Get, Put, Read, Registers, RegistersOf, Signal, Task, Translate, Unbind, Write,
};
use crate::event::{Cancel, Event, Grant, Level, Log, duration};
use crate::fault::{Code, Fault};
use crate::message::{Id, Message};
use crate::number::{Bytes, Hex};
use crate::occasion::{Hello, Job, Params};
use crate::wire::{Broken, Filled, Incoming, Wire};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// An event that is under way.
#[derive(Debug)]
struct Now {
    event: Event,
    params: Params,
    until: Instant,
    fds: Vec<OwnedFd>,
}

/// The other end of the socket. Every call waits for its answer; an error that ckrun has gone looks like one of its own
/// ([`Code::Internal`]), and [`serve`](crate::serve) then comes to its end.
#[derive(Debug)]
pub struct Ckrun {
    wire: Wire,
    hello: Option<Hello>,
    now: Option<Now>,
    cancelled: bool,
    /// Requests that came while a call was waited for.
    waiting: VecDeque<Incoming>,
    calls: u64,
    passed: Vec<OwnedFd>,
}

impl Ckrun {
    pub(crate) fn new(socket: OwnedFd) -> Ckrun {
        Ckrun {
            wire: Wire::new(socket),
            hello: None,
            now: None,
            cancelled: false,
            waiting: VecDeque::new(),
            calls: 0,
            passed: Vec::new(),
        }
    }

    /// The job that the event under way is about.
    pub fn job(&self) -> Option<&Job> {
        self.now.as_ref().map(|now| &now.params.job)
    }

    /// The event under way.
    pub fn event(&self) -> Option<Event> {
        self.now.as_ref().map(|now| now.event)
    }

    /// When the event must have been answered.
    pub fn deadline(&self) -> Option<Instant> {
        self.now.as_ref().map(|now| now.until)
    }

    /// The name of this plugin in the job.
    pub fn name(&self) -> &str {
        self.hello.as_ref().map_or("", |hello| &hello.plugin.name)
    }

    /// An option of the command line or of the manifest.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options().get(name).map(String::as_str)
    }

    /// All options.
    pub fn options(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.hello.as_ref().map_or(&NONE, |hello| &hello.plugin.options)
    }

    /// Refuses options that the plugin does not know: a slip in a name would otherwise go unnoticed.
    ///
    /// # Errors
    /// [`Code::InvalidParams`], with the names that there are.
    pub fn expect_options(&self, known: &[&str]) -> Result<(), Fault> {
        match self.options().keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let why = format!("there is no option {name:?}; there are {}", known.join(", "));
                Err(Fault::new(Code::InvalidParams, why))
            }
        }
    }

    /// The capabilities that the plugin has.
    pub fn granted(&self) -> &[Grant] {
        self.hello.as_ref().map_or(&[], |hello| &hello.granted)
    }

    /// The descriptors that came with the event: the folder at `precheckpoint`, `check` and `restart`.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.now.iter().flat_map(|now| now.fds.iter().map(AsFd::as_fd)).collect()
    }

    /// Sends a descriptor with the answer to the event: what is behind a binding.
    pub fn pass(&mut self, fd: OwnedFd) -> Real {
        self.passed.push(fd);
        Real::Fd(self.passed.len() as u64 - 1)
    }

    /// Whether the event's deadline has passed, as far as ckrun has said so: nobody waits for the answer any more.
    pub fn cancelled(&mut self) -> bool {
        // What has not come yet, and a socket that has broken, is for the next who reads.
        loop {
            while let Ok(Some(incoming)) = self.wire.take() {
                self.sort(incoming);
            }
            if self.cancelled || !matches!(self.wire.fill(false), Ok(Filled::Bytes)) {
                break;
            }
        }
        self.cancelled
    }

    /// What the job's name for a thing, or its real name, stands for: the virtual and the real name.
    ///
    /// # Errors
    /// [`Code::Unknown`].
    pub fn translate(&mut self, what: Translate) -> Result<(Name, Name), Fault> {
        match self.call(&Call::Translate(what))? {
            Answer::Names { r#virtual, real } => Ok((r#virtual, real)),
            other => Err(unexpected("translate", &other)),
        }
    }

    /// Binds a handle.
    ///
    /// # Errors
    /// [`Code::InvalidParams`] for other kinds, [`Code::Limit`].
    pub fn bind(&mut self, binding: Binding) -> Result<(), Fault> {
        self.call(&Call::Bind(binding)).map(drop)
    }

    /// Takes a handle back.
    ///
    /// # Errors
    /// [`Code::Unknown`].
    pub fn unbind(&mut self, space: &str, virtual_number: u64) -> Result<(), Fault> {
        self.call(&Call::Unbind(Unbind { kind: Kind::Handle, space: space.into(), virtual_number })).map(drop)
    }

    /// Keeps a value in the plugin's own area, which is part of the image; None removes it.
    ///
    /// # Errors
    /// [`Code::Limit`]: the key has more than 255 bytes, the value more than 65,536, or all of them more than 1,048,576.
    pub fn put(&mut self, key: &str, value: Option<Value>) -> Result<(), Fault> {
        self.call(&Call::Put(Put { key: key.into(), value })).map(drop)
    }

    /// A value that was kept; None if there is none.
    ///
    /// # Errors
    /// Only if ckrun has gone.
    pub fn get(&mut self, key: &str) -> Result<Option<Value>, Fault> {
        match self.call(&Call::Get(Get { key: key.into() })) {
            Ok(Answer::Value { value }) => Ok(Some(value)),
            Ok(other) => Err(unexpected("get", &other)),
            Err(fault) if fault.kind() == Some(Code::Unknown) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// All threads of the job, which must stand still.
    ///
    /// # Errors
    /// [`Code::State`].
    pub fn tasks(&mut self) -> Result<Vec<Task>, Fault> {
        match self.call(&Call::Tasks {})? {
            Answer::Tasks { tasks } => Ok(tasks),
            other => Err(unexpected("tasks", &other)),
        }
    }

    /// `length` bytes of the memory of process `pid`, at most 524,288. The job must stand still.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::State`], [`Code::Unknown`] (no such process, nothing mapped there), [`Code::Limit`].
    pub fn read(&mut self, pid: u64, address: u64, length: u64) -> Result<Vec<u8>, Fault> {
        match self.call(&Call::Read(Read { pid, address: Hex(address), length }))? {
            Answer::Data { data } => Ok(data.0),
            other => Err(unexpected("read", &other)),
        }
    }

    /// Changes the memory of process `pid`, at most 524,288 bytes. The job must stand still.
    ///
    /// # Errors
    /// As [`Ckrun::read`].
    pub fn write(&mut self, pid: u64, address: u64, data: Vec<u8>) -> Result<(), Fault> {
        self.call(&Call::Write(Write { pid, address: Hex(address), data: Bytes(data) })).map(drop)
    }

    /// Changes those registers of thread `tid` that are in `set`, and says what all of them are then. The job must stand
    /// still.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::State`], [`Code::Unknown`] (no such thread, no such register).
    pub fn registers(&mut self, tid: u64, set: Registers) -> Result<Registers, Fault> {
        match self.call(&Call::Registers(RegistersOf { tid, set }))? {
            Answer::Registers { registers } => Ok(registers),
            other => Err(unexpected("registers", &other)),
        }
    }

    /// Sends a signal, by its number, to process `pid`.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::Unknown`].
    pub fn signal(&mut self, pid: u64, signal: i32) -> Result<(), Fault> {
        self.call(&Call::Signal(Signal { pid, signal })).map(drop)
    }

    /// Waits until every plugin of the job that takes part in the event has come here.
    ///
    /// # Errors
    /// [`Code::State`]: one of them has answered the event without having come.
    pub fn barrier(&mut self, name: &str) -> Result<(), Fault> {
        self.call(&Call::Barrier(Barrier { name: name.into() })).map(drop)
    }

    /// Tells people something. That it can't be told is no error.
    pub fn log(&mut self, level: Level, message: impl Into<String>) {
        let params = json!(Log { level, message: message.into() });
        let _ = self.send(&Message::Notification { method: "log".into(), params }, Vec::new());
    }

    fn call(&mut self, call: &Call) -> Result<Answer, Fault> {
        let gone = |broken: Broken| Fault::new(Code::Internal, format!("{}: ckrun {broken}", call.name()));
        self.calls += 1;
        let mine = Id::Number(self.calls);
        let (method, params) = call.request();
        self.send(&Message::Request { id: mine.clone(), method, params, fds: 0 }, Vec::new())
            .map_err(gone)?;
        loop {
            let incoming = self.wire.receive().map_err(gone)?;
            match incoming.message {
                Message::Answer { id, outcome, .. } if id == mine => {
                    let result = outcome?;
                    return serde_json::from_value(result).map_err(|e| {
                        Fault::new(Code::Internal, format!("{}: ckrun's answer: {e}", call.name()))
                    });
                }
                message => self.sort(Incoming { message, fds: incoming.fds }),
            }
        }
    }

    /// What is not the answer to a call.
    fn sort(&mut self, incoming: Incoming) {
        match &incoming.message {
            Message::Request { .. } => self.waiting.push_back(incoming),
            Message::Notification { method, params } if method == "cancel" => {
                let cancel: Option<Cancel> = serde_json::from_value(params.clone()).ok();
                self.cancelled |= cancel.is_some_and(|cancel| Some(cancel.event) == self.event());
            }
            // Notifications of later versions. Answers to nothing don't come.
            Message::Notification { .. } | Message::Answer { .. } => {}
        }
    }

    /// The next request.
    pub(crate) fn next(&mut self) -> Result<Incoming, Broken> {
        loop {
            if let Some(incoming) = self.waiting.pop_front() {
                return Ok(incoming);
            }
            let incoming = self.wire.receive()?;
            self.sort(incoming);
        }
    }

    pub(crate) fn begin(&mut self, params: Params, fds: Vec<OwnedFd>) {
        let until = Instant::now() + duration(params.deadline);
        self.cancelled = false;
        self.passed.clear();
        self.now = Some(Now { event: params.occasion.event(), params, until, fds });
    }

    pub(crate) fn greet(&mut self, hello: Hello) {
        self.hello = Some(hello);
    }

    /// Answers a request, with the descriptors that the method has passed.
    pub(crate) fn answer(&mut self, id: Id, outcome: Result<Value, Fault>) -> Result<(), Broken> {
        self.now = None;
        let mut fds = std::mem::take(&mut self.passed);
        if outcome.is_err() {
            fds.clear();
        }
        self.send(&Message::Answer { id, outcome, fds: fds.len() }, fds)
    }

    fn send(&mut self, message: &Message, fds: Vec<OwnedFd>) -> Result<(), Broken> {
        self.wire.queue(message, fds)?;
        self.wire.flush(true).map(drop)
    }
}

fn unexpected(call: &str, answer: &Answer) -> Fault {
    Fault::new(Code::Internal, format!("{call}: ckrun's answer is {}", answer.value()))
}
