//! The instruction set extensions of a host.
//!
//! A program asks the CPU once which extensions it has, and picks its code by the answer: the C library does it for
//! memcpy before main begins. A job can go on only where everything is there that it may have found.

use super::layout::{Layout, cpuid, name};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// A register of the answer of CPUID.
#[derive(Clone, Copy)]
enum In {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Leaf, subleaf, register, and the extensions by bit.
type Row = (u32, u32, In, &'static [(u32, &'static str)]);

/// Those extensions that a program outside the kernel can use; the names
/// are the kernel's (`/proc/cpuinfo`).
const TABLE: &[Row] = &[
    (
        1,
        0,
        In::Ecx,
        &[
            (0, "pni"),
            (1, "pclmulqdq"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (22, "movbe"),
            (23, "popcnt"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
        ],
    ),
    (1, 0, In::Edx, &[(4, "tsc"), (8, "cx8"), (15, "cmov"), (19, "clflush"), (25, "sse"), (26, "sse2")]),
    (
        7,
        0,
        In::Ebx,
        &[
            (0, "fsgsbase"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (8, "bmi2"),
            (9, "erms"),
            (11, "rtm"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    (
        7,
        0,
        In::Ecx,
        &[
            (1, "avx512vbmi"),
            (4, "ospke"),
            (5, "waitpkg"),
            (6, "avx512_vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512_vnni"),
            (12, "avx512_bitalg"),
            (14, "avx512_vpopcntdq"),
            (22, "rdpid"),
            (25, "cldemote"),
            (27, "movdiri"),
            (28, "movdir64b"),
        ],
    ),
    (
        7,
        0,
        In::Edx,
        &[
            (4, "fsrm"),
            (8, "avx512_vp2intersect"),
            (14, "serialize"),
            (22, "amx_bf16"),
            (23, "avx512_fp16"),
            (24, "amx_tile"),
            (25, "amx_int8"),
        ],
    ),
    (
        7,
        1,
        In::Eax,
        &[
            (0, "sha512"),
            (1, "sm3"),
            (2, "sm4"),
            (4, "avx_vnni"),
            (5, "avx512_bf16"),
            (7, "cmpccxadd"),
            (21, "amx_fp16"),
            (23, "avx_ifma"),
        ],
    ),
    (
        7,
        1,
        In::Edx,
        &[
            (4, "avx_vnni_int8"),
            (5, "avx_ne_convert"),
            (8, "amx_complex"),
            (10, "avx_vnni_int16"),
            (19, "avx10"),
            (21, "apx"),
        ],
    ),
    (0xd, 1, In::Eax, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1")]),
    (
        0x8000_0001,
        0,
        In::Ecx,
        &[
            (0, "lahf_lm"),
            (5, "abm"),
            (6, "sse4a"),
            (8, "3dnowprefetch"),
            (11, "xop"),
            (15, "lwp"),
            (16, "fma4"),
            (21, "tbm"),
            (29, "mwaitx"),
        ],
    ),
    (0x8000_0001, 0, In::Edx, &[(22, "mmxext"), (27, "rdtscp"), (30, "3dnowext"), (31, "3dnow")]),
    (0x8000_0008, 0, In::Ebx, &[(0, "clzero"), (4, "rdpru")]),
];

/// What a host offers to programs: the names of extensions, and of the register components that the kernel has enabled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Features(BTreeSet<String>);

impl Features {
    /// Those of this host.
    pub fn host() -> &'static Features {
        static HOST: LazyLock<Features> = LazyLock::new(Features::ask);
        &HOST
    }

    fn ask() -> Features {
        // Each of them takes microseconds in a virtual machine, and several rows have one in common.
        let mut answers = BTreeMap::new();
        let mut ask = |leaf, subleaf| *answers.entry((leaf, subleaf)).or_insert_with(|| cpuid(leaf, subleaf));
        let (basic, extended) = (ask(0, 0).eax, ask(0x8000_0000, 0).eax);
        let mut names = BTreeSet::new();
        for &(leaf, subleaf, register, bits) in TABLE {
            let highest = if leaf >= 0x8000_0000 { extended } else { basic };
            // Leaf 7 tells in eax how many subleafs it has.
            if leaf > highest || (leaf == 7 && subleaf > ask(7, 0).eax) {
                continue;
            }
            let answer = ask(leaf, subleaf);
            let word = match register {
                In::Eax => answer.eax,
                In::Ebx => answer.ebx,
                In::Ecx => answer.ecx,
                In::Edx => answer.edx,
            };
            names.extend(
                bits.iter().filter(|(bit, _)| word & (1 << bit) != 0).map(|(_, name)| (*name).to_owned()),
            );
        }
        // An extension whose registers the kernel does not save can't be used, whatever CPUID says.
        let enabled = Layout::host().enabled;
        names.extend((0..63).filter(|n| enabled & (1 << n) != 0).map(|n| format!("state:{}", name(n))));
        Features(names)
    }

    /// What a job from a host with these features may use and `host` lacks.
    pub fn missing(&self, host: &Features) -> Vec<String> {
        self.0.difference(&host.0).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_the_same_extensions() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = text.lines().find(|line| line.starts_with("flags")).unwrap();
        let flags: BTreeSet<&str> = flags.split_ascii_whitespace().collect();
        let found = Features::host();
        for name in
            ["sse2", "avx", "avx2", "avx512f", "bmi2", "sha_ni", "rdtscp", "avx512_bf16", "clzero", "xsavec"]
        {
            assert_eq!(found.0.contains(name), flags.contains(name), "{name}");
        }
    }

    #[test]
    fn only_what_the_host_lacks_is_missing() {
        let host = Features::host();
        assert_eq!(host.missing(host), Vec::<String>::new());
        let mut fewer = host.clone();
        fewer.0.remove("sse2");
        assert_eq!(host.missing(&fewer), ["sse2"]);
        assert_eq!(fewer.missing(host), Vec::<String>::new());
        let text = serde_json::to_string(host).unwrap();
        assert_eq!(&serde_json::from_str::<Features>(&text).unwrap(), host);
    }
}
