//! The design as its bus sees it: registers, RAM, the FIFOs' ends.

use super::{Design, stage};

/// Read only: the letters `SOFT`.
pub const ID: u32 = 0;
/// Read only: see [`status`].
pub const STATUS: u32 = 1;
/// Which interrupts raise the line, see [`interrupt`](super::interrupt).
pub const ENABLE: u32 = 2;
/// Which interrupts have come; writing ones clears those.
pub const PENDING: u32 = 3;
/// The timer's period in cycles, 0 stops it. Writing it starts the timer anew.
pub const PERIOD: u32 = 4;
/// Read only: cycles until the timer runs out.
pub const TIMER: u32 = 5;
/// The pseudo-random source; what is written is mixed in.
pub const RANDOM: u32 = 6;
/// What the pipeline multiplies by; the lowest bit counts as set.
pub const KEY: u32 = 7;
/// The pipeline's accumulator. Writing sets the shadow too.
pub const ACCUMULATOR: u32 = 8;
/// Read only: words in the input FIFO.
pub const INPUT: u32 = 9;
/// Read only: words in the output FIFO.
pub const OUTPUT: u32 = 10;
/// Read only: words of RAM.
pub const RAM: u32 = 11;
/// Read only: words that each FIFO holds.
pub const FIFO: u32 = 12;
/// Read only: cycles of initialisation that are left, at most 2³² − 1.
pub const BOOT: u32 = 13;
/// The first of sixteen registers without a meaning.
pub const SCRATCH: u32 = 16;
/// How many registers there are; 14 and 15 are none.
pub const COUNT: u32 = 32;

/// What [`ID`] reads as.
pub const IDENTITY: u32 = 0x5446_4f53;

/// Bits of [`STATUS`].
pub mod status {
    /// Initialised.
    pub const READY: u32 = 1;
    /// The input FIFO is empty.
    pub const INPUT_EMPTY: u32 = 2;
    /// The input FIFO is full.
    pub const INPUT_FULL: u32 = 4;
    /// The output FIFO is empty.
    pub const OUTPUT_EMPTY: u32 = 8;
    /// The output FIFO is full.
    pub const OUTPUT_FULL: u32 = 16;
    /// The interrupt line is up.
    pub const INTERRUPT: u32 = 32;
    /// A word is in the pipeline.
    pub const BUSY: u32 = 64;
}

impl Design {
    /// The value of register `number`; `None` if there is no such register.
    pub fn read_register(&self, number: u32) -> Option<u32> {
        Some(match number {
            ID => IDENTITY,
            STATUS => self.status(),
            ENABLE => self.enable,
            PENDING => self.pending,
            PERIOD => self.period,
            TIMER => self.timer,
            RANDOM => self.random as u32,
            KEY => self.key,
            ACCUMULATOR => self.accumulator,
            INPUT => self.input.count(),
            OUTPUT => self.output.count(),
            RAM => self.parameters.ram,
            FIFO => self.parameters.fifo,
            BOOT => self.boot.min(u64::from(u32::MAX)) as u32,
            SCRATCH..COUNT => self.scratch[(number - SCRATCH) as usize],
            _ => return None,
        })
    }

    /// Writes register `number`. False if there is none or it can only be read.
    pub fn write_register(&mut self, number: u32, value: u32) -> bool {
        match number {
            ENABLE => self.enable = value,
            PENDING => self.pending &= !value,
            PERIOD => (self.period, self.timer) = (value, value),
            RANDOM => self.random ^= u64::from(value) << 16,
            KEY => self.key = value,
            ACCUMULATOR => (self.accumulator, self.shadow) = (value, value),
            SCRATCH..COUNT => self.scratch[(number - SCRATCH) as usize] = value,
            _ => return false,
        }
        true
    }

    /// `count` words of RAM from word `at` on; `None` if they are not all inside.
    pub fn read_ram(&self, at: u32, count: u32) -> Option<&[u32]> {
        self.ram.get(at as usize..(at as usize).checked_add(count as usize)?)
    }

    /// Writes words to RAM from word `at` on. False if they would not all be inside.
    pub fn write_ram(&mut self, at: u32, words: &[u32]) -> bool {
        let Some(place) = self.ram.get_mut(at as usize..at as usize + words.len()) else { return false };
        place.copy_from_slice(words);
        true
    }

    /// Pushes a word into the input FIFO. False if it is full.
    pub fn push(&mut self, word: u32) -> bool {
        self.input.push(word)
    }

    /// Pops a word from the output FIFO.
    pub fn pop(&mut self) -> Option<u32> {
        self.output.pop()
    }

    fn status(&self) -> u32 {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        bit(self.boot == 0, status::READY)
            | bit(self.input.is_empty(), status::INPUT_EMPTY)
            | bit(self.input.is_full(), status::INPUT_FULL)
            | bit(self.output.is_empty(), status::OUTPUT_EMPTY)
            | bit(self.output.is_full(), status::OUTPUT_FULL)
            | bit(self.interrupt(), status::INTERRUPT)
            | bit(self.stage != stage::IDLE, status::BUSY)
    }
}
