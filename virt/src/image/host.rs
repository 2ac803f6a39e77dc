//! The host that an image was taken on: what a restart needs to know before it makes the first process.

use super::Result;
use crate::cpu::features::Features;
use crate::cpu::vdso::Identity;
use crate::{Doing, vdso};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::File;

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
    /// The kernel's code in user space. Programs keep addresses into it.
    pub vdso: Identity,
}

/// A processor, as programs see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cpu {
    /// The name that the maker gave it, for people.
    pub model: String,
    /// What programs may have found that it can do. They don't ask again after a restart.
    pub features: Features,
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
        let memory = File::open("/proc/self/mem").doing(|| "open /proc/self/mem")?;
        let vdso = vdso::find(Pid::this(), &memory)?.range;
        Ok(Host {
            kernel: uname.release().to_string_lossy().into_owned(),
            machine: uname.machine().to_string_lossy().into_owned(),
            boot: boot.trim_end().to_owned(),
            cpu: Cpu { model: model(), features: Features::host().clone() },
            vdso: Identity::of(&memory, &vdso)?,
        })
    }

    /// What of this host, where a job was checkpointed, `here` can't make up for: what it is, and why it matters. The job
    /// is known not to use the CPU features `unused`.
    pub fn problems(&self, here: &Host, unused: &[String]) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut add = |what: &str, why: String| problems.push((what.to_owned(), why));
        if self.machine != here.machine {
            add("architecture", format!("the job is for {}, this host is {}", self.machine, here.machine));
            return problems;
        }
        let mut missing = self.cpu.features.missing(&here.cpu.features);
        missing.retain(|name| !unused.iter().any(|unused| unused == name || unused == "all"));
        if !missing.is_empty() {
            let names = missing.join(", ");
            add(
                "CPU",
                format!(
                    "{} lacks what {} had: {names} (if the job does not use them: --unused-cpu-features)",
                    here.cpu.model, self.cpu.model
                ),
            );
        }
        problems
    }
}

/// The CPU's name for people: leaves 0x80000002 to 0x80000004 of CPUID.
fn model() -> String {
    use std::arch::x86_64::__cpuid;
    let mut model = Vec::with_capacity(48);
    if __cpuid(0x8000_0000).eax >= 0x8000_0004 {
        for leaf in 0x8000_0002..=0x8000_0004 {
            let words = __cpuid(leaf);
            model.extend([words.eax, words.ebx, words.ecx, words.edx].into_iter().flat_map(u32::to_le_bytes));
        }
    }
    let end = model.iter().position(|&b| b == 0).unwrap_or(model.len());
    String::from_utf8_lossy(&model[..end]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_the_same_every_time() {
        let here = Host::here().unwrap();
        assert_eq!(here, Host::here().unwrap());
        assert_eq!(here.boot.len(), 36, "{here:?}");
        let json = serde_json::to_string(&here).unwrap();
        assert_eq!(serde_json::from_str::<Host>(&json).unwrap(), here);
        assert_eq!(here.problems(&here, &[]), []);
    }

    #[test]
    fn what_another_host_lacks_is_named() {
        let there = Host::here().unwrap();
        let mut here = there.clone();
        here.cpu.features = serde_json::from_str("[\"sse2\"]").unwrap();
        let problems = here.clone();
        let said = format!("{:?}", there.problems(&problems, &[]));
        assert!(said.contains("avx2") && !said.contains("sse2,"), "{said}");
        assert_eq!(there.problems(&problems, &["all".into()]), []);
        assert!(!format!("{:?}", there.problems(&problems, &["avx2".into()])).contains("avx2,"));
        here.machine = "vax".into();
        assert!(there.problems(&here, &[])[0].1.contains("vax"));
    }
}
