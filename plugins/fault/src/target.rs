//! From a fault to what it changes: found and looked at first, struck afterwards.

use crate::fault::One;
use ckrun_plugin::number::Hex;
use ckrun_plugin::{Ckrun, Code, Event, Fault};
use ckrun_softemu::control::{self, Control, Listed, When};
use ckrun_softemu::design::Design;
use ckrun_softemu::design::element::Element;
use ckrun_softemu::plugin::{Lost, fault, owner};
use std::path::Path;
use std::time::{Duration, Instant};

/// A fault that can strike.
pub enum Shot {
    /// Register, thread, old and new value.
    Register(String, u64, u64, u64),
    /// Process, address, old and new bytes.
    Memory(u64, u64, Vec<u8>, Vec<u8>),
    /// Server, slot, fault.
    Emulator(Box<Control>, usize, control::Fault),
}

fn connect(ckrun: Option<&Ckrun>, server: &Path, owner: &str) -> Result<Control, Fault> {
    let until = ckrun.and_then(Ckrun::deadline);
    let left =
        until.map_or(Duration::from_secs(5), |until| until.saturating_duration_since(Instant::now()) / 2);
    let connected = Control::connect(server, owner).and_then(|mut control| {
        control.set_patience(left)?;
        Ok(control)
    });
    connected.map_err(|error| fault(&error, Lost::Nothing))
}

/// Whether the server's design has such an element.
pub fn possible(server: &Path, element: &Element, bit: u32) -> Result<(), Fault> {
    let listing = connect(None, server, "")?.list().map_err(|error| fault(&error, Lost::Nothing))?;
    Design::new(listing.parameters)
        .has(element, bit)
        .map_err(|error| Fault::new(Code::InvalidParams, format!("option emulator={element}:{bit}: {error}")))
}

/// Looks at what a fault is to change.
pub fn aim(ckrun: &mut Ckrun, one: &One) -> Result<Shot, Fault> {
    match one {
        One::Register { name, tid, change } => {
            let all = ckrun.registers(*tid, Default::default())?;
            let unknown = || {
                let names: Vec<&str> = all.keys().map(String::as_str).collect();
                let why = format!("thread {tid} has no register {name}; it has {}", names.join(", "));
                Fault::new(Code::InvalidParams, why)
            };
            let old = all.get(name).ok_or_else(unknown)?.0;
            let new = change.of(&old.to_le_bytes()).try_into().map(u64::from_le_bytes);
            Ok(Shot::Register(name.clone(), *tid, old, new.unwrap_or(old)))
        }
        One::Memory { pid, address, change } => {
            let length = change.bytes().len() as u64;
            let old = ckrun.read(*pid, *address, length)?;
            let new = change.of(&old);
            Ok(Shot::Memory(*pid, *address, old, new))
        }
        One::Emulator { server, slot, element, bit, when } => {
            let owner = ckrun.job().map(owner).unwrap_or_default();
            let mut control = connect(Some(ckrun), server, &owner)?;
            let listing = control.list().map_err(|error| fault(&error, Lost::Nothing))?;
            let slot = find(&listing.slots, *slot, &owner, server)?;
            // A slot that has been loaded has requests of the job in it, which it serves as soon as it goes on.
            if ckrun.event() == Some(Event::Running) && !slot.frozen && slot.served + slot.cycle > 0 {
                return Err(Fault::new(
                    Code::InvalidRequest,
                    format!(
                        "slot {} goes on already, so that nobody knows when the fault strikes: name this plugin before \
                         the emulator's",
                        slot.slot
                    ),
                ));
            }
            let armed = control::Fault { element: element.clone(), bit: *bit, at: *when };
            Ok(Shot::Emulator(Box::new(control), slot.slot, armed))
        }
    }
}

/// The job's slot.
fn find<'a>(
    slots: &'a [Listed],
    wanted: Option<usize>,
    owner: &str,
    server: &Path,
) -> Result<&'a Listed, Fault> {
    let path = server.display();
    let mine: Vec<&Listed> = slots.iter().filter(|slot| slot.owner.as_deref() == Some(owner)).collect();
    match (wanted, &mine[..]) {
        (Some(number), _) => mine.into_iter().find(|slot| slot.slot == number).ok_or_else(|| {
            Fault::unavailable(format!("slot {number} of {path} is not this job's ({owner})"))
        }),
        (None, [only]) => Ok(only),
        (None, []) => Err(Fault::unavailable(format!(
            "no slot of {path} is this job's ({owner}): the emulator's plugin has claimed none"
        ))),
        (None, several) => Err(Fault::unavailable(format!(
            "{} slots of {path} are this job's ({owner}): say which by slot=N",
            several.len()
        ))),
    }
}

impl Shot {
    /// Does it, and says what has changed.
    pub fn strike(self, ckrun: &mut Ckrun) -> Result<String, Fault> {
        match self {
            Shot::Register(name, tid, old, new) => {
                ckrun.registers(tid, [(name.clone(), Hex(new))].into())?;
                Ok(format!("{name} of thread {tid}: {old:#x} is {new:#x} now"))
            }
            Shot::Memory(pid, address, old, new) => {
                let (before, after) = (digits(&old), digits(&new));
                ckrun.write(pid, address, new)?;
                Ok(format!("process {pid} at {address:#x}: {before} is {after} now"))
            }
            Shot::Emulator(mut control, slot, armed) => {
                let when = match armed.at {
                    When::Transactions(0) => "is flipped now".into(),
                    When::Transactions(n) => format!("will be flipped after {n} transactions"),
                    When::Cycle(n) => format!("will be flipped at cycle {n}"),
                };
                control.fault(slot, &armed).map_err(|error| fault(&error, Lost::State))?;
                Ok(format!("bit {} of {} in slot {slot} {when}", armed.bit, armed.element))
            }
        }
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
