//! Where this CPU keeps which component of its extended state.

use std::arch::x86_64::CpuidResult;
use std::ops::Range;
use std::sync::LazyLock;

/// The part that all CPUs have in common: x87, MXCSR and the xmm registers, as FXSAVE writes them.
pub const LEGACY: usize = 512;
/// The header after it.
pub const HEADER: usize = 64;
/// The leaf of CPUID that describes the extended state.
const LEAF: u32 = 0xd;

/// The layout of the extended state in memory on this CPU: that of XSAVE without compaction, which is what the kernel
/// shows to tracers. It differs between makers of CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Bit N: the operating system lets programs use component N (XCR0).
    pub enabled: u64,
    parts: [Option<(usize, usize)>; 64],
}

impl Layout {
    /// The layout of this CPU.
    pub fn host() -> &'static Layout {
        // A virtual machine traps every CPUID instruction, so ask once.
        static HOST: LazyLock<Layout> = LazyLock::new(Layout::ask);
        &HOST
    }

    fn ask() -> Layout {
        let enabled = enabled();
        let mut parts = [None; 64];
        for (number, part) in parts.iter_mut().enumerate().skip(2) {
            if enabled & (1 << number) != 0 {
                let answer = cpuid(LEAF, number as u32);
                *part = Some((answer.ebx as usize, answer.eax as usize));
            }
        }
        Layout { enabled, parts }
    }

    /// The bytes of component `number` (2 and higher); None when this CPU lacks it, or the kernel does not enable it.
    pub fn part(&self, number: u32) -> Option<Range<usize>> {
        let (offset, size) = (*self.parts.get(number as usize)?)?;
        Some(offset..offset + size)
    }

    /// Bytes of the whole.
    pub fn size(&self) -> usize {
        let ends = self.parts.iter().flatten().map(|(offset, size)| offset + size);
        ends.max().unwrap_or(0).max(LEGACY + HEADER)
    }
}

/// One answer of the CPUID instruction.
pub(super) fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    #[allow(unused_unsafe, reason = "newer compilers know that the instruction is always there")]
    // SAFETY: every CPU of x86-64 has the instruction, and it changes nothing.
    unsafe {
        std::arch::x86_64::__cpuid_count(leaf, subleaf)
    }
}

/// XCR0.
fn enabled() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if cpuid(1, 0).ecx & OSXSAVE == 0 {
        return 3;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE says that XGETBV can be used; it only reads a register.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// The names of the components, by number (Intel SDM volume 1, chapter 13).
const NAMES: [&str; 20] = [
    "x87",
    "sse",
    "avx",
    "mpx-bounds",
    "mpx-config",
    "avx512-mask",
    "avx512-zmm-upper",
    "avx512-zmm16",
    "processor-trace",
    "pkru",
    "pasid",
    "cet-user",
    "cet-supervisor",
    "hdc",
    "user-interrupts",
    "lbr",
    "hwp",
    "amx-config",
    "amx-tiles",
    "apx",
];

/// The name of component `number`.
pub fn name(number: u32) -> String {
    NAMES.get(number as usize).map_or_else(|| format!("component-{number}"), |name| (*name).to_owned())
}

/// The component of that name.
pub fn number(name: &str) -> Option<u32> {
    let known = NAMES.iter().position(|&known| known == name).map(|number| number as u32);
    known.or_else(|| {
        name.strip_prefix("component-")?.parse().ok().filter(|&n| n < 63 && n >= NAMES.len() as u32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        for n in 0..63 {
            assert_eq!(number(&name(n)), Some(n));
        }
        for wrong in ["component-3", "component-64", "component-+25", ""] {
            assert!(number(wrong).is_none_or(|n| name(n) != wrong), "{wrong}");
        }
    }

    #[test]
    fn parts_do_not_overlap() {
        let layout = Layout::host();
        let mut parts: Vec<_> = (2..63).filter_map(|n| layout.part(n)).collect();
        parts.sort_by_key(|part| part.start);
        assert!(parts.iter().all(|part| part.start >= LEGACY + HEADER && part.end <= layout.size()));
        assert!(parts.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
}
