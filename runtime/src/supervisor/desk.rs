//! What the supervisor answers to plugins: names, keys and values, signals. What only the holder of a stopped job can do it
//! passes on to him.

use super::errand::Errands;
use super::guest::Guest;
use super::keeper::Shelf;
use super::logs::Logs;
use super::record::{Record, in_table, socket_name};
use crate::error::Result;
use crate::intercept::listen::lock;
use crate::intercept::names::Name as Address;
use crate::intercept::pending::Pending;
use crate::intercept::{self, Claims, Route};
use crate::plugin::Calls;
use crate::plugin::attach::Bound;
use crate::state::InitProcess;
use ckrun_plugin::binding::Kind;
use ckrun_plugin::call::{Answer, Call, Signal, Unbind};
use ckrun_plugin::message::{Id as MessageId, Message};
use ckrun_plugin::{Binding, Code, Event, Fault, Level};
use ckrun_virt::fd::Renewed;
use ckrun_virt::proc::Stat;
use ckrun_virt::table::{Generation, Id, Table, Time, live};
use ckrun_virt::{Failure, Process};
use nix::poll::PollFlags;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// All that the supervisor has but the plugins themselves.
#[derive(Debug)]
pub struct Desk {
    /// The container's directory.
    pub home: PathBuf,
    /// What is known of the plugins.
    pub record: Record,
    /// What they write.
    pub logs: Logs,
    /// The job's first process.
    pub job: Option<Process>,
    /// The verb whose story is under way.
    pub owner: Option<Guest>,
    /// What the job asks for.
    pub(super) errands: Option<Errands>,
    /// What is answered for the job.
    claims: Option<Arc<Claims>>,
    /// Connected sockets, by the virtual names that they are bound to.
    pub sockets: BTreeMap<String, Rc<OwnedFd>>,
    /// The record as it was last written.
    written: Option<Record>,
    /// The calls that are being answered.
    pending: Pending,
    /// For what must not end with this process.
    pub shelf: Shelf,
    /// How often the verb that holds the job was asked for something.
    asked: u64,
}

impl Desk {
    /// For the container in `home`.
    pub fn new(home: &Path, record: Record, pending: Pending, shelf: Shelf) -> Desk {
        Desk {
            home: home.into(),
            record,
            logs: Logs::new(home.into()),
            job: None,
            owner: None,
            errands: None,
            claims: None,
            sockets: BTreeMap::new(),
            written: None,
            pending,
            shelf,
            asked: 0,
        }
    }

    /// Answers the system calls that come to `listener`, from now on.
    ///
    /// # Errors
    /// No thread can be started; the kernel's.
    pub fn listen(&mut self, listener: OwnedFd) -> Result<()> {
        let claims = Arc::new(self.record.claims(&self.home)?);
        intercept::listen::serve(listener, Arc::clone(&claims), self.pending)?;
        self.claims = Some(claims);
        Ok(())
    }

    /// Answers for the ends of connections that were made anew.
    pub fn renew(&mut self, connections: Vec<Renewed>) {
        self.record.renew(connections);
        if let Some(claims) = &self.claims {
            lock(&claims.used).clone_from(&self.record.used);
            lock(&claims.locals).clone_from(&self.record.locals);
        }
    }

    /// The job exists. A connection that a plugin has made for it is from now on the job's to close: who restores a job has
    /// those that it had already, and the first connect(2) of a new one gets them.
    pub fn part_with_sockets(&mut self) {
        for (name, fd) in std::mem::take(&mut self.sockets) {
            if self.record.job.generation == 0 {
                self.give(&name, &fd);
            }
        }
    }

    /// The next connect(2) to a name gets this connection.
    fn give(&self, name: &str, fd: &OwnedFd) {
        let name = name.parse().map(|address| socket_name(&address).to_string());
        let route = self.record.routes.iter().find(|route| Ok(&route.name) == name.as_ref());
        if let (Some(claims), Some(route), Ok(fd)) = (&self.claims, route, fd.try_clone()) {
            lock(&claims.given).insert(route.to.clone(), fd);
        }
    }

