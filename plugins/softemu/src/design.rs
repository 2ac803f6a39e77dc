//! The design: a small accelerator, simulated cycle by cycle.
//!
//! ```text
//!            ┌──────────┐   ┌──────┐  mix   multiply  store   ┌──────────┐
//!  push ────▶│ in FIFO  │──▶│ word │──▶ accumulator ──▶ RAM ─▶│ out FIFO │────▶ pop
//!            └──────────┘   └──────┘    = shadow?     (low    └──────────┘
//!                                          │           half)        │
//!   timer ──▶ pending & enable ◀───────────┴────────────────────────┘
//!                    └──▶ interrupt line
//! ```
//!
//! After power on it works for some millions of cycles, by option, before it is ready: it fills the RAM from its
//! pseudo-random source, each word from the one before it, so that nothing can take a short cut.
//!
//! The state after n cycles and a sequence of accesses is the same everywhere, bit for bit: integers only, no clock, no
//! addresses. Everything that a flip-flop would hold is in [`Design`], and all of it is in the digest.

pub mod element;
mod fifo;
pub mod registers;

pub use fifo::Fifo;

use crate::error::{Error, Result};
use xxhash_rust::xxh3::xxh3_128;

/// What a state file and the design that loads it must have in common, beside the parameters. To be changed whenever
/// the meaning of a bit of the state changes.
const LAYOUT: &str = "softemu 1: cycle boot random stage word accumulator shadow key timer period enable pending \
                      scratch[16] in out ram; mix multiply store; xorshift64";

/// Sizes of a design. Two designs of the same sizes are the same design.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::Args)]
pub struct Parameters {
    /// Words of 32 bits of RAM: a power of two, 1024 (4 KiB) to 4194304 (16 MiB)
    #[arg(long, value_name = "WORDS", default_value_t = 65536)]
    pub ram: u32,
    /// Words that each FIFO holds: a power of two, 4 to 4096
    #[arg(long, value_name = "WORDS", default_value_t = 64)]
    pub fifo: u32,
    /// Cycles of work between power on and ready
    #[arg(long, value_name = "CYCLES", default_value_t = 10_000_000)]
    pub boot: u64,
}

impl Parameters {
    /// The parameters, if such a design can be.
    pub fn checked(self) -> Result<Parameters> {
        let within = |what: &str, n: u32, low: u32, high: u32| {
            if n.is_power_of_two() && (low..=high).contains(&n) {
                return Ok(());
            }
            Err(Error::Argument {
                what: format!("{what} of {n} words"),
                why: format!("must be a power of two from {low} to {high}"),
            })
        };
        within("ram", self.ram, 1 << 10, 1 << 22)?;
        within("fifo", self.fifo, 4, 1 << 12)?;
        Ok(self)
    }

    /// The digest of the design: of its parameters and of the layout of its state.
    pub fn digest(&self) -> u128 {
        let mut bytes = LAYOUT.as_bytes().to_vec();
        bytes.extend(self.ram.to_le_bytes());
        bytes.extend(self.fifo.to_le_bytes());
        bytes.extend(self.boot.to_le_bytes());
        xxh3_128(&bytes)
    }
}

/// Stages of the pipeline, one bit each. As in hardware that is encoded so, a value with none or several bits set
/// matches no stage: the pipeline hangs.
mod stage {
    pub const IDLE: u32 = 1;
    pub const MIX: u32 = 2;
    pub const MULTIPLY: u32 = 4;
    pub const STORE: u32 = 8;
    pub const OUTPUT: u32 = 16;
}

/// Bits of the registers `pending` and `enable`.
pub mod interrupt {
    /// The design has become ready.
    pub const READY: u32 = 1;
    /// The timer has run out.
    pub const TIMER: u32 = 2;
    /// A word has come into the output FIFO.
    pub const OUTPUT: u32 = 4;
    /// The input FIFO has become empty.
    pub const INPUT: u32 = 8;
    /// The accumulator and its shadow differ: a fault has been detected.
    pub const FAULT: u32 = 16;
}

/// All state elements of a design.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Design {
    pub(crate) parameters: Parameters,
    pub(crate) cycle: u64,
    pub(crate) boot: u64,
    pub(crate) random: u64,
    pub(crate) stage: u32,
    pub(crate) word: u32,
    pub(crate) accumulator: u32,
    pub(crate) shadow: u32,
    pub(crate) key: u32,
    pub(crate) timer: u32,
    pub(crate) period: u32,
    pub(crate) enable: u32,
    pub(crate) pending: u32,
    pub(crate) scratch: [u32; 16],
    pub(crate) input: Fifo,
    pub(crate) output: Fifo,
    pub(crate) ram: Vec<u32>,
}

impl Design {
    /// A design at power on.
    pub fn new(parameters: Parameters) -> Design {
        Design {
            parameters,
            cycle: 0,
            boot: parameters.boot,
            random: 0x9e37_79b9_7f4a_7c15,
            stage: stage::IDLE,
            word: 0,
            accumulator: 0,
            shadow: 0,
            key: 0x85eb_ca6b,
            timer: 0,
            period: 0,
            enable: 0,
            pending: if parameters.boot == 0 { interrupt::READY } else { 0 },
            scratch: [0; 16],
            input: Fifo::new(parameters.fifo),
            output: Fifo::new(parameters.fifo),
            ram: vec![0; parameters.ram as usize],
        }
    }

