//! The options: which faults, and when. Their grammar is in the README.

use ckrun_plugin::{After, Ckrun, Code, Fault, Grant};
use ckrun_softemu::control::When;
use ckrun_softemu::design::element::Element;
use std::path::{Path, PathBuf};

/// The names of the options.
const NAMES: [&str; 8] = ["at", "register", "memory", "emulator", "after", "cycle", "server", "slot"];

/// The most bytes of one fault in memory.
const MEMORY: usize = 4096;

/// Registers of `struct user_regs_struct`. On other machines ckrun's own names count.
#[cfg(target_arch = "x86_64")]
const REGISTERS: [&str; 27] = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
];

/// What becomes of the bytes that are there. Of a register, those of its number, lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// These are put in their place.
    Set(Vec<u8>),
    /// These bits are flipped.
    Xor(Vec<u8>),
}

impl Change {
    /// Its own bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Change::Set(bytes) | Change::Xor(bytes) => bytes,
        }
    }

    /// The bytes, or the number, that this makes of the old ones.
    pub fn of(&self, old: &[u8]) -> Vec<u8> {
        match self {
            Change::Set(new) => new.clone(),
            Change::Xor(mask) => old.iter().zip(mask).map(|(old, mask)| old ^ mask).collect(),
        }
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum One {
    /// In a register of a thread.
    Register {
        /// By the name of `struct user_regs_struct`.
        name: String,
        /// As the job sees it.
        tid: u64,
        /// Eight bytes.
        change: Change,
    },
    /// In the memory of a process.
    Memory {
        /// As the job sees it.
        pid: u64,
        /// Where.
        address: u64,
        /// At least one byte.
        change: Change,
    },
    /// In a slot of softemu.
    Emulator {
        /// The control socket.
        server: PathBuf,
        /// Which slot; the job's only one if None.
        slot: Option<usize>,
        /// Which element.
        element: Element,
        /// Which bit, from 0.
        bit: u32,
        /// When.
        when: When,
    },
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The `running` that they strike at.
    pub at: After,
    /// All of them.
    pub faults: Vec<One>,
}

impl Options {
    /// Reads them.
    ///
    /// # Errors
    /// Names the option, what it is and what it could be.
    pub fn of(ckrun: &Ckrun) -> Result<Options, Fault> {
        ckrun.expect_options(&NAMES)?;
        let given = |name: &str| ckrun.option(name);
        let at = match given("at") {
            None | Some("restart") => After::Restart,
            Some("init") => After::Init,
            Some("checkpoint") => After::Checkpoint,
            Some(other) => return Err(wrong("at", other, "must be restart, init or checkpoint")),
        };
        let mut faults = Vec::new();
        let each = |name: &'static str| given(name).into_iter().flat_map(|all| all.split('+'));
        for text in each("register") {
            faults.push(register(text).map_err(|why| wrong("register", text, &why))?);
        }
        for text in each("memory") {
            faults.push(memory(text).map_err(|why| wrong("memory", text, &why))?);
        }
        let when = when(&given)?;
        let slot = given("slot").filter(|text| *text != "any");
        let slot = slot.map(|text| text.parse().map_err(|_| wrong("slot", text, "must be any or a number")));
        let slot = slot.transpose()?;
        for text in each("emulator") {
            let (element, bit) = element(text).map_err(|why| wrong("emulator", text, &why))?;
            let server = server(given("server"))?;
            faults.push(One::Emulator { server, slot, element, bit, when });
        }
        if faults.is_empty() {
            let why = "there is no fault: give register=, memory= or emulator=";
            return Err(Fault::new(Code::InvalidParams, why));
        }
        for fault in &faults {
            let (needs, option) = match fault {
                One::Register { .. } => (Grant::Registers, "register"),
                One::Memory { .. } => (Grant::Memory, "memory"),
                One::Emulator { .. } => continue,
            };
            if at == After::Init {
                let why = format!("option {option}=: at=init there is no process yet");
                return Err(Fault::new(Code::InvalidParams, why));
            }
            if !ckrun.granted().contains(&needs) {
                let why = format!("option {option}=: the capability {} was not granted", needs.name());
                return Err(Fault::new(Code::Denied, why));
            }
        }
        Ok(Options { at, faults })
    }

    /// The faults in an emulator: server, element, bit.
    pub fn elements(&self) -> impl Iterator<Item = (&Path, &Element, u32)> {
        self.faults.iter().filter_map(|fault| match fault {
            One::Emulator { server, element, bit, .. } => Some((server.as_path(), element, *bit)),
            _ => None,
        })
    }
}

/// `rax@7:0x10`, `rax@7:xor=0x10`.
fn register(text: &str) -> Result<One, String> {
    let form = "must be NAME@TID:VALUE or NAME@TID:xor=MASK, numbers of up to 16 hexadecimal digits";
    let split = text.split_once('@').and_then(|(name, rest)| Some((name, rest.split_once(':')?)));
    let (name, (tid, change)) = split.ok_or(form)?;
    let tid = tid.parse().map_err(|_| format!("{tid:?} is no thread id: it {form}"))?;
    let number = |text: &str| hexadecimal(text).map(|n| n.to_le_bytes().to_vec()).ok_or(form);
    let change = match change.strip_prefix("xor=") {
        Some(mask) => Change::Xor(number(mask)?),
        None => Change::Set(number(change)?),
    };
    #[cfg(target_arch = "x86_64")]
    if !REGISTERS.contains(&name) {
        return Err(format!("there is no register {name:?}; there are {}", REGISTERS.join(", ")));
    }
    Ok(One::Register { name: name.into(), tid, change })
}

/// `7:0x7f00c0de1000:xor=01ff`, `7:0x7f00c0de1000:set=00`: the bytes in the order of their addresses.
fn memory(text: &str) -> Result<One, String> {
    let form = "must be PID:ADDRESS:xor=BYTES or PID:ADDRESS:set=BYTES, all but PID in hexadecimal digits";
    let parts: Vec<&str> = text.splitn(3, ':').collect();
    let [pid, address, change] = parts[..] else { return Err(form.into()) };
    let pid = pid.parse().map_err(|_| format!("{pid:?} is no process id: it {form}"))?;
    let address = hexadecimal(address).ok_or(form)?;
    let (how, digits) = change.split_once('=').ok_or(form)?;
    let bytes = bytes(digits).ok_or(form)?;
    if bytes.is_empty() || bytes.len() > MEMORY {
        return Err(format!("changes 1 to {MEMORY} bytes, not {}", bytes.len()));
    }
    let change = match how {
        "xor" => Change::Xor(bytes),
        "set" => Change::Set(bytes),
        _ => return Err(form.into()),
    };
    Ok(One::Memory { pid, address, change })
}

/// `shadow:3`, `ram:17:31`: the bit comes last.
fn element(text: &str) -> Result<(Element, u32), String> {
    let form = "must be ELEMENT:BIT, as shadow:3 or ram:17:31";
    let (element, bit) = text.rsplit_once(':').ok_or(form)?;
    let bit = bit.parse().map_err(|_| form)?;
    Ok((element.parse().map_err(|e| format!("{e}"))?, bit))
}

fn when<'a>(given: &impl Fn(&str) -> Option<&'a str>) -> Result<When, Fault> {
    let number = |name: &str, text: &str| text.parse().map_err(|_| wrong(name, text, "must be a number"));
    match (given("after"), given("cycle")) {
        (Some(_), Some(text)) => Err(wrong("cycle", text, "can't be given together with after=")),
        (_, Some(text)) => Ok(When::Cycle(number("cycle", text)?)),
        (Some(text), None) => Ok(When::Transactions(number("after", text)?)),
        (None, None) => Ok(When::Transactions(0)),
    }
}

