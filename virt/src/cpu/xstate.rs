//! The extended state of a thread: floating point, vector and matrix registers.

use super::layout::{HEADER, LEGACY, Layout, name, number};
use super::packed::Packed;
use crate::program::{Answers, Place, Program};
use crate::resource::{Resource, Stopped};
use crate::sys::ptrace;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `NT_X86_XSTATE` of `linux/elf.h`.
const KIND: usize = 0x202;
/// `NT_PRFPREG`: the legacy part alone, all that there is on a CPU without XSAVE.
const LEGACY_KIND: usize = 2;
/// Bytes of the legacy part that are reserved for software: the kernel tells there what the rest holds.
const SOFTWARE: std::ops::Range<usize> = 464..512;
/// Components 0 and 1, which the legacy part holds.
const IN_LEGACY: u64 = 3;
/// The component that holds the protection-key rights. The kernel keeps them apart from the rest.
const PKRU: u32 = 9;
/// The component that a process must ask for before its threads may use it.
const TILES: u32 = 18;

/// The extended state of one thread. Only components in use are held: one that is not has its initial value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Xstate {
    /// x87, MXCSR and xmm0 to xmm15 as FXSAVE lays them out, 512 bytes.
    legacy: Packed,
    /// The others, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    components: BTreeMap<String, Packed>,
}

impl Xstate {
    /// Reads the state of a stopped thread.
    ///
    /// # Errors
    /// `ESRCH` when it has been killed.
    pub fn read(pid: Pid) -> Result<Xstate, Failure> {
        let layout = Layout::host();
        let what = || format!("read the extended state of thread {pid}");
        let bytes = match ptrace::regset(pid, KIND, layout.size()) {
            Err(Errno::ENODEV) => {
                let mut bytes = ptrace::regset(pid, LEGACY_KIND, LEGACY).doing(what)?;
                bytes.resize(LEGACY + HEADER, 0);
                bytes
            }
            bytes => bytes.doing(what)?,
        };
        Xstate::take(layout, &bytes).ok_or_else(|| Failure::new(what(), Errno::EIO))
    }

    fn take(layout: &Layout, bytes: &[u8]) -> Option<Xstate> {
        let mut legacy = bytes.get(..LEGACY)?.to_vec();
        legacy[SOFTWARE].fill(0);
        let in_use = u64::from_ne_bytes(bytes.get(LEGACY..LEGACY + 8)?.try_into().ok()?);
        let mut components = BTreeMap::new();
        for component in 2..63 {
            let Some(part) = layout.part(component) else { continue };
            let value = bytes.get(part)?;
            // Some kernels leave out PKRU's bit though its value is there and not the initial one.
            let present = in_use & (1 << component) != 0;
            if present || (component == PKRU && value.iter().any(|&b| b != 0)) {
                components.insert(name(component), Packed(value.to_vec()));
            }
        }
        Some(Xstate { legacy: Packed(legacy), components })
    }

    /// The components in use that this CPU lacks or has in another size.
    pub fn missing(&self, layout: &Layout) -> Vec<String> {
        let there = |name: &str, value: &Packed| {
            number(name)
                .and_then(|number| layout.part(number))
                .is_some_and(|part| part.len() == value.0.len())
        };
        self.components
            .iter()
            .filter(|(name, value)| !there(name, value))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Gives the state to a stopped thread. One with [`Xstate::expansion`] must have run that before.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when [`Xstate::missing`] names something; `EINVAL` when this CPU does not take a value.
    pub fn write(&self, pid: Pid) -> Result<(), Failure> {
        let layout = Layout::host();
        let what = || format!("set the extended state of thread {pid}");
        let bytes = self.give(layout).ok_or_else(|| {
            let lacking = format!("{}: this host lacks {}", what(), self.missing(layout).join(", "));
            Failure::new(lacking, Errno::EOPNOTSUPP)
        })?;
        match ptrace::set_regset(pid, KIND, &bytes) {
            Err(Errno::ENODEV) => ptrace::set_regset(pid, LEGACY_KIND, &bytes[..LEGACY]).doing(what),
            set => set.doing(what),
        }
    }

    fn give(&self, layout: &Layout) -> Option<Vec<u8>> {
        let mut bytes = vec![0; layout.size()];
        bytes[..LEGACY].copy_from_slice(self.legacy.0.get(..LEGACY)?);
        let mut in_use = IN_LEGACY;
        for (name, value) in &self.components {
            let number = number(name)?;
            let room = bytes.get_mut(layout.part(number)?)?;
            if room.len() != value.0.len() {
                return None;
            }
            room.copy_from_slice(&value.0);
            in_use |= 1 << number;
        }
        bytes[LEGACY..LEGACY + 8].copy_from_slice(&in_use.to_ne_bytes());
        debug_assert!(bytes.len() >= LEGACY + HEADER);
        Some(bytes)
    }

    /// Code and its data (`rbx` points to them) that a new thread must run before it can take this state, if any.
    ///
    /// The kernel gives a thread room for the tiles of AMX only when it touches one for the first time; until then it
    /// answers `EINVAL` to a state with tiles. The process must have its [`Permission`] before.
    pub fn expansion(&self) -> Option<(&'static [u8], [u8; 64])> {
        const CODE: [u8; 16] = [
            0xc4, 0xe2, 0x78, 0x49, 0x03, // ldtilecfg [rbx]
            0xc4, 0xe2, 0x7b, 0x49, 0xc0, // tilezero tmm0
            0xc4, 0xe2, 0x78, 0x49, 0xc0, // tilerelease
            0xcc, // int3
        ];
        self.components.contains_key(&name(TILES)).then(|| {
            let mut config = [0; 64];
            // Palette 1; tile 0 has 64 bytes a row and 16 rows.
            (config[0], config[16], config[48]) = (1, 64, 16);
            (&CODE[..], config)
        })
    }
}

/// Which components a process may use beyond those that every process may (`ARCH_GET_XCOMP_PERM` of arch_prctl(2)). Its
/// restore must come before that of alternate signal stacks, whose size the kernel checks against it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Permission {
    /// The names of the components that it has asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extended_state: Vec<String>,
}

