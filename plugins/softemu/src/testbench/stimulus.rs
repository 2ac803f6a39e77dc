//! The pseudo-random sequence of transactions. It depends on the seed and on the size of the RAM, on no reply: so that
//! several can be outstanding.

use crate::design::{interrupt, registers};
use crate::transaction::Request;

/// An endless sequence of transactions.
#[derive(Debug, Clone)]
pub struct Stimulus {
    state: u64,
    ram: u32,
}

impl Stimulus {
    /// The sequence of this seed, for a design with so many words of RAM.
    pub fn new(seed: u64, ram: u32) -> Stimulus {
        Stimulus { state: seed, ram }
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0, below `limit`.
    fn below(&mut self, limit: u32) -> u32 {
        (self.random() % u64::from(limit)) as u32
    }

    fn words(&mut self, most: u32) -> Vec<u32> {
        (0..=self.below(most)).map(|_| self.random() as u32).collect()
    }

    /// A place in the upper half of the RAM for at most 16 words.
    fn place(&mut self) -> u32 {
        self.ram / 2 + self.below(self.ram / 2 - 16)
    }
}

impl Iterator for Stimulus {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        Some(match self.below(100) {
            0..20 => Request::WriteRegister(registers::SCRATCH + self.below(16), self.random() as u32),
            20..35 => Request::ReadRegister(registers::SCRATCH + self.below(16)),
            35..45 => {
                let at = self.place();
                Request::WriteRam(at, self.words(16))
            }
            45..55 => {
                let at = self.place();
                Request::ReadRam(at, 1 + self.below(16))
            }
            55..57 => Request::ReadRam(self.below(self.ram / 2), 1),
            57..70 => Request::Push(self.words(8)),
            70..82 => Request::Pop(1 + self.below(12)),
            82..90 => Request::Step(u64::from(self.below(2000))),
            90..92 => Request::WriteRegister(registers::PERIOD, 100 + self.below(1000)),
            92..94 => Request::WriteRegister(registers::PENDING, interrupt::TIMER | interrupt::OUTPUT),
            94..96 => Request::WaitInterrupt(u64::from(self.below(5000))),
            96 => Request::ReadRegister(registers::RANDOM),
            97 => Request::ReadRegister(registers::PENDING),
            98 => Request::WriteRegister(registers::RANDOM, self.random() as u32),
            _ => Request::Cycle,
        })
    }
}
