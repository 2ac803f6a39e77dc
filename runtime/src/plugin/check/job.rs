//! The job that does not exist: it answers a plugin's calls.

use crate::plugin::area::Area;
use crate::plugin::attach::Bound;
use crate::plugin::calls::Calls;
use ckrun_plugin::binding::Name;
use ckrun_plugin::call::{Answer, Call, Registers, Space, Task, Translate};
use ckrun_plugin::number::{Bytes, Hex};
use ckrun_plugin::{Binding, Code, Event, Fault, Level, Real};

/// The only process and the only thread.
const PID: u64 = 1;

/// Names of `struct user_regs_struct`.
const REGISTERS: [&str; 4] = ["rip", "rsp", "rax", "rflags"];

/// A job of one process without memory of its own: every address has zeroes.
#[derive(Debug, Default)]
pub struct NoJob {
    /// What the plugin has bound.
    pub bindings: Vec<Binding>,
    area: Area,
}

impl NoJob {
    /// Takes over what an answer has bound.
    pub fn bind(&mut self, bound: &[Bound]) {
        self.bindings = bound.iter().map(|bound| bound.binding.clone()).collect();
    }

    fn translate(&self, what: &Translate) -> Result<Answer, Fault> {
        let unknown = || Fault::new(Code::Unknown, "translate: there is no such name");
        let pair = |binding: &Binding| match binding {
            Binding::Handle { virtual_number, real_number, .. } => {
                (Name::Number(*virtual_number), Name::Number(*real_number))
            }
            other => {
                let real = match other.real() {
                    Some(Real::Name(name)) => name.clone(),
                    _ => String::new(),
                };
                (Name::Text(other.virtual_name()), Name::Text(real))
            }
        };
        let kind = match what.kind {
            Space::Device => ckrun_plugin::binding::Kind::Device,
            Space::Memory => ckrun_plugin::binding::Kind::Memory,
            Space::Socket => ckrun_plugin::binding::Kind::Socket,
            Space::Handle => ckrun_plugin::binding::Kind::Handle,
            Space::Pid | Space::Tid => {
                let one = Name::Number(PID);
                let asked = what.virtual_name.as_ref().or(what.real.as_ref());
                return if asked == Some(&one) {
                    Ok(Answer::Names { r#virtual: one.clone(), real: one })
                } else {
                    Err(unknown())
                };
            }
            Space::Fd => return Err(unknown()),
        };
        let same_space = |binding: &&Binding| match binding {
            Binding::Handle { space, .. } => what.space.as_ref() == Some(space),
            _ => true,
        };
        let mut all = self.bindings.iter().filter(|b| b.kind() == kind).filter(same_space).map(pair);
        all.find(|(name, real)| what.virtual_name.as_ref() == Some(name) || what.real.as_ref() == Some(real))
            .map(|(name, real)| Answer::Names { r#virtual: name, real })
            .ok_or_else(unknown)
    }
}

fn known(id: u64) -> Result<(), Fault> {
    if id == PID { Ok(()) } else { Err(Fault::new(Code::Unknown, format!("there is no task {id}"))) }
}

impl Calls for NoJob {
    fn call(&mut self, _: &str, _: Option<Event>, call: Call) -> Result<Answer, Fault> {
        let nothing = |()| Answer::Nothing {};
        match call {
            Call::Translate(what) => self.translate(&what),
            Call::Bind(binding) => {
                self.bindings.retain(|old| old.virtual_name() != binding.virtual_name());
                self.bindings.push(binding);
                Ok(Answer::Nothing {})
            }
            Call::Unbind(name) => {
                let (before, gone) = (self.bindings.len(), format!("{} {}", name.space, name.virtual_number));
                self.bindings.retain(|old| old.virtual_name() != gone);
                if self.bindings.len() < before {
                    Ok(Answer::Nothing {})
                } else {
                    Err(Fault::new(Code::Unknown, format!("unbind: there is no handle {gone}")))
                }
            }
            Call::Put(put) => self.area.put(put.key, put.value).map(nothing),
            Call::Get(get) => self.area.get(&get.key).map(|value| Answer::Value { value }),
            Call::Tasks {} => {
                Ok(Answer::Tasks { tasks: vec![Task { pid: PID, tid: PID, command: "job".into() }] })
            }
            Call::Read(read) => {
                known(read.pid)?;
                // Not more than the protocol allows, which has been looked at.
                Ok(Answer::Data { data: Bytes(vec![0; usize::try_from(read.length).unwrap_or(0)]) })
            }
            Call::Write(write) => known(write.pid).map(nothing),
            Call::Registers(of) => {
                known(of.tid)?;
                let mut registers: Registers = REGISTERS.map(|name| (name.to_owned(), Hex(0))).into();
                registers.extend(of.set);
                Ok(Answer::Registers { registers })
            }
            Call::Signal(signal) => known(signal.pid).map(nothing),
            // Barriers don't get here.
            Call::Barrier(_) => Ok(Answer::Nothing {}),
        }
    }

    fn log(&mut self, plugin: &str, level: Level, message: &str) {
        let level = match level {
            Level::Error => log::Level::Error,
            Level::Warn => log::Level::Warn,
            Level::Info => log::Level::Info,
            Level::Debug => log::Level::Debug,
        };
        log::log!(level, "plugin {plugin}: {message}");
    }
}