/// `asm/prctl.h`.
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;

impl Permission {
    /// The components that this CPU lacks.
    pub fn missing(&self, layout: &Layout) -> Vec<String> {
        let there = |name: &&String| number(name).is_some_and(|number| layout.part(number).is_some());
        self.extended_state.iter().filter(|name| !there(name)).cloned().collect()
    }
}

impl Resource for Permission {
    type Asked = Place;

    fn ask(program: &mut Program) -> Place {
        let place = program.room(8);
        // EINVAL from a kernel without AMX: the answer stays 0.
        let args = [ARCH_GET_XCOMP_PERM.into(), place.into()];
        program.attempt("ask for extended state permissions", libc::SYS_arch_prctl, &args);
        place
    }

    fn capture(_: &Stopped, asked: &Place, answers: &Answers) -> Result<Self, Failure> {
        let tiles = answers.u64(*asked, 0) & (1 << TILES) != 0;
        Ok(Permission { extended_state: tiles.then(|| name(TILES)).into_iter().collect() })
    }

    fn restore(&self, program: &mut Program) {
        for component in self.extended_state.iter().filter_map(|name| number(name)) {
            let args = [ARCH_REQ_XCOMP_PERM.into(), component.into()];
            program.call(format!("permit {}", name(component)), libc::SYS_arch_prctl, &args);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ptrace::Change;
    use nix::sys::wait::WaitStatus;
    use std::process::{Child, Command};

    /// A process of our own, stopped.
    struct Held(Child, Pid);

    impl Held {
        fn new() -> Held {
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            let pid = Pid::from_raw(child.id().cast_signed());
            ptrace::seize(pid, 0).unwrap();
            ptrace::interrupt(pid).unwrap();
            assert_eq!(ptrace::wait(pid, 0).unwrap(), Some((pid, Change::Stopped(libc::SIGTRAP))));
            Held(child, pid)
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            let _ = self.0.kill();
            while !matches!(
                nix::sys::wait::waitpid(self.1, None),
                Err(_) | Ok(WaitStatus::Signaled(..) | WaitStatus::Exited(..))
            ) {}
        }
    }

    /// A state with every component that this host offers in use.
    fn full() -> Xstate {
        let layout = Layout::host();
        let mut legacy = vec![0; LEGACY];
        legacy[..2].copy_from_slice(&0x027f_u16.to_le_bytes());
        legacy[24..28].copy_from_slice(&0x9fc0_u32.to_le_bytes());
        legacy[160..416].copy_from_slice(&(0..=255).collect::<Vec<u8>>());
        let pattern = |part: std::ops::Range<usize>| Packed(part.map(|n| (n * 7 + 3) as u8).collect());
        let components = [2, 5, 6, 7]
            .into_iter()
            .filter_map(|component| Some((name(component), pattern(layout.part(component)?))))
            .collect();
        Xstate { legacy: Packed(legacy), components }
    }

    #[test]
    fn what_a_thread_is_given_it_has() {
        let held = Held::new();
        let before = Xstate::read(held.1).unwrap();
        let mut given = full();
        given.write(held.1).unwrap();
        let read = Xstate::read(held.1).unwrap();
        // The kernel tells which bits of MXCSR the CPU has.
        given.legacy.0[28..32].copy_from_slice(&read.legacy.0[28..32]);
        assert_eq!(read, given);
        let text = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<Xstate>(&text).unwrap(), read);
        // Components that are not in use go back to their initial value.
        before.write(held.1).unwrap();
        assert_eq!(Xstate::read(held.1).unwrap(), before);
    }

    #[test]
    fn another_layout_gets_each_component_at_its_own_place() {
        let here = Layout::host();
        let mut bytes = full().give(here).unwrap();
        bytes[LEGACY] |= 3;
        assert_eq!(Xstate::take(here, &bytes).unwrap(), full());
    }

    #[test]
    fn what_the_host_lacks_is_named() {
        let mut state = full();
        state.components.insert("component-42".to_owned(), Packed(vec![1; 8]));
        state.components.insert("avx".to_owned(), Packed(vec![1; 8]));
        assert_eq!(state.missing(Layout::host()), ["avx", "component-42"]);
        let held = Held::new();
        let said = state.write(held.1).unwrap_err().to_string();
        assert!(said.contains("lacks avx, component-42"), "{said}");
    }
}
