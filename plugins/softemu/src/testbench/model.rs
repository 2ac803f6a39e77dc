//! What the testbench knows about the design without asking it, so that it can tell a right reply from a wrong one.
//!
//! It knows the scratch registers, the upper half of the RAM (the accelerator writes to the lower one only), what
//! comes out of the FIFO for what was pushed, and the cost of each transaction. It does not know the contents of RAM
//! that it has not written or read, the timer, or the pseudo-random source: those are in the digest.

use crate::design::{interrupt, registers};
use crate::transaction::{Reply, Request, Status};
use std::collections::{HashMap, VecDeque};

/// The testbench's model of the design.
#[derive(Debug, Default)]
pub struct Model {
    cycle: u64,
    scratch: [Option<u32>; 16],
    ram: HashMap<u32, u32>,
    /// The first word of RAM that only the testbench writes.
    upper: u32,
    accumulator: u32,
    key: u32,
    output: VecDeque<u32>,
}

impl Model {
    /// A model of a design that has been initialised and that nobody has used yet.
    pub fn new(cycle: u64, ram: u32, key: u32) -> Model {
        Model { cycle, upper: ram / 2, key, ..Model::default() }
    }

    /// Words of RAM that the design has.
    pub fn ram_words(&self) -> u32 {
        self.upper * 2
    }

    /// Checks a reply, in order. The error says what it should have been.
    pub fn check(&mut self, request: &Request, reply: &Reply) -> Result<(), String> {
        if reply.status != Status::Done {
            return Err(format!("it was not done: {reply}"));
        }
        let words = &reply.words;
        let cost = match request {
            Request::ReadRegister(number) => {
                self.check_register(*number, one(words)?)?;
                1
            }
            Request::WriteRegister(number, value) => {
                if let Some(scratch) = self.scratch(*number) {
                    *scratch = Some(*value);
                }
                1
            }
            Request::ReadRam(at, count) => {
                self.check_ram(*at, words)?;
                same("words", words.len() as u64, u64::from(*count))?;
                u64::from(*count)
            }
            Request::WriteRam(at, written) => {
                self.ram.extend((*at..).zip(written.iter().copied()));
                written.len() as u64
            }
            Request::Push(pushed) => {
                let count = one(words)? as usize;
                for word in pushed.get(..count).ok_or("more words were pushed than there are")? {
                    let mixed = self.accumulator.rotate_left(5) ^ word;
                    self.accumulator = mixed.wrapping_mul(self.key | 1);
                    self.output.push_back(self.accumulator);
                }
                count as u64
            }
            Request::Pop(most) => {
                if words.len() > *most as usize {
                    return Err(format!("{} words instead of at most {most}", words.len()));
                }
                for word in words {
                    let right = self.output.pop_front().ok_or("a word came out that was never put in")?;
                    same("word from the FIFO", u64::from(*word), u64::from(right))?;
                }
                words.len() as u64
            }
            Request::Step(cycles) => *cycles,
            Request::WaitInterrupt(most) => {
                detected(one(words)?)?;
                let passed = reply.cycle.wrapping_sub(self.cycle);
                if passed > *most || (passed < *most && !reply.interrupt) {
                    return Err(format!(
                        "it ended after {passed} of {most} cycles, and without an interrupt"
                    ));
                }
                passed
            }
            Request::Cycle | Request::Digest => 0,
        };
        self.cycle += cost;
        same("cycle", reply.cycle, self.cycle)
    }

    fn check_register(&mut self, number: u32, value: u32) -> Result<(), String> {
        if number == registers::PENDING {
            detected(value)?;
        }
        let Some(scratch) = self.scratch(number) else { return Ok(()) };
        let right = *scratch.get_or_insert(value);
        same("value", u64::from(value), u64::from(right))
    }

    fn check_ram(&mut self, at: u32, words: &[u32]) -> Result<(), String> {
        for (at, word) in (at..).zip(words) {
            if at >= self.upper {
                let right = *self.ram.entry(at).or_insert(*word);
                same(&format!("word {at}"), u64::from(*word), u64::from(right))?;
            }
        }
        Ok(())
    }

    fn scratch(&mut self, number: u32) -> Option<&mut Option<u32>> {
        self.scratch.get_mut(number.checked_sub(registers::SCRATCH)? as usize)
    }
}

/// The design checks itself.
fn detected(pending: u32) -> Result<(), String> {
    if pending & interrupt::FAULT == 0 {
        return Ok(());
    }
    Err("the design has detected a fault: accumulator and shadow differ".into())
}

fn one(words: &[u32]) -> Result<u32, String> {
    match words {
        [word] => Ok(*word),
        _ => Err(format!("{} words instead of 1", words.len())),
    }
}

fn same(what: &str, is: u64, right: u64) -> Result<(), String> {
    if is == right { Ok(()) } else { Err(format!("{what}: it is {is:x}, and should be {right:x}")) }
}
