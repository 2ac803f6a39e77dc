//! One mapping, as an image keeps it. JSON shows it as `/proc/PID/smaps` does, so that a person can compare the two.

use crate::image::Bytes;
use crate::mempolicy::MemPolicy;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// The first address that no process can have: 56 bits with five levels of page tables.
const ADDRESS_END: u64 = 1 << 56;

/// A range of addresses, whole pages and not empty; `start-end` in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The first address.
    pub start: u64,
    /// The first address behind it.
    pub end: u64,
}

impl Span {
    /// The range from `start` to `end`.
    pub fn new(start: u64, end: u64) -> Self {
        Span { start, end }
    }

    /// How many bytes.
    pub fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// There is no byte in it.
    pub fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// All of `other` lies in it.
    pub fn holds(self, other: Span) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// What both have, possibly nothing.
    pub fn overlap(self, other: Span) -> Span {
        Span { start: self.start.max(other.start), end: self.end.min(other.end) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.start, self.end)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (start, end) = text.split_once('-').ok_or("not two addresses")?;
        let number = |digits: &str| u64::from_str_radix(digits, 16).map_err(|_| "not a hexadecimal address");
        let span = Span { start: number(start)?, end: number(end)? };
        if span.is_empty()
            || !span.start.is_multiple_of(PAGE)
            || !span.end.is_multiple_of(PAGE)
            || span.end > ADDRESS_END
        {
            return Err("not a range of whole pages");
        }
        Ok(span)
    }
}

/// What may be done with the memory; `r-x`. The bits are PROT_READ, PROT_WRITE and PROT_EXEC.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Prot(pub(super) u8);

impl Prot {
    /// It can be read.
    pub const READ: Prot = Prot(libc::PROT_READ as u8);
    /// It can be written.
    pub const WRITE: Prot = Prot(libc::PROT_WRITE as u8);
    /// It can be executed.
    pub const EXEC: Prot = Prot(libc::PROT_EXEC as u8);

    /// All of `other` is allowed.
    pub fn allows(self, other: Prot) -> bool {
        self.0 & other.0 == other.0
    }

    /// As mmap(2) takes it.
    pub fn bits(self) -> u64 {
        u64::from(self.0)
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Prot) -> Prot {
        Prot(self.0 | other.0)
    }
}

impl fmt::Display for Prot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, bit) in [('r', Self::READ), ('w', Self::WRITE), ('x', Self::EXEC)] {
            write!(f, "{}", if self.allows(bit) { letter } else { '-' })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Prot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Prot {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let &[r, w, x] = text.as_bytes() else { return Err("not three letters") };
        let mut bits = 0;
        for (given, letter, bit) in [(r, b'r', Self::READ), (w, b'w', Self::WRITE), (x, b'x', Self::EXEC)] {
            match given {
                b'-' => {}
                _ if given == letter => bits |= bit.0,
                _ => return Err("not a protection like r-x"),
            }
        }
        Ok(Prot(bits))
    }
}

/// Properties of a mapping that are not seen in its protection, by the names of smaps: `gd ac`.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(u32);

macro_rules! flags {
    ($($name:ident = $bit:literal $text:literal $doc:literal;)*) => {
        impl Flags {
            $(#[doc = $doc] pub const $name: Flags = Flags(1 << $bit);)*
            const NAMES: &[(&str, Flags)] = &[$(($text, Self::$name)),*];
        }
    };
}
flags! {
    GROWS_DOWN = 0 "gd" "MAP_GROWSDOWN: a stack.";
    MAY_WRITE = 1 "mw" "mprotect(2) may make it writable; a shared mapping without it is of a file opened for reading.";
    ACCOUNT = 2 "ac" "It counts as committed memory: it is or was writable.";
    NO_RESERVE = 3 "nr" "MAP_NORESERVE.";
    LOCKED = 4 "lo" "mlock(2).";
    LOCK_ON_FAULT = 5 "lf" "MLOCK_ONFAULT.";
    SEQUENTIAL = 6 "sr" "MADV_SEQUENTIAL.";
    RANDOM = 7 "rr" "MADV_RANDOM.";
    DONT_FORK = 8 "dc" "MADV_DONTFORK: a child does not have it.";
    DONT_DUMP = 9 "dd" "MADV_DONTDUMP: not in core dumps.";
    WIPE_ON_FORK = 10 "wf" "MADV_WIPEONFORK: a child finds zeroes.";
    HUGE = 11 "hg" "MADV_HUGEPAGE.";
    NO_HUGE = 12 "nh" "MADV_NOHUGEPAGE.";
    MERGEABLE = 13 "mg" "MADV_MERGEABLE.";
    HUGETLB = 14 "ht" "MAP_HUGETLB: of pages that were set aside.";
    SEALED = 15 "sl" "mseal(2): it can't be changed any more.";
    DROPPABLE = 16 "dp" "MAP_DROPPABLE: the kernel may take its pages at any time.";
    SYNC = 17 "sf" "MAP_SYNC.";
}

impl Flags {
    /// None.
    pub fn is_empty(&self) -> bool {
        self.0 == 0
    }

    /// All of `other` hold.
    pub fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// At least one of `other` holds.
    pub fn meets(self, other: Flags) -> bool {
        self.0 & other.0 != 0
    }

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// Those that are in `other` too.
    #[must_use]
    pub fn only(self, other: Flags) -> Flags {
        Flags(self.0 & other.0)
    }

    /// Without `other`.
    #[must_use]
    pub fn without(self, other: Flags) -> Flags {
        Flags(self.0 & !other.0)
    }

    /// The flag of smaps's name `text`, if it is one to be kept.
    pub fn named(text: &str) -> Option<Flags> {
        Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, flag)| *flag)
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = Self::NAMES.iter().filter(|(_, flag)| self.has(*flag)).map(|(name, _)| *name);
        f.write_str(names.next().unwrap_or_default())?;
        names.try_for_each(|name| write!(f, " {name}"))
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Flags {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_ascii_whitespace().try_fold(Flags::default(), |all, name| {
            Flags::named(name).map(|flag| all.and(flag)).ok_or("not a flag of smaps that can be kept")
        })
    }
}