    /// Takes over the handles that the job has got from drivers meanwhile, and gives those that answer what has been
    /// bound.
    fn agree(&mut self) {
        let Some(claims) = &self.claims else { return };
        let handles = lock(&claims.handles).clone();
        self.record.learn(&handles);
        let real = |route: &Route| {
            let is = |(id, real): (Id, Id)| (id == Id::Socket(route.name.as_str().into())).then_some(real);
            let bound = self.record.bindings().filter_map(|(_, binding)| in_table(binding)).find_map(is)?;
            let Id::Socket(real) = bound else { return None };
            Address::bare(&real)
        };
        let mut routes = lock(&claims.routes);
        for route in routes.iter_mut() {
            if let Some(real) = real(route) {
                route.real = real;
            }
        }
        self.record.routes.clone_from(&routes);
        self.record.used.clone_from(&lock(&claims.used));
    }

    /// Writes the record if it has changed.
    pub fn save(&mut self) {
        let claims = self.claims.clone();
        let settling = claims.as_ref().map(|claims| claims.notes.settle());
        self.agree();
        // Before it is told anything it has nothing to say, and what another one has left must stay.
        if self.record.job.id.is_empty() {
            return;
        }
        if self.written.as_ref() != Some(&self.record) {
            if let Err(e) = self.record.write(&self.home) {
                return log::warn!("{e}");
            }
            self.written = Some(self.record.clone());
        }
        if let Some(settling) = settling {
            settling.settled();
        }
    }

    /// Takes over what a plugin has bound, in place of the same names, or of all that it had.
    ///
    /// # Errors
    /// The kernel's, when it is asked what is behind a descriptor.
    pub fn bind(&mut self, plugin: &str, bound: &[Bound], afresh: bool) -> Result<(), Failure> {
        let new = bound.iter().map(Bound::recorded).collect::<Result<Vec<Binding>, Failure>>()?;
        let Some(plugin) = self.record.plugin(plugin) else { return Ok(()) };
        if afresh {
            plugin.bindings.clear();
        }
        for (bound, binding) in bound.iter().zip(new) {
            let name = binding.virtual_name();
            if let (Some(claims), Binding::Handle { space, virtual_number, real_number }) =
                (&self.claims, &binding)
                && let Err(other) = lock(&claims.handles).bind(space, *virtual_number, *real_number)
            {
                log::warn!("{space} {virtual_number} and {other} are both {real_number}");
            }
            plugin.bindings.retain(|old| old.virtual_name() != name);
            plugin.bindings.push(binding);
            match &bound.fd {
                Some(fd) if bound.binding.kind() == Kind::Socket => {
                    drop(self.sockets.insert(name, Rc::clone(fd)))
                }
                _ => drop(self.sockets.remove(&name)),
            }
        }
        if self.claims.is_some() {
            for (name, fd) in std::mem::take(&mut self.sockets) {
                self.give(&name, &fd);
            }
        }
        Ok(())
    }

    /// Binds a handle.
    fn bind_handle(&mut self, plugin: &str, binding: Binding) -> Result<Answer, Fault> {
        let name = binding.virtual_name();
        let owner =
            self.record.bindings().find(|(_, old)| old.virtual_name() == name).map(|(owner, _)| owner);
        if let Some(owner) = owner.filter(|owner| *owner != plugin) {
            return Err(Fault::new(
                Code::InvalidParams,
                format!("bind: {name}: plugin {owner} has bound it"),
            ));
        }
        if let (Some(claims), Binding::Handle { space, virtual_number, real_number }) =
            (&self.claims, &binding)
        {
            lock(&claims.handles).bind(space, *virtual_number, *real_number).map_err(|other| {
                let why = format!("bind: {space} {other} is bound to {real_number} already");
                Fault::new(Code::InvalidParams, why)
            })?;
        }
        if let Some(plugin) = self.record.plugin(plugin) {
            plugin.bindings.retain(|old| old.virtual_name() != name);
            plugin.bindings.push(binding);
        }
        Ok(Answer::Nothing {})
    }

    fn unbind(&mut self, plugin: &str, name: &Unbind) -> Result<Answer, Fault> {
        let is_it = |binding: &Binding| match binding {
            Binding::Handle { space, virtual_number, .. } => {
                *space == name.space && *virtual_number == name.virtual_number
            }
            _ => false,
        };
        let unknown = || {
            Fault::new(
                Code::Unknown,
                format!("unbind: there is no handle {} {}", name.space, name.virtual_number),
            )
        };
        let bindings = &mut self.record.plugin(plugin).ok_or_else(unknown)?.bindings;
        let at = bindings.iter().position(is_it).ok_or_else(unknown)?;
        bindings.remove(at);
        if let Some(claims) = &self.claims {
            lock(&claims.handles).unbind(&name.space, name.virtual_number);
        }
        Ok(Answer::Nothing {})
    }

