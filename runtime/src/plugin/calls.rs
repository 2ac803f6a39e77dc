//! What plugins may ask, and when.

use ckrun_plugin::binding::Kind;
use ckrun_plugin::call::{Answer, Call, MEMORY};
use ckrun_plugin::{After, Code, Event, Fault, Grant, Level};
use nix::poll::PollFlags;
use nix::unistd::Pid;
use std::os::fd::BorrowedFd;

/// Who answers the calls of plugins: the one who has the job. Calls that the protocol forbids at the moment, those
/// without the capability, and barriers don't get here.
pub trait Calls {
    /// A call of `plugin`; `during` is the event that it has not answered yet.
    ///
    /// # Errors
    /// What the plugin is answered.
    fn call(&mut self, plugin: &str, during: Option<Event>, call: Call) -> Result<Answer, Fault>;

    /// A process of `plugin` has been started; nothing has been said to it.
    fn started(&mut self, _plugin: &str, _process: Pid) {}

    /// A log line of `plugin`.
    fn log(&mut self, plugin: &str, level: Level, message: &str);

    /// What else is to be waited for while plugins are; then [`Calls::attend`].
    fn polled(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        Vec::new()
    }

    /// Looks after that, without waiting. `found` is what poll(2) said of [`Calls::polled`].
    fn attend(&mut self, _found: &[PollFlags]) {}
}

/// Refuses what the protocol forbids. `after` is what `running` or `resume` say of it.
pub fn allowed(
    call: &Call,
    during: Option<Event>,
    after: Option<After>,
    grants: &[Grant],
) -> Result<(), Fault> {
    let refuse = |code, why: String| Err(Fault::new(code, format!("{}: {why}", call.name())));
    if let Some(needed) = call.needs()
        && !grants.contains(&needed)
    {
        let name = needed.name();
        return refuse(Code::Denied, format!("the capability {name} was not granted to this plugin"));
    }
    if call.needs_stillness() && !stands_still(during, after) {
        return match during {
            Some(event) => refuse(Code::State, format!("the job does not stand still at {event}")),
            None => refuse(Code::State, "the job runs".into()),
        };
    }
    if changes(call) && matches!(during, Some(Event::Precheckpoint | Event::Committed)) {
        return refuse(Code::State, "what is changed now would be in the job and not in its image".into());
    }
    match call {
        Call::Bind(binding) if binding.kind() != Kind::Handle => {
            refuse(Code::InvalidParams, format!("a {} is bound by an answer", binding.kind().name()))
        }
        Call::Unbind(name) if name.kind != Kind::Handle => {
            refuse(Code::InvalidParams, "only handles can be unbound".into())
        }
        Call::Read(read) if read.length > MEMORY => refuse(Code::Limit, too_long(read.length)),
        Call::Write(write) if write.data.0.len() as u64 > MEMORY => {
            refuse(Code::Limit, too_long(write.data.0.len() as u64))
        }
        _ => Ok(()),
    }
}

/// Whether it changes the job.
fn changes(call: &Call) -> bool {
    matches!(call, Call::Write(_)) || matches!(call, Call::Registers(of) if !of.set.is_empty())
}

fn too_long(bytes: u64) -> String {
    format!("at most {MEMORY} bytes, not {bytes}")
}

/// Whether the tasks exist and stand still while an event is under way.
fn stands_still(during: Option<Event>, after: Option<After>) -> bool {
    match during {
        Some(Event::Precheckpoint | Event::Committed | Event::Resume) => true,
        Some(Event::Running) => after != Some(After::Init),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckrun_plugin::Binding;
    use ckrun_plugin::call::Read;
    use ckrun_plugin::number::Hex;

    fn code(call: &Call, during: Option<Event>, after: Option<After>, grants: &[Grant]) -> Option<Code> {
        allowed(call, during, after, grants).err().and_then(|fault| fault.kind())
    }

    #[test]
    fn memory_needs_a_grant_and_a_job_that_stands_still() {
        let read = |length| Call::Read(Read { pid: 1, address: Hex(0), length });
        let (grants, at) = ([Grant::Memory], Some(Event::Precheckpoint));
        assert_eq!(code(&read(9), at, None, &grants), None);
        assert_eq!(code(&read(9), at, None, &[Grant::Signals]), Some(Code::Denied));
        assert_eq!(code(&read(MEMORY + 1), at, None, &grants), Some(Code::Limit));
        for event in [None, Some(Event::Presuspend), Some(Event::Restart), Some(Event::Check)] {
            assert_eq!(code(&read(9), event, None, &grants), Some(Code::State), "{event:?}");
        }
        let running = Some(Event::Running);
        assert_eq!(code(&read(9), running, Some(After::Init), &grants), Some(Code::State));
        assert_eq!(code(&read(9), running, Some(After::Restart), &grants), None);
    }

    #[test]
    fn only_handles_are_bound_by_a_call() {
        let device = Call::Bind(Binding::device("/dev/emu0", "/dev/null"));
        assert_eq!(code(&device, None, None, &[]), Some(Code::InvalidParams));
        assert_eq!(code(&Call::Bind(Binding::handle("s", 1, 2)), None, None, &[]), None);
    }
}