macro_rules! serde_as_text {
    ($($of:ty),*) => {$(
        impl Serialize for $of {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $of {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(|why| serde::de::Error::custom(format_args!("{text:?}: {why}")))
            }
        }
    )*};
}
serde_as_text!(Span, Prot, Flags);

/// What is mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Backing {
    /// Zeroes that become the process's own pages when written.
    Anonymous,
    /// A part of a file, or of memory that processes share.
    Object {
        /// Its place in the job's list of objects.
        id: u32,
        /// Where the part begins.
        offset: u64,
        /// Writes reach the object; otherwise written pages become the process's own.
        shared: bool,
    },
    /// The code that the kernel lends to every process. A page of it that is the process's own is not kept.
    Vdso,
    /// The data of that code: one or more adjacent mappings, the vdso behind the last.
    Vvar,
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Vma {
    /// Its addresses.
    pub range: Span,
    /// What may be done with it.
    pub prot: Prot,
    /// What is mapped.
    pub backing: Backing,
    /// Its other properties.
    #[serde(default, skip_serializing_if = "Flags::is_empty")]
    pub flags: Flags,
    /// The name that the process gave it by PR_SET_VMA_ANON_NAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Bytes>,
    /// On which NUMA nodes its memory is to be, if it was told (mbind(2)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<MemPolicy>,
}

impl Vma {
    /// It can have pages of the process's own.
    pub fn private(&self) -> bool {
        match self.backing {
            Backing::Anonymous => true,
            Backing::Object { shared, .. } => !shared,
            Backing::Vdso | Backing::Vvar => false,
        }
    }

    /// An address without a page of the process's own reads as zero.
    pub fn zero_based(&self) -> bool {
        self.backing == Backing::Anonymous
    }

    /// A clone of the process has it with the content of the moment. Of others the pages must be stored while the
    /// process itself is stopped.
    pub fn survives_clone(&self) -> bool {
        self.private() && !self.flags.meets(Flags::DONT_FORK.and(Flags::WIPE_ON_FORK))
    }

    /// Its pages are worth storing. Pages that the kernel may take at any time are not: the process can't rely on
    /// them, and the vdso keeps the state of random generators there, which must not come back twice.
    pub fn stored(&self) -> bool {
        self.private() && !self.flags.has(Flags::DROPPABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_reads_like_smaps() {
        let vma = Vma {
            range: Span::new(0x7f00_0000_0000, 0x7f00_0002_1000),
            prot: Prot::READ.and(Prot::WRITE),
            backing: Backing::Object { id: 3, offset: 0x1000, shared: false },
            flags: Flags::GROWS_DOWN.and(Flags::ACCOUNT),
            name: None,
            policy: None,
        };
        let json = serde_json::to_string(&vma).unwrap();
        let expected = r#"{"range":"7f0000000000-7f0000021000","prot":"rw-","backing":{"object":{"id":3,"offset":4096,"shared":false}},"flags":"gd ac"}"#;
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<Vma>(&json).unwrap(), vma);
    }

    #[test]
    fn nonsense_is_refused() {
        for range in
            ["", "1000", "1000-", "2000-1000", "1000-1000", "1001-2000", "-1000-2000", "0-200000000000000"]
        {
            assert!(range.parse::<Span>().is_err(), "{range}");
        }
        for prot in ["", "rw", "rwxs", "wr-", "r-w", "ä-"] {
            assert!(prot.parse::<Prot>().is_err(), "{prot}");
        }
        assert!("gd zz".parse::<Flags>().is_err());
        assert_eq!("".parse::<Flags>(), Ok(Flags::default()));
    }
}
