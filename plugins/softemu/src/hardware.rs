//! What a server needs of a design, whatever simulates it.

use crate::design::element::Element;
use crate::design::{Design, Parameters};
use crate::error::Result;
use crate::state::{Unfit, design_bytes, read_design};
use std::fmt;
use xxhash_rust::xxh3::xxh3_128;

/// A design that is simulated cycle by cycle. Accesses take no time; cycles pass by [`Hardware::step`].
pub trait Hardware: Sized + fmt::Debug {
    /// Whether it has a test access port (JTAG).
    const HAS_PORT: bool = false;

    /// A design at power on; the error says which sizes it can have.
    fn power_on(parameters: Parameters) -> Result<Self>;

    /// The digest of the design, of these sizes: equal if and only if a state means the same.
    fn identity(parameters: Parameters) -> u128;

    /// Its sizes.
    fn parameters(&self) -> Parameters;

    /// Every bit of its state.
    fn state(&self) -> Vec<u8>;

    /// The design of such a state. Its digest was right, so what is wrong with it is a lie, not an accident.
    fn resume(parameters: Parameters, state: &[u8]) -> std::result::Result<Self, Unfit>;

    /// Digest of the whole state.
    fn digest(&self) -> u128 {
        xxh3_128(&self.state())
    }

    /// Cycles since power on.
    fn cycle(&self) -> u64;

    /// Whether the interrupt line is up.
    fn interrupt(&self) -> bool;

    /// Lets `cycles` cycles pass.
    fn step(&mut self, cycles: u64);

    /// Lets cycles pass until the interrupt line is up, at most `cycles`. Returns how many have passed.
    fn step_until_interrupt(&mut self, cycles: u64) -> u64;

    /// The value of register `number`; `None` if there is no such register.
    fn read_register(&self, number: u32) -> Option<u32>;

    /// Writes register `number`. False if there is none or it can only be read.
    fn write_register(&mut self, number: u32, value: u32) -> bool;

    /// `count` words of RAM from word `at` on; `None` if they are not all inside.
    fn read_ram(&self, at: u32, count: u32) -> Option<Vec<u32>>;

    /// Writes words to RAM from word `at` on. False if they would not all be inside.
    fn write_ram(&mut self, at: u32, words: &[u32]) -> bool;

    /// Pushes a word into the input FIFO. False if it is full.
    fn push(&mut self, word: u32) -> bool;

    /// Pops a word from the output FIFO.
    fn pop(&mut self) -> Option<u32>;

    /// Sets TCK, TMS and TDI of the test access port.
    fn set_port(&mut self, _tck: bool, _tms: bool, _tdi: bool) {}

    /// Sets its TRST.
    fn reset_port(&mut self, _reset: bool) {}

    /// Its TDO.
    fn tdo(&self) -> bool {
        false
    }

    /// Flips bit `bit` of an element; the error says what there is instead.
    fn flip(&mut self, element: &Element, bit: u32) -> Result<()>;

    /// Whether the design has this bit of this element.
    fn has(&self, element: &Element, bit: u32) -> Result<()>;
}

impl Hardware for Design {
    fn power_on(parameters: Parameters) -> Result<Design> {
        Ok(Design::new(parameters))
    }

    fn identity(parameters: Parameters) -> u128 {
        parameters.digest()
    }

    fn parameters(&self) -> Parameters {
        Design::parameters(self)
    }

    fn state(&self) -> Vec<u8> {
        design_bytes(self)
    }

    fn resume(parameters: Parameters, state: &[u8]) -> std::result::Result<Design, Unfit> {
        read_design(state, parameters)
    }

    fn cycle(&self) -> u64 {
        Design::cycle(self)
    }

    fn interrupt(&self) -> bool {
        Design::interrupt(self)
    }

    fn step(&mut self, cycles: u64) {
        Design::step(self, cycles);
    }

    fn step_until_interrupt(&mut self, cycles: u64) -> u64 {
        Design::step_until_interrupt(self, cycles)
    }

    fn read_register(&self, number: u32) -> Option<u32> {
        Design::read_register(self, number)
    }

    fn write_register(&mut self, number: u32, value: u32) -> bool {
        Design::write_register(self, number, value)
    }

    fn read_ram(&self, at: u32, count: u32) -> Option<Vec<u32>> {
        Design::read_ram(self, at, count).map(<[u32]>::to_vec)
    }

    fn write_ram(&mut self, at: u32, words: &[u32]) -> bool {
        Design::write_ram(self, at, words)
    }

    fn push(&mut self, word: u32) -> bool {
        Design::push(self, word)
    }

    fn pop(&mut self) -> Option<u32> {
        Design::pop(self)
    }

    fn flip(&mut self, element: &Element, bit: u32) -> Result<()> {
        Design::flip(self, element, bit)
    }

    fn has(&self, element: &Element, bit: u32) -> Result<()> {
        Design::has(self, element, bit)
    }
}
