//! A FIFO of words as hardware has it: a fixed array, a read position, a count.

/// A FIFO. What has been popped stays in its place until it is overwritten, and is part of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fifo {
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) words: Vec<u32>,
}

impl Fifo {
    /// An empty one for `depth` words, a power of two.
    pub fn new(depth: u32) -> Fifo {
        Fifo { first: 0, count: 0, words: vec![0; depth as usize] }
    }

    /// Whether there is nothing to pop.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether nothing can be pushed.
    pub fn is_full(&self) -> bool {
        self.count as usize >= self.words.len()
    }

    /// How many words are in it.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Adds a word at the end. False if there is no room.
    pub fn push(&mut self, word: u32) -> bool {
        if self.is_full() {
            return false;
        }
        let at = self.slot(self.count);
        self.words[at] = word;
        self.count += 1;
        true
    }

    /// Takes the first word.
    pub fn pop(&mut self) -> Option<u32> {
        if self.is_empty() {
            return None;
        }
        let word = self.words[self.slot(0)];
        self.first = self.slot(1) as u32;
        self.count -= 1;
        Some(word)
    }

    /// Where the word `n` after the first one lies. The mask keeps a position that a fault has moved inside.
    fn slot(&self, n: u32) -> usize {
        self.first.wrapping_add(n) as usize & (self.words.len() - 1)
    }
}
