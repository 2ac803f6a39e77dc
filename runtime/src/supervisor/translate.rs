//! The names of a job and of the host, as plugins ask for them (`translate`).

use super::desk::Desk;
use ckrun_plugin::binding::Name;
use ckrun_plugin::call::{Answer, Space, Translate};
use ckrun_plugin::{Binding, Code, Fault, Real};
use ckrun_virt::table::Id;
use std::path::Path;

impl Desk {
    /// Says what a name is on the other side.
    ///
    /// # Errors
    /// What the plugin is answered.
    pub(super) fn translate(&self, what: &Translate) -> Result<Answer, Fault> {
        let bad = |why: &str| Fault::new(Code::InvalidParams, format!("translate: {why}"));
        if what.kind != Space::Fd && what.virtual_name.is_some() == what.real.is_some() {
            return Err(bad("give one of virtual and real"));
        }
        match what.kind {
            Space::Pid | Space::Tid => self.translate_task(what),
            Space::Fd => match (what.pid, what.number) {
                (Some(pid), Some(number)) => self.translate_descriptor(pid, number),
                _ => Err(bad("kind fd needs pid and number")),
            },
            Space::Handle if what.space.is_none() => Err(bad("kind handle needs a space")),
            _ => self.translate_binding(what),
        }
    }

    fn translate_binding(&self, what: &Translate) -> Result<Answer, Fault> {
        let pair = |binding: &Binding| match (what.kind, binding) {
            (Space::Handle, Binding::Handle { space, virtual_number, real_number }) => (what.space.as_ref()
                == Some(space))
            .then_some((Name::Number(*virtual_number), Name::Number(*real_number))),
            (Space::Device, Binding::Device { .. })
            | (Space::Memory, Binding::Memory { .. })
            | (Space::Socket, Binding::Socket { .. }) => match binding.real() {
                Some(Real::Name(real)) => {
                    Some((Name::Text(binding.virtual_name()), Name::Text(real.clone())))
                }
                _ => None,
            },
            _ => None,
        };
        let pairs: Vec<(Name, Name)> =
            self.record.bindings().filter_map(|(_, binding)| pair(binding)).collect();
        let paths = matches!(what.kind, Space::Device | Space::Memory);
        // Of two that match, the longer path says more.
        let best = pairs.into_iter().filter_map(|(r#virtual, real)| {
            let (r#virtual, real, length) = match (&what.virtual_name, &what.real) {
                (Some(asked), _) => below(asked, r#virtual, real, paths)?,
                (_, Some(asked)) => {
                    let (real, r#virtual, length) = below(asked, real, r#virtual, paths)?;
                    (r#virtual, real, length)
                }
                _ => return None,
            };
            Some((length, Answer::Names { r#virtual, real }))
        });
        let best = best.max_by_key(|(length, _)| *length);
        best.map(|(_, answer)| answer)
            .ok_or_else(|| Fault::new(Code::Unknown, "translate: nothing is bound to that name"))
    }

    fn translate_task(&self, what: &Translate) -> Result<Answer, Fault> {
        let table = self.look()?;
        let thread = what.kind == Space::Tid;
        let id = |name: &Name| match name {
            Name::Number(number) => {
                let number = i32::try_from(*number).ok()?;
                Some(if thread { Id::Thread(number) } else { Id::Process(number) })
            }
            Name::Text(_) => None,
        };
        let unknown = || Fault::new(Code::Unknown, "translate: there is no such task");
        let row = match (&what.virtual_name, &what.real) {
            (Some(name), _) => id(name).and_then(|id| table.to_real(&id)),
            (_, Some(name)) => id(name).and_then(|id| table.to_virtual(&id)),
            _ => None,
        };
        let row = row.ok_or_else(unknown)?;
        let number = |id: &Id| match id {
            Id::Process(number) | Id::Thread(number) => u64::try_from(*number).ok().map(Name::Number),
            _ => None,
        };
        match (number(&row.id), number(&row.real)) {
            (Some(r#virtual), Some(real)) => Ok(Answer::Names { r#virtual, real }),
            _ => Err(unknown()),
        }
    }

    /// The names behind a descriptor.
    fn translate_descriptor(&self, pid: u64, number: u64) -> Result<Answer, Fault> {
        let unknown = || Fault::new(Code::Unknown, "translate: there is no such descriptor");
        let (Ok(pid), Ok(fd)) = (i32::try_from(pid), i32::try_from(number)) else { return Err(unknown()) };
        let table = self.look()?;
        let row = table.to_real(&Id::Descriptor { process: pid, fd }).ok_or_else(unknown)?;
        let (_, what) = row.description.ok_or_else(unknown)?;
        let name = String::from_utf8_lossy(what.as_ref()).into_owned();
        let mut kinds = [Space::Device, Space::Memory, Space::Socket].into_iter().filter_map(|kind| {
            let what = Translate {
                kind,
                virtual_name: Some(Name::Text(name.clone())),
                real: None,
                space: None,
                pid: None,
                number: None,
            };
            self.translate_binding(&what).ok()
        });
        // What nobody has bound is what it is.
        let same = || Answer::Names { r#virtual: Name::Text(name.clone()), real: Name::Text(name.clone()) };
        Ok(kinds.next().unwrap_or_else(same))
    }
}

/// The two names of what is asked for, which is `one` or below it, and how long that is.
fn below(asked: &Name, one: Name, other: Name, paths: bool) -> Option<(Name, Name, usize)> {
    if *asked == one {
        return Some((one, other, usize::MAX));
    }
    let (Name::Text(asked), Name::Text(one), Name::Text(other)) = (asked, &one, &other) else { return None };
    let rest = Path::new(asked).strip_prefix(one).ok().filter(|_| paths)?;
    let other = Path::new(other).join(rest).to_string_lossy().into_owned();
    Some((Name::Text(asked.clone()), Name::Text(other), one.len()))
}
