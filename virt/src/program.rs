//! System calls that a stopped task is to make itself.
//!
//! Some state can only be read or set by the task that has it: signal actions, timers, its memory map, its credentials.
//! A [`Program`] is a list of such calls, with a data area for what they read and write. An argument may be the result
//! of an earlier call or a word that an earlier call has stored, so that `open`, `mmap` and `close` fit in one program.
//! The stub runs the list without coming back in between: about 0.1 µs a call, where a call made by ptrace alone costs
//! two stops.

use crate::Failure;
use nix::errno::Errno;
use std::borrow::Cow;

/// Bytes of one call as the stub reads it: `nr: u32, at64: u8, at32: u8, flags: u8, 0, args: [u64; 6], result: i64`.
pub(crate) const RECORD: usize = 64;
/// Where a record holds its result.
pub(crate) const RESULT: usize = 56;
/// The run ends when this call fails.
const STOP_AT_ERROR: u8 = 1;
/// What a call that was not reached answers: no call of the kernel does (errors end at -4095).
const NOT_REACHED: i64 = i64::MIN;

/// A list of calls and their data.
#[derive(Debug, Default, Clone)]
pub struct Program {
    calls: Vec<Planned>,
    data: Vec<u8>,
    links: Vec<(usize, usize)>,
}

#[derive(Debug, Clone)]
struct Planned {
    what: Cow<'static, str>,
    nr: u32,
    must: bool,
    args: [Arg; 6],
}

/// One argument of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// A number, or an address in the task.
    Value(u64),
    /// The address of a byte of the data area.
    Data(usize),
    /// The result of an earlier call.
    Result(Call),
    /// The `int` at this offset of the data area when the call is made: an element of what pipe2 has stored, say.
    Word(usize),
}

/// The handle of one call's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call(usize);

/// Bytes of the data area, aligned to 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Where they begin.
    pub offset: usize,
    /// How many they are.
    pub len: usize,
}

impl Place {
    /// The `int` found at `byte` of this place when the call is made.
    pub fn word(self, byte: usize) -> Arg {
        Arg::Word(self.offset + byte)
    }

    /// The address of byte `byte` of this place.
    pub fn at(self, byte: usize) -> Arg {
        Arg::Data(self.offset + byte)
    }
}

impl From<Place> for Arg {
    fn from(place: Place) -> Arg {
        Arg::Data(place.offset)
    }
}

impl From<Call> for Arg {
    fn from(call: Call) -> Arg {
        Arg::Result(call)
    }
}

macro_rules! values {
    ($($of:ty),*) => {$(
        impl From<$of> for Arg {
            /// Signed numbers are extended, as the kernel expects of a register.
            #[allow(clippy::cast_lossless, clippy::cast_sign_loss, clippy::cast_possible_wrap, clippy::allow_attributes)]
            fn from(value: $of) -> Arg {
                Arg::Value(value as u64)
            }
        }
    )*};
}
values!(u64, i64, usize, i32, u32);

impl Program {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// There is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// How many calls there are.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Bytes for the calls to read.
    pub fn put(&mut self, bytes: &[u8]) -> Place {
        let place = self.room(bytes.len());
        self.data[place.offset..][..bytes.len()].copy_from_slice(bytes);
        place
    }

    /// A string for the calls to read; its end is marked by a NUL.
    pub fn put_cstr(&mut self, bytes: &[u8]) -> Place {
        let place = self.room(bytes.len() + 1);
        self.data[place.offset..][..bytes.len()].copy_from_slice(bytes);
        place
    }

    /// `len` bytes of zeroes for a call to write to.
    pub fn room(&mut self, len: usize) -> Place {
        let offset = self.data.len();
        // An empty place must not share its address with the next one's bytes, so it takes room as well.
        self.data.resize((offset + len.max(1)).next_multiple_of(16), 0);
        Place { offset, len }
    }

