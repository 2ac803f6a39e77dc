//! The host that an image was taken on: what a restart needs to know before it makes the first process.

use super::{Digest, Error, Result};
use crate::Doing;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Kernel, boot and CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Host {
    /// The kernel's release, `uname -r`.
    pub kernel: String,
    /// The architecture, `uname -m`.
    pub machine: String,
    /// The id that the kernel gave this boot. Clocks that count from boot can be compared within one only.
    pub boot: String,
    /// The processor.
    pub cpu: Cpu,
    /// The digest of the vdso's loaded bytes; None when the kernel runs without one. Code addresses inside the vdso
    /// mean the same thing on two hosts only if these are equal.
    pub vdso: Option<Digest>,
}

/// A processor, as programs see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cpu {
    /// The name that the maker gave it, for people.
    pub model: String,
    /// Words of feature bits by the place they come from. On x86-64 that is `LEAF.REGISTER` or `LEAF.SUBLEAF.REGISTER`
    /// of CPUID in hexadecimal (`7.0.ebx`); elsewhere `hwcap` and `hwcap2` of the auxiliary vector.
    #[serde(deserialize_with = "super::unique")]
    pub features: BTreeMap<String, u64>,
}

impl Host {
    /// This host, now. It takes about 0.1 ms in a virtual machine, where each CPUID is an exit to the hypervisor.
    ///
    /// # Errors
    /// When /proc can't be read.
    pub fn here() -> Result<Host> {
        let uname = rustix::system::uname();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .doing(|| "read /proc/sys/kernel/random/boot_id")?;
        let auxv = auxv()?;
        Ok(Host {
            kernel: uname.release().to_string_lossy().into_owned(),
            machine: uname.machine().to_string_lossy().into_owned(),
            boot: boot.trim_end().to_owned(),
            cpu: cpu(&auxv),
            vdso: vdso(&auxv)?,
        })
    }
}

