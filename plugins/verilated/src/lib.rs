//! The Verilated design as softemu's server needs it.
//!
//! Its state is what Verilator's `--savable` makes of it. The digest of a state is that of softemu's state elements in
//! softemu's order, so that one can be compared with the other.

mod ffi;

use ckrun_softemu::design::Parameters;
use ckrun_softemu::design::element::{Element, Single};
use ckrun_softemu::error::{Error, Result};
use ckrun_softemu::hardware::Hardware;
use ckrun_softemu::state::Unfit;
use ffi::{Raw, operation};
use xxhash_rust::xxh3::xxh3_128;

/// Elements, by the numbers that accelerator.sv gives them, in the order of softemu's digest between the three long ones
/// and the scratch registers.
const WORDS: [u32; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
const RANDOM: [u32; 2] = [9, 18];
const BOOT: [u32; 2] = [19, 20];
const RAM: u32 = 10;
const SCRATCH: u32 = 11;
/// Words, first, count.
const FIFOS: [[u32; 3]; 2] = [[12, 14, 15], [13, 16, 17]];

/// A Verilated design.
#[derive(Debug)]
pub struct Model {
    raw: Raw,
    parameters: Parameters,
}

impl Model {
    fn element(&self, element: u32, address: u32) -> u32 {
        self.raw.look(operation::PEEK, address, element).unwrap_or(0)
    }

    fn words(&self, element: u32, count: u32, out: &mut Vec<u8>) {
        out.extend((0..count).flat_map(|n| self.element(element, n).to_le_bytes()));
    }
}

/// The number and the place of an element.
fn place(element: &Element) -> (u32, u32) {
    match *element {
        Element::Single(single) => {
            let number = match single {
                Single::Stage => 0,
                Single::Word => 1,
                Single::Accumulator => 2,
                Single::Shadow => 3,
                Single::Key => 4,
                Single::Timer => 5,
                Single::Period => 6,
                Single::Enable => 7,
                Single::Pending => 8,
                Single::Random => 9,
            };
            (number, 0)
        }
        Element::Ram(n) => (RAM, n),
        Element::Scratch(n) => (SCRATCH, n),
        Element::Input(n) => (FIFOS[0][0], n),
        Element::Output(n) => (FIFOS[1][0], n),
    }
}

impl Hardware for Model {
    const HAS_PORT: bool = true;

    fn power_on(parameters: Parameters) -> Result<Model> {
        let (ram, fifo) = ffi::sizes();
        if (parameters.ram, parameters.fifo) != (ram, fifo) {
            return Err(Error::Argument {
                what: format!("--ram {} --fifo {}", parameters.ram, parameters.fifo),
                why: format!(
                    "this model was compiled with {ram} and {fifo}: make RAM=… FIFO=… makes another"
                ),
            });
        }
        Ok(Model { raw: Raw::power_on(parameters.boot), parameters })
    }

    fn identity(parameters: Parameters) -> u128 {
        xxh3_128(format!("{} {}", ffi::digest(), parameters.boot).as_bytes())
    }

    fn parameters(&self) -> Parameters {
        self.parameters
    }

    fn state(&self) -> Vec<u8> {
        self.raw.save()
    }

    fn resume(parameters: Parameters, state: &[u8]) -> std::result::Result<Model, Unfit> {
        let mut model =
            Model::power_on(parameters).map_err(|_| Unfit::Altered("its sizes are not the model's"))?;
        if model.raw.load(state) { Ok(model) } else { Err(Unfit::Altered("not a state of this model")) }
    }

    fn digest(&self) -> u128 {
        let mut out = Vec::new();
        out.extend(self.cycle().to_le_bytes());
        for long in [BOOT, RANDOM] {
            out.extend(long.iter().flat_map(|half| self.element(*half, 0).to_le_bytes()));
        }
        out.extend(WORDS.iter().flat_map(|word| self.element(*word, 0).to_le_bytes()));
        self.words(SCRATCH, 16, &mut out);
        for [words, first, count] in FIFOS {
            self.words(first, 1, &mut out);
            self.words(count, 1, &mut out);
            self.words(words, self.parameters.fifo, &mut out);
        }
        self.words(RAM, self.parameters.ram, &mut out);
        xxh3_128(&out)
    }

    fn cycle(&self) -> u64 {
        self.raw.cycle()
    }

    fn interrupt(&self) -> bool {
        self.raw.interrupt()
    }

    fn step(&mut self, cycles: u64) {
        self.raw.step(cycles, false);
    }

    fn step_until_interrupt(&mut self, cycles: u64) -> u64 {
        self.raw.step(cycles, true)
    }

    fn read_register(&self, number: u32) -> Option<u32> {
        self.raw.look(operation::READ_REGISTER, number, 0)
    }

    fn write_register(&mut self, number: u32, value: u32) -> bool {
        let writable = matches!(number, 2..=4 | 6..=8 | 16..=31);
        if writable {
            self.raw.access(operation::WRITE_REGISTER, number, value, 0);
        }
        writable
    }

    fn read_ram(&self, at: u32, count: u32) -> Option<Vec<u32>> {
        let end = at.checked_add(count).filter(|end| *end <= self.parameters.ram)?;
        (at..end).map(|n| self.raw.look(operation::READ_RAM, n, 0)).collect()
    }

    fn write_ram(&mut self, at: u32, words: &[u32]) -> bool {
        let inside = at as usize + words.len() <= self.parameters.ram as usize;
        if inside {
            for (n, word) in (at..).zip(words) {
                self.raw.access(operation::WRITE_RAM, n, *word, 0);
            }
        }
        inside
    }

    fn push(&mut self, word: u32) -> bool {
        let room = !self.raw.full();
        if room {
            self.raw.access(operation::PUSH, 0, word, 0);
        }
        room
    }

    fn pop(&mut self) -> Option<u32> {
        if self.raw.empty() {
            return None;
        }
        let word = self.raw.look(operation::POP, 0, 0);
        self.raw.access(operation::POP, 0, 0, 0);
        word
    }

    fn set_port(&mut self, tck: bool, tms: bool, tdi: bool) {
        self.raw.set_port(tck, tms, tdi);
    }

    fn reset_port(&mut self, reset: bool) {
        self.raw.reset_port(reset);
    }

    fn tdo(&self) -> bool {
        self.raw.tdo()
    }

    fn flip(&mut self, element: &Element, bit: u32) -> Result<()> {
        self.has(element, bit)?;
        let (number, address) = place(element);
        self.raw.access(operation::FLIP, address, 1 << bit, number);
        Ok(())
    }

    fn has(&self, element: &Element, bit: u32) -> Result<()> {
        // softemu's elements, and its words for what there is not.
        ckrun_softemu::design::Design::new(self.parameters).has(element, bit)
    }
}