/// The server's directory or its control socket.
fn server(given: Option<&str>) -> Result<PathBuf, Fault> {
    let text = given.unwrap_or_default();
    let mut path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err(wrong("server", text, "emulator= needs the absolute path of the emulator's server"));
    }
    if path.is_dir() {
        path.push("control");
    }
    Ok(path)
}

/// With or without 0x.
fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let good = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// Pairs of digits.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|n| u8::try_from(n).ok());
    rest.is_empty()
        .then(|| pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect())?
}

fn wrong(name: &str, value: &str, why: &str) -> Fault {
    Fault::new(Code::InvalidParams, format!("option {name}={value}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_written_in_one_word() {
        let change = Change::Set(0x10u64.to_le_bytes().into());
        assert_eq!(register("rax@7:0x10"), Ok(One::Register { name: "rax".into(), tid: 7, change }));
        let change = Change::Xor(u64::MAX.to_le_bytes().into());
        assert_eq!(
            register("rip@1:xor=ffffffffffffffff"),
            Ok(One::Register { name: "rip".into(), tid: 1, change })
        );
        let change = Change::Xor(vec![1, 0xff]);
        assert_eq!(memory("7:0x1000:xor=01ff"), Ok(One::Memory { pid: 7, address: 0x1000, change }));
        assert_eq!(element("ram:17:31"), Ok((Element::Ram(17), 31)));
        for wrong in ["rax", "rax@7", "rax@x:1", "rax@7:+1", "rax@7:0x", "rax@7:11111111111111111", "xax@7:1"]
        {
            assert!(register(wrong).is_err(), "{wrong}");
        }
        for wrong in ["7", "7:0", "7:0:ff", "7:0:xor=", "7:0:xor=f", "7:0:xor=+f", "7:0:and=ff", "x:0:set=1"]
        {
            assert!(memory(wrong).is_err(), "{wrong}");
        }
        for wrong in ["shadow", "shadow:x", "ram:3:", "shade:3"] {
            assert!(element(wrong).is_err(), "{wrong}");
        }
    }
}
