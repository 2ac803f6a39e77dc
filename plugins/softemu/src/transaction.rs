//! Transactions: what a testbench can ask of the design, what each costs in cycles, and the effect.
//!
//! | request | words | cycles | reply's words |
//! |---|---|---|---|
//! | read register | number | 1 | value |
//! | write register | number, value | 1 | |
//! | read RAM | first word, count | count | the words |
//! | write RAM | first word, the words | their number | |
//! | push | the words | 1 for each that found room | how many found room |
//! | pop | at most | 1 for each | the words |
//! | step | cycles low, high | so many | |
//! | wait for an interrupt | at most cycles low, high | until the line is up | register `pending` |
//! | cycle | | 0 | |
//! | digest | | 0 | 4, lowest first |
//!
//! The clock of the design stands still between transactions. That, and nothing else, makes a testbench's results
//! independent of the speed of hosts and links.

use crate::design::registers;
use crate::hardware::Hardware;
use std::fmt;

/// The most words of data in a transaction.
pub const MAX_WORDS: usize = 4096;

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Of a register by number.
    ReadRegister(u32),
    /// Number, value.
    WriteRegister(u32, u32),
    /// First word, count.
    ReadRam(u32, u32),
    /// First word, words.
    WriteRam(u32, Vec<u32>),
    /// Words into the input FIFO.
    Push(Vec<u32>),
    /// At most so many words from the output FIFO.
    Pop(u32),
    /// Let cycles pass.
    Step(u64),
    /// Let cycles pass until the interrupt line is up, at most so many.
    WaitInterrupt(u64),
    /// Nothing; the reply has the cycle, as every one.
    Cycle,
    /// Digest of the design's state.
    Digest,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Well.
    Done = 0,
    /// There is no such register or word, or too many words; nothing happened.
    Refused = 1,
    /// The request's sequence number was not the next one: a request was lost or doubled. The link is of no use
    /// any more.
    OutOfSequence = 2,
}

/// The answer to a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The request's number.
    pub sequence: u32,
    /// How it ended.
    pub status: Status,
    /// Whether the interrupt line is up.
    pub interrupt: bool,
    /// The cycle at which it had been served.
    pub cycle: u64,
    /// Its data.
    pub words: Vec<u32>,
}

/// A transaction that is being served. How its cycles are cut into pieces makes no difference.
#[derive(Debug)]
pub struct Work {
    task: Task,
    status: Status,
    words: Vec<u32>,
}

/// What takes time.
#[derive(Debug)]
enum Task {
    /// So many cycles.
    Pass(u64),
    /// At most so many, until the interrupt line is up.
    UntilInterrupt(u64),
    /// These words, from the one of this number on.
    Push(Vec<u32>, usize),
    /// Until there are so many words.
    Pop(usize),
}

impl Work {
    /// Begins a transaction: all of its effect but what takes time.
    pub fn begin(design: &mut impl Hardware, request: &Request) -> Work {
        let done = |words| Some((Task::Pass(0), words));
        let pass = |cycles: usize, words| (Task::Pass(cycles as u64), words);
        let outcome = match request {
            Request::ReadRegister(number) => design.read_register(*number).map(|value| pass(1, vec![value])),
            Request::WriteRegister(number, value) => {
                design.write_register(*number, *value).then(|| pass(1, Vec::new()))
            }
            Request::ReadRam(_, count) if *count as usize > MAX_WORDS => None,
            Request::ReadRam(at, count) => design.read_ram(*at, *count).map(|words| pass(words.len(), words)),
            Request::WriteRam(at, words) => {
                design.write_ram(*at, words).then(|| pass(words.len(), Vec::new()))
            }
            Request::Push(words) => Some((Task::Push(words.clone(), 0), Vec::new())),
            Request::Pop(most) => Some((Task::Pop((*most as usize).min(MAX_WORDS)), Vec::new())),
            Request::Step(cycles) => Some((Task::Pass(*cycles), Vec::new())),
            Request::WaitInterrupt(cycles) => Some((Task::UntilInterrupt(*cycles), Vec::new())),
            Request::Cycle => done(Vec::new()),
            Request::Digest => {
                let digest = design.digest();
                done((0..4).map(|n| (digest >> (32 * n)) as u32).collect())
            }
        };
        let status = if outcome.is_some() { Status::Done } else { Status::Refused };
        let (task, words) = outcome.unwrap_or((Task::Pass(0), Vec::new()));
        Work { task, status, words }
    }