    /// Stores `bytes` at `byte` of place `at`.
    pub fn fill(&mut self, at: Place, byte: usize, bytes: &[u8]) {
        self.data[at.offset + byte..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Stores the address of `to` at `byte` of place `at`: for structures that hold pointers.
    pub fn link(&mut self, at: Place, byte: usize, to: Place) {
        self.links.push((at.offset + byte, to.offset));
    }

    /// Adds call number `nr`. Its failure ends the run and reads `WHAT: reason`.
    pub fn call(&mut self, what: impl Into<Cow<'static, str>>, nr: libc::c_long, args: &[Arg]) -> Call {
        self.add(what.into(), nr, args, true)
    }

    /// Adds call number `nr`, whose failure is an answer like any other.
    pub fn attempt(&mut self, what: impl Into<Cow<'static, str>>, nr: libc::c_long, args: &[Arg]) -> Call {
        self.add(what.into(), nr, args, false)
    }

    fn add(&mut self, what: Cow<'static, str>, nr: libc::c_long, given: &[Arg], must: bool) -> Call {
        debug_assert!(given.len() <= 6, "a system call has six arguments at most");
        let mut args = [Arg::Value(0); 6];
        for (slot, arg) in args.iter_mut().zip(given) {
            *slot = *arg;
        }
        // The kernel's numbers of calls fit into 32 bits by its ABI: it reads eax.
        self.calls.push(Planned { what, nr: nr as u32, must, args });
        Call(self.calls.len() - 1)
    }

    /// Bytes that [`Program::encode`] will give.
    pub(crate) fn size(&self) -> usize {
        self.calls.len() * RECORD + self.data.len()
    }

    /// The records and then the data, for an area at address `base` of the task.
    pub(crate) fn encode(&self, base: u64) -> Vec<u8> {
        let data = self.calls.len() * RECORD;
        let mut bytes = Vec::with_capacity(self.size());
        for call in &self.calls {
            let (mut at64, mut at32, mut values) = (0_u8, 0_u8, [0_u64; 6]);
            for (k, arg) in call.args.iter().enumerate() {
                values[k] = match *arg {
                    Arg::Value(value) => value,
                    Arg::Data(offset) => base + (data + offset) as u64,
                    Arg::Result(Call(index)) => {
                        at64 |= 1 << k;
                        (index * RECORD + RESULT) as u64
                    }
                    Arg::Word(offset) => {
                        at32 |= 1 << k;
                        (data + offset) as u64
                    }
                };
            }
            bytes.extend(call.nr.to_ne_bytes());
            bytes.extend([at64, at32, if call.must { STOP_AT_ERROR } else { 0 }, 0]);
            bytes.extend(values.iter().flat_map(|value| value.to_ne_bytes()));
            bytes.extend(NOT_REACHED.to_ne_bytes());
        }
        bytes.extend(&self.data);
        for (at, to) in &self.links {
            let address = base + (data + to) as u64;
            bytes[data + at..][..size_of::<u64>()].copy_from_slice(&address.to_ne_bytes());
        }
        bytes
    }

    /// Reads what the area holds after the run.
    pub(crate) fn decode(&self, bytes: Vec<u8>) -> Result<Answers, Failure> {
        let results = self.results(&bytes)?;
        Ok(Answers { results, data: bytes, start: self.calls.len() * RECORD })
    }

    /// The results of the calls, none of which that had to succeed has failed.
    pub(crate) fn results(&self, bytes: &[u8]) -> Result<Vec<i64>, Failure> {
        let results: Vec<i64> = bytes
            .chunks_exact(RECORD)
            .take(self.calls.len())
            .filter_map(|record| Some(i64::from_ne_bytes(record[RESULT..].try_into().ok()?)))
            .collect();
        for (call, &result) in self.calls.iter().zip(&results) {
            if result == NOT_REACHED {
                return Err(Failure::new(format!("{} in the task", call.what), Errno::EINTR));
            }
            if let (true, Err(errno)) = (call.must, outcome(result)) {
                return Err(Failure::new(call.what.clone(), errno));
            }
        }
        Ok(results)
    }
}

/// What the calls of a program have answered.
#[derive(Debug)]
pub struct Answers {
    results: Vec<i64>,
    data: Vec<u8>,
    start: usize,
}

impl Answers {
    /// The result of one call.
    ///
    /// # Errors
    /// The call's own; only a call added by [`Program::attempt`] can have failed.
    pub fn of(&self, call: Call) -> Result<i64, Errno> {
        outcome(self.results.get(call.0).copied().unwrap_or(NOT_REACHED))
    }

    /// The bytes of a place after the run.
    pub fn get(&self, place: Place) -> &[u8] {
        self.data.get(self.start + place.offset..).and_then(|rest| rest.get(..place.len)).unwrap_or_default()
    }

    /// The 32-bit number at `byte` of a place.
    pub fn u32(&self, place: Place, byte: usize) -> u32 {
        let bytes = self.get(place).get(byte..byte + 4).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    }

    /// The 64-bit number at `byte` of a place.
    pub fn u64(&self, place: Place, byte: usize) -> u64 {
        let bytes = self.get(place).get(byte..byte + 8).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u64::from_ne_bytes)
    }
}

/// The kernel's convention: -4095 to -1 are errors.
fn outcome(result: i64) -> Result<i64, Errno> {
    match result {
        -4095..0 => Err(Errno::from_raw(-result as i32)),
        NOT_REACHED => Err(Errno::EINTR),
        _ => Ok(result),
    }
}
