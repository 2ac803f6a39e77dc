//! State elements by name, for faults: one bit of one element is flipped.

use super::Design;
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A state element: `accumulator`, `ram:1024`, `scratch:3`, `in:0`. It is written in one word, as here.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Element {
    /// One that there is once.
    Single(Single),
    /// A word of RAM.
    Ram(u32),
    /// A scratch register, from 0.
    Scratch(u32),
    /// A place of the input FIFO's array.
    Input(u32),
    /// A place of the output FIFO's array.
    Output(u32),
}

/// State elements that there are once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are named as in the design")]
pub enum Single {
    Stage,
    Word,
    Accumulator,
    Shadow,
    Key,
    Timer,
    Period,
    Enable,
    Pending,
    /// The low half of the pseudo-random source; the state of the other half follows in the next cycles.
    Random,
}

const SINGLES: [(&str, Single); 10] = [
    ("stage", Single::Stage),
    ("word", Single::Word),
    ("accumulator", Single::Accumulator),
    ("shadow", Single::Shadow),
    ("key", Single::Key),
    ("timer", Single::Timer),
    ("period", Single::Period),
    ("enable", Single::Enable),
    ("pending", Single::Pending),
    ("random", Single::Random),
];

impl FromStr for Element {
    type Err = Error;

    fn from_str(text: &str) -> Result<Element> {
        if let Some((_, single)) = SINGLES.iter().find(|(name, _)| *name == text) {
            return Ok(Element::Single(*single));
        }
        let unknown = || Error::Argument {
            what: format!("state element {text:?}"),
            why: format!(
                "must be ram:N, scratch:N, in:N, out:N or one of {}",
                SINGLES.map(|(name, _)| name).join(", ")
            ),
        };
        let (array, index) = text.split_once(':').ok_or_else(unknown)?;
        let index = index.parse().map_err(|_| unknown())?;
        match array {
            "ram" => Ok(Element::Ram(index)),
            "scratch" => Ok(Element::Scratch(index)),
            "in" => Ok(Element::Input(index)),
            "out" => Ok(Element::Output(index)),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Single(single) => {
                f.write_str(SINGLES.iter().find(|(_, s)| s == single).map_or("?", |(name, _)| name))
            }
            Element::Ram(n) => write!(f, "ram:{n}"),
            Element::Scratch(n) => write!(f, "scratch:{n}"),
            Element::Input(n) => write!(f, "in:{n}"),
            Element::Output(n) => write!(f, "out:{n}"),
        }
    }
}

impl TryFrom<String> for Element {
    type Error = Error;

    fn try_from(text: String) -> Result<Element> {
        text.parse()
    }
}

impl From<Element> for String {
    fn from(element: Element) -> String {
        element.to_string()
    }
}

impl Design {
    /// Flips bit `bit` of an element.
    pub fn flip(&mut self, element: &Element, bit: u32) -> Result<()> {
        self.has(element, bit)?;
        let flipped = 1 << bit;
        match *element {
            Element::Single(Single::Random) => self.random ^= u64::from(flipped),
            Element::Single(Single::Stage) => self.stage ^= flipped,
            Element::Single(Single::Word) => self.word ^= flipped,
            Element::Single(Single::Accumulator) => self.accumulator ^= flipped,
            Element::Single(Single::Shadow) => self.shadow ^= flipped,
            Element::Single(Single::Key) => self.key ^= flipped,
            Element::Single(Single::Timer) => self.timer ^= flipped,
            Element::Single(Single::Period) => self.period ^= flipped,
            Element::Single(Single::Enable) => self.enable ^= flipped,
            Element::Single(Single::Pending) => self.pending ^= flipped,
            Element::Ram(n) => self.ram[n as usize] ^= flipped,
            Element::Scratch(n) => self.scratch[n as usize] ^= flipped,
            Element::Input(n) => self.input.words[n as usize] ^= flipped,
            Element::Output(n) => self.output.words[n as usize] ^= flipped,
        }
        Ok(())
    }

    /// Whether the design has this bit of this element; the error says what it has instead.
    pub fn has(&self, element: &Element, bit: u32) -> Result<()> {
        let (index, size) = match *element {
            Element::Single(_) => (0, 1),
            Element::Ram(n) => (n, self.ram.len()),
            Element::Scratch(n) => (n, self.scratch.len()),
            Element::Input(n) => (n, self.input.words.len()),
            Element::Output(n) => (n, self.output.words.len()),
        };
        let why = if bit >= 32 {
            format!("bit {bit} is not one of 0 to 31")
        } else if index as usize >= size {
            format!("there are {size}, from 0")
        } else {
            return Ok(());
        };
        Err(Error::Argument { what: format!("state element {element}"), why })
    }
}