    /// Lets at most `cycles` of its cycles pass, 1 or more. True when the transaction is done.
    pub fn advance(&mut self, design: &mut impl Hardware, cycles: u64) -> bool {
        match &mut self.task {
            Task::Pass(left) => {
                let now = cycles.min(*left);
                design.step(now);
                *left -= now;
                *left == 0
            }
            Task::UntilInterrupt(left) => {
                *left -= design.step_until_interrupt(cycles.min(*left));
                *left == 0 || design.interrupt()
            }
            Task::Push(words, pushed) => {
                for _ in 0..cycles {
                    if *pushed == words.len() || !design.push(words[*pushed]) {
                        return true;
                    }
                    *pushed += 1;
                    design.step(1);
                }
                *pushed == words.len()
            }
            Task::Pop(most) => {
                for _ in 0..cycles {
                    let room = self.words.len() < *most;
                    let Some(word) = room.then(|| design.pop()).flatten() else { return true };
                    self.words.push(word);
                    design.step(1);
                }
                self.words.len() == *most
            }
        }
    }

    /// The reply, when it is done.
    pub fn reply(mut self, design: &impl Hardware, sequence: u32) -> Reply {
        match self.task {
            Task::UntilInterrupt(_) => self.words.extend(design.read_register(registers::PENDING)),
            Task::Push(_, pushed) => self.words.push(pushed as u32),
            Task::Pass(_) | Task::Pop(_) => {}
        }
        Reply {
            sequence,
            status: self.status,
            interrupt: design.interrupt(),
            cycle: design.cycle(),
            words: self.words,
        }
    }
}

/// Serves a whole transaction at once. The reply has the sequence number 0.
pub fn execute(design: &mut impl Hardware, request: &Request) -> Reply {
    let mut work = Work::begin(design, request);
    while !work.advance(design, u64::MAX) {}
    work.reply(design, 0)
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::ReadRegister(number) => write!(f, "read register {number}"),
            Request::WriteRegister(number, value) => write!(f, "write register {number} {value:08x}"),
            Request::ReadRam(at, count) => write!(f, "read ram {at} {count}"),
            Request::WriteRam(at, words) => write!(f, "write ram {at}{}", Words(words)),
            Request::Push(words) => write!(f, "push{}", Words(words)),
            Request::Pop(most) => write!(f, "pop {most}"),
            Request::Step(cycles) => write!(f, "step {cycles}"),
            Request::WaitInterrupt(cycles) => write!(f, "wait {cycles}"),
            Request::Cycle => f.write_str("cycle"),
            Request::Digest => f.write_str("digest"),
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match self.status {
            Status::Done => "done",
            Status::Refused => "refused",
            Status::OutOfSequence => "out of sequence",
        };
        let line = if self.interrupt { " interrupt" } else { "" };
        write!(f, "{} {status}{line}{}", self.cycle, Words(&self.words))
    }
}

/// Words as the log shows them, each after a space.
struct Words<'a>(&'a [u32]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|word| write!(f, " {word:08x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::design::{Design, Parameters};

    #[test]
    fn slices_make_no_difference() {
        let requests = [
            Request::WriteRegister(registers::PERIOD, 77),
            Request::WriteRegister(registers::ENABLE, 2),
            Request::Push(vec![5; 30]),
            Request::WaitInterrupt(1000),
            Request::WriteRegister(registers::PENDING, u32::MAX),
            Request::Step(33),
            Request::WaitInterrupt(10),
            Request::Pop(20),
            Request::ReadRam(1000, 25),
            Request::ReadRam(0, 25),
            Request::Digest,
        ];
        let mut whole = Design::new(Parameters { ram: 1024, fifo: 16, boot: 0 });
        let mut sliced = whole.clone();
        for request in &requests {
            let mut work = Work::begin(&mut sliced, request);
            while !work.advance(&mut sliced, 1) {}
            assert_eq!(work.reply(&sliced, 0), execute(&mut whole, request), "{request}");
        }
        assert_eq!(whole, sliced);
    }
}