    /// Its sizes.
    pub fn parameters(&self) -> Parameters {
        self.parameters
    }

    /// Cycles since power on.
    pub fn cycle(&self) -> u64 {
        self.cycle
    }

    /// Whether the interrupt line is up.
    pub fn interrupt(&self) -> bool {
        self.pending & self.enable != 0
    }

    /// Digest of the whole state.
    pub fn digest(&self) -> u128 {
        xxh3_128(&crate::state::design_bytes(self))
    }

    /// Lets `cycles` cycles pass.
    pub fn step(&mut self, cycles: u64) {
        for _ in 0..cycles {
            self.tick();
        }
    }

    /// Lets cycles pass until the interrupt line is up, at most `cycles`. Returns how many have passed.
    pub fn step_until_interrupt(&mut self, cycles: u64) -> u64 {
        for passed in 0..cycles {
            if self.interrupt() {
                return passed;
            }
            self.tick();
        }
        cycles
    }

    fn tick(&mut self) {
        self.cycle = self.cycle.wrapping_add(1);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        if self.boot > 0 {
            return self.fill();
        }
        self.count();
        self.work();
        if self.accumulator != self.shadow {
            self.pending |= interrupt::FAULT;
        }
    }

    /// One cycle of the initialisation: a word of RAM from the pseudo-random source, itself and the one before it.
    fn fill(&mut self) {
        let mask = self.ram.len() - 1;
        let at = self.cycle as usize & mask;
        let before = self.ram[at.wrapping_sub(1) & mask];
        self.ram[at] = (self.ram[at].rotate_left(7) ^ self.random as u32).wrapping_add(before);
        self.boot -= 1;
        if self.boot == 0 {
            self.pending |= interrupt::READY;
        }
    }

    /// The timer's part of a cycle.
    fn count(&mut self) {
        if self.period == 0 {
            return;
        }
        if self.timer <= 1 {
            self.timer = self.period;
            self.pending |= interrupt::TIMER;
        } else {
            self.timer -= 1;
        }
    }

    /// The pipeline's part of a cycle.
    fn work(&mut self) {
        match self.stage {
            stage::IDLE => {
                if let Some(word) = self.input.pop() {
                    self.word = word;
                    self.stage = stage::MIX;
                    if self.input.is_empty() {
                        self.pending |= interrupt::INPUT;
                    }
                }
            }
            stage::MIX => {
                self.accumulator = self.accumulator.rotate_left(5) ^ self.word;
                self.shadow = self.shadow.rotate_left(5) ^ self.word;
                self.stage = stage::MULTIPLY;
            }
            stage::MULTIPLY => {
                self.accumulator = self.accumulator.wrapping_mul(self.key | 1);
                self.shadow = self.shadow.wrapping_mul(self.key | 1);
                self.stage = stage::STORE;
            }
            stage::STORE => {
                let at = self.accumulator as usize & (self.ram.len() / 2 - 1);
                self.ram[at] = self.ram[at].wrapping_add(self.accumulator);
                self.stage = stage::OUTPUT;
            }
            // With a full FIFO it waits here, and the input fills up behind it.
            stage::OUTPUT if self.output.push(self.accumulator) => {
                self.pending |= interrupt::OUTPUT;
                self.stage = stage::IDLE;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(boot: u64) -> Design {
        Design::new(Parameters { ram: 1024, fifo: 4, boot })
    }

    #[test]
    fn steps_add_up() {
        let (mut once, mut often) = (small(3000), small(3000));
        once.step(10_000);
        for n in [1, 2999, 0, 7000] {
            often.step(n);
        }
        assert_eq!(once.digest(), often.digest());
        assert_ne!(once.digest(), small(3000).digest());
    }

    #[test]
    fn the_state_is_the_same_everywhere() {
        let mut design = small(5000);
        design.step(6000);
        for word in 1..=4 {
            assert!(design.push(word));
        }
        design.step(100);
        assert_eq!(format!("{:032x}", design.digest()), "2beffa2a5b9aa2a7bc6e68983cea3d5e");
    }

    #[test]
    fn words_go_through_the_pipeline_in_order_and_wait_for_room() {
        let mut design = small(0);
        let mut expected = Vec::new();
        let mut accumulator = 0u32;
        for word in 1..=9u32 {
            accumulator = (accumulator.rotate_left(5) ^ word).wrapping_mul(design.key | 1);
            expected.push(accumulator);
            assert!(design.push(word), "word {word} finds room");
            design.step(50);
        }
        // Four in the output, one in the pipeline, four in the input: it is full.
        assert!(!design.push(10));
        let mut got = Vec::new();
        while let Some(word) = design.pop() {
            got.push(word);
            design.step(50);
        }
        assert_eq!(got, expected);
    }

    #[test]
    fn interrupts_come_by_timer_and_are_cleared() {
        let mut design = small(0);
        design.write_register(registers::PERIOD, 100);
        design.write_register(registers::ENABLE, interrupt::TIMER);
        assert_eq!(design.step_until_interrupt(1000), 100);
        assert_eq!(design.step_until_interrupt(1000), 0);
        design.write_register(registers::PENDING, interrupt::TIMER);
        assert_eq!(design.step_until_interrupt(1000), 100);
    }

    #[test]
    fn a_flip_in_the_accumulator_is_detected() {
        let mut design = small(0);
        design.accumulator ^= 1 << 9;
        design.step(1);
        assert_eq!(design.pending & interrupt::FAULT, interrupt::FAULT);
    }
}