    fn signal(&self, signal: &Signal) -> Result<Answer, Fault> {
        let unknown = || Fault::new(Code::Unknown, format!("signal: there is no process {}", signal.pid));
        let table = self.look()?;
        let pid = i32::try_from(signal.pid).map_err(|_| unknown())?;
        let row = table.to_real(&Id::Process(pid)).ok_or_else(unknown)?;
        let (Id::Process(host), Some(started)) = (&row.real, row.started) else { return Err(unknown()) };
        // By its start too: the id may have been given to another since the look.
        let process = Process::open(nix::unistd::Pid::from_raw(*host), started).ok_or_else(unknown)?;
        let bad = |e: Failure| Fault::new(Code::InvalidParams, format!("signal: {e}"));
        process.signal_number(signal.signal).map_err(bad)?;
        Ok(Answer::Nothing {})
    }

    /// The job's tasks and descriptors at this moment.
    pub(super) fn look(&self) -> Result<Table, Fault> {
        let job = self.job.as_ref().ok_or_else(|| Fault::new(Code::State, "there is no job yet"))?;
        let failed = |why: String| Fault::new(Code::Internal, why);
        let now = Time::now();
        let generation = Generation::here(0, now).map_err(|e| failed(e.to_string()))?;
        let mut table = Table::new(generation);
        let init = job.pid();
        let seen = live::processes(init).and_then(|all| live::look(&all, live::depth(init)?));
        let seen = seen.map_err(|e| failed(e.to_string()))?;
        table.observe(&seen, now).map_err(|e| failed(e.to_string()))?;
        Ok(table)
    }

    /// Asks the verb that holds the job.
    fn relay(&mut self, call: &Call) -> Result<Answer, Fault> {
        let runs = || Fault::new(Code::State, format!("{}: nobody holds the job", call.name()));
        let owner = self.owner.as_mut().ok_or_else(runs)?;
        self.asked += 1;
        let id = MessageId::Text(format!("{} {}", call.name(), self.asked));
        let (method, params) = call.request();
        let message = Message::Request { id: id.clone(), method, params, fds: 0 };
        Ok(serde_json::from_value(owner.ask(&message, &id)?)?)
    }
}

impl Calls for Desk {
    fn call(&mut self, plugin: &str, _: Option<Event>, call: Call) -> Result<Answer, Fault> {
        let nobody = || Fault::new(Code::Internal, format!("there is no plugin {plugin}"));
        match call {
            Call::Translate(what) => {
                self.agree();
                self.translate(&what)
            }
            Call::Bind(binding) => self.bind_handle(plugin, binding),
            Call::Unbind(name) => self.unbind(plugin, &name),
            Call::Put(put) => {
                let area = &mut self.record.plugin(plugin).ok_or_else(nobody)?.area;
                area.put(put.key, put.value).map(|()| Answer::Nothing {})
            }
            Call::Get(get) => {
                let area = &self.record.plugin(plugin).ok_or_else(nobody)?.area;
                area.get(&get.key).map(|value| Answer::Value { value })
            }
            Call::Signal(signal) => self.signal(&signal),
            Call::Tasks {} | Call::Read(_) | Call::Write(_) | Call::Registers(_) => self.relay(&call),
            // Barriers don't get here.
            Call::Barrier(_) => Ok(Answer::Nothing {}),
        }
    }

    /// Whoever comes after this supervisor finds them, whenever it is killed.
    fn started(&mut self, plugin: &str, process: Pid) {
        if let Some(plugin) = self.record.plugin(plugin) {
            let started = Stat::of(process).map_or(0, |stat| stat.started);
            plugin.process = Some(InitProcess { pid: process.as_raw(), started });
        }
        self.save();
    }

    fn log(&mut self, plugin: &str, level: Level, message: &str) {
        self.logs.say(plugin, level, message);
    }

    fn polled(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let job = self.errands.iter().flat_map(Errands::polled).map(|fd| (fd, PollFlags::POLLIN));
        let bell = self.claims.iter().filter_map(|claims| claims.notes.bell());
        self.logs.polled().chain(job).chain(bell.map(|fd| (fd, PollFlags::POLLIN))).collect()
    }

    fn attend(&mut self, _: &[PollFlags]) {
        self.logs.attend();
        if let Some(errands) = &mut self.errands {
            errands.attend();
        }
    }
}
