//! The general registers of x86-64.

use crate::resource::{Blocker, Stopped};
use crate::sys::ptrace::{self, Registers};

/// The registers as ptrace gives and takes them.
pub type Raw = Registers;
use serde::{Deserialize, Serialize};

/// `__USER_CS`, `__USER32_CS` and `__USER_DS` of `asm/segment.h`.
const CODE: u64 = 0x33;
const CODE_32: u64 = 0x23;
const DATA: u64 = 0x2b;
/// In a selector: the segment is described by the process's own table.
const LOCAL_TABLE: u64 = 4;
/// `NT_X86_SHSTK` of `linux/elf.h`.
const SHADOW_STACK: usize = 0x204;

const ONLY_64: &str = "only 64-bit programs can be checkpointed";

macro_rules! general {
    ($($field:ident),*) => {
        /// The general registers of one thread, as an image holds them. The names are the kernel's
        /// (`user_regs_struct`).
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub struct General {
            $(
                #[allow(missing_docs, clippy::allow_attributes)]
                #[serde(with = "hex")]
                pub $field: u64,
            )*
        }

        impl From<&Registers> for General {
            fn from(regs: &Registers) -> Self {
                General { $($field: regs.$field),* }
            }
        }

        impl From<&General> for Registers {
            fn from(general: &General) -> Self {
                Registers { $($field: general.$field),* }
            }
        }
    };
}

general!(
    r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, eflags, rsp,
    ss, fs_base, gs_base, ds, es, fs, gs
);

impl General {
    /// The registers to give to a new thread.
    ///
    /// # Errors
    /// What is wrong with them: an image may come from anywhere.
    pub fn checked(&self) -> Result<Registers, String> {
        let regs = Registers::from(self);
        segments(&regs).map_or(Ok(regs), |(what, why)| Err(format!("{what}: {why}")))
    }
}

/// Names a process whose program is one of 32 bits, which can be seen while it runs.
pub fn program(task: &Stopped) -> Option<Blocker> {
    // The auxiliary vector is of pairs of a key, which is a small number, and a value that is not 0: the key is of 64 bits,
    // or one of 32 that the value follows. The file itself tells it too, but who watches it would be told of that.
    let auxv = crate::proc::read(&format!("/proc/{}/auxv", task.host)).ok()?;
    let key = u64::from_ne_bytes(*auxv.first_chunk()?);
    (key >> 32 != 0).then(|| Blocker {
        pid: task.pid,
        comm: task.comm(),
        what: "32-bit program".to_owned(),
        why: ONLY_64.to_owned(),
        remedy: None,
    })
}

/// What a stopped thread has that these registers can't express.
pub fn blocker(task: &Stopped, regs: &Registers) -> Option<Blocker> {
    let (what, why) = segments(regs).or_else(|| shadow_stack(task))?;
    Some(Blocker { pid: task.pid, comm: task.comm(), what, why: why.to_owned(), remedy: None })
}

fn segments(regs: &Registers) -> Option<(String, &'static str)> {
    if regs.cs == CODE_32 {
        return Some(("32-bit code".to_owned(), ONLY_64));
    }
    let all = [regs.cs, regs.ss, regs.ds, regs.es, regs.fs, regs.gs];
    if let Some(selector) = all.iter().find(|&selector| selector & LOCAL_TABLE != 0) {
        return Some((
            format!("segment {selector:#x}"),
            "the process's own segments (modify_ldt) are not carried",
        ));
    }
    let usual = regs.cs == CODE && all[1..].iter().all(|&selector| selector & !3 == 0 || selector == DATA);
    if !usual {
        let selector = all.iter().find(|&&s| s & !3 != 0 && s != DATA && s != CODE).unwrap_or(&regs.cs);
        return Some((format!("segment {selector:#x}"), "32-bit thread-local segments are not carried"));
    }
    None
}

fn shadow_stack(task: &Stopped) -> Option<(String, &'static str)> {
    // The register set exists (the call succeeds) only while the thread has a shadow stack.
    ptrace::regset(task.host, SHADOW_STACK, 8).ok()?;
    Some(("shadow stack".to_owned(), "its contents and its pointer can't be set by anyone else"))
}

/// Numbers as text: `"0x7ffd6000"`. JSON's own numbers lose bits in many readers, and hexadecimal is what people compare.
pub(crate) mod hex {
    use crate::hex::Hex;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &u64, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(&format_args!("{value:#x}"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        Hex::deserialize(from).map(|number| number.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual() -> General {
        // SAFETY: a struct of integers, for which zeroes are a value.
        let zero: Registers = unsafe { std::mem::zeroed() };
        let mut general = General::from(&zero);
        (general.cs, general.ss) = (CODE, DATA);
        general
    }

    #[test]
    fn every_register_survives_the_text() {
        let mut general = usual();
        (general.rax, general.orig_rax, general.fs_base) = (u64::MAX - 515, 230, 0x7fff_1234_5678);
        let text = serde_json::to_string(&general).unwrap();
        assert!(text.contains(r#""orig-rax":"0xe6""#), "{text}");
        assert_eq!(serde_json::from_str::<General>(&text).unwrap(), general);
        assert_eq!(General::from(&general.checked().unwrap()), general);
        assert!(serde_json::from_str::<General>(&text.replace("0xe6", "0x+e6")).is_err());
        assert!(serde_json::from_str::<General>(&text.replace("0xe6", "230")).is_err());
    }

    #[test]
    fn segments_that_are_not_carried_are_named() {
        for (cs, fs, word) in
            [(CODE_32, 0, "32-bit"), (CODE, 0x0f, "modify_ldt"), (CODE, 0x63, "thread-local")]
        {
            let said = General { cs, fs, ..usual() }.checked().unwrap_err();
            assert!(said.contains(word), "{said}");
        }
    }
}