/// The auxiliary vector: what the kernel told this program at its exec.
fn auxv() -> Result<BTreeMap<u64, u64>> {
    let bytes = std::fs::read("/proc/self/auxv").doing(|| "read /proc/self/auxv")?;
    let word = |b: &[u8; 16], at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&b[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    Ok(bytes.as_chunks::<16>().0.iter().map(|pair| (word(pair, 0), word(pair, 8))).collect())
}

/// Digests the loaded segment of the vdso, which is an ELF file in memory. It is read through /proc/self/mem, where a
/// wrong address is an error and not a crash.
fn vdso(auxv: &BTreeMap<u64, u64>) -> Result<Option<Digest>> {
    let Some(&start) = auxv.get(&libc::AT_SYSINFO_EHDR) else { return Ok(None) };
    let memory = File::open("/proc/self/mem").doing(|| "open /proc/self/mem")?;
    let mut head = [0; 4096];
    memory.read_exact_at(&mut head, start).doing(|| "read the vdso")?;
    let Some(len) = loaded(&head) else {
        return Err(Error::Unfit { file: "[vdso]".into(), why: "no loaded segment at its beginning".into() });
    };
    let mut bytes = vec![0; len];
    memory.read_exact_at(&mut bytes, start).doing(|| "read the vdso")?;
    Ok(Some(Digest::of(&bytes)))
}

/// The length in bytes of the first loaded segment of a 64-bit ELF file whose first page is `head`.
fn loaded(head: &[u8; 4096]) -> Option<usize> {
    let half =
        |at: usize| head.get(at..at.checked_add(2)?).map(|b| usize::from(u16::from_ne_bytes([b[0], b[1]])));
    let long = |at: usize| {
        let bytes = head.get(at..at.checked_add(8)?)?.try_into().ok()?;
        usize::try_from(u64::from_ne_bytes(bytes)).ok()
    };
    if !head.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let (table, entry, count) = (long(0x20)?, half(0x36)?, half(0x38)?);
    // Elf64_Phdr: p_type at 0 (PT_LOAD is 1), p_offset at 8, p_memsz at 40. No vdso has more than a few pages.
    (0..count)
        .map(|n| table.saturating_add(n * entry))
        .find(|&at| {
            half(at) == Some(1)
                && half(at.saturating_add(2)) == Some(0)
                && long(at.saturating_add(8)) == Some(0)
        })
        .and_then(|at| long(at.saturating_add(40)))
        .filter(|len| (1..=1 << 20).contains(len))
}

#[cfg(target_arch = "x86_64")]
fn cpu(_: &BTreeMap<u64, u64>) -> Cpu {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let mut features = BTreeMap::new();
    let mut note = |name: &str, word: u32| features.insert(name.to_owned(), u64::from(word));
    let basic = __cpuid(0).eax;
    let one = __cpuid(1);
    // Family, model and stepping. Leaf 1's ebx is left out: it holds the number of the core this runs on.
    note("1.eax", one.eax);
    note("1.ecx", one.ecx);
    note("1.edx", one.edx);
    if basic >= 7 {
        let seven = __cpuid_count(7, 0);
        note("7.0.ebx", seven.ebx);
        note("7.0.ecx", seven.ecx);
        note("7.0.edx", seven.edx);
        if seven.eax >= 1 {
            let seven = __cpuid_count(7, 1);
            note("7.1.eax", seven.eax);
            note("7.1.edx", seven.edx);
        }
    }
    if basic >= 0xd {
        // How the extended state is saved: xsaveopt, xsavec, xgetbv with ecx 1, xsaves.
        note("d.1.eax", __cpuid_count(0xd, 1).eax);
    }
    let extended = __cpuid(0x8000_0000).eax;
    if extended >= 0x8000_0001 {
        let leaf = __cpuid(0x8000_0001);
        note("80000001.ecx", leaf.ecx);
        note("80000001.edx", leaf.edx);
    }
    let mut model = Vec::with_capacity(48);
    if extended >= 0x8000_0004 {
        for leaf in 0x8000_0002..=0x8000_0004 {
            let words = __cpuid(leaf);
            model.extend([words.eax, words.ebx, words.ecx, words.edx].into_iter().flat_map(u32::to_le_bytes));
        }
    }
    let end = model.iter().position(|&b| b == 0).unwrap_or(model.len());
    Cpu { model: String::from_utf8_lossy(&model[..end]).trim().to_owned(), features }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu(auxv: &BTreeMap<u64, u64>) -> Cpu {
    let words = [("hwcap", libc::AT_HWCAP), ("hwcap2", libc::AT_HWCAP2)];
    let features =
        words.into_iter().filter_map(|(name, key)| Some((name.to_owned(), *auxv.get(&key)?))).collect();
    Cpu { model: std::env::consts::ARCH.to_owned(), features }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_the_same_every_time() {
        let here = Host::here().unwrap();
        assert_eq!(here, Host::here().unwrap());
        assert_eq!(here.boot.len(), 36, "{here:?}");
        assert!(here.vdso.is_some());
        let json = serde_json::to_string(&here).unwrap();
        assert_eq!(serde_json::from_str::<Host>(&json).unwrap(), here);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_features_are_those_that_the_standard_library_sees() {
        let ebx = Host::here().unwrap().cpu.features["7.0.ebx"];
        assert_eq!(ebx & 1 << 5 != 0, std::arch::is_x86_feature_detected!("avx2"));
    }

    #[test]
    fn a_vdso_that_is_no_elf_file_has_no_length() {
        let mut head = [0; 4096];
        assert_eq!(loaded(&head), None);
        head[..5].copy_from_slice(b"\x7fELF\x02");
        // A table of headers that lies outside the page, and beyond the end of all addresses.
        head[0x20..0x28].fill(0xff);
        head[0x36..0x3a].fill(0xff);
        assert_eq!(loaded(&head), None);
    }
}
