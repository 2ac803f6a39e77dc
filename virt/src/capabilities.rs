//! Sets of capabilities, and the calls that change those of a task.

use crate::hex::Hex;
use crate::program::Program;
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// `linux/capability.h`.
const CAP_SETPCAP: u32 = 8;
pub(crate) const CAP_SYS_ADMIN: u32 = 21;
pub(crate) const CAP_SYS_RESOURCE: u32 = 24;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Sets of capabilities; bit N is capability N.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Capabilities {
    /// Kept across execve, if the file agrees.
    pub inheritable: Hex,
    /// What it may make effective.
    pub permitted: Hex,
    /// What the kernel looks at.
    pub effective: Hex,
    /// The limit of what execve can give.
    pub bounding: Hex,
    /// Kept across execve of ordinary files.
    pub ambient: Hex,
}

impl Capabilities {
    /// Everything that is in one of the sets.
    pub fn all(&self) -> Hex {
        let Capabilities { inheritable, permitted, effective, bounding, ambient } = *self;
        Hex(inheritable.0 | permitted.0 | effective.0 | bounding.0 | ambient.0)
    }

    /// Adds the calls that give these sets, but for the ambient one, to a task with CAP_SETPCAP whose bounding set holds
    /// `bounding`. CAP_SETPCAP is left to it.
    pub(crate) fn shrink(&self, bounding: Hex, program: &mut Program) {
        // The kernel allows only inheritable capabilities that are in the bounding set, or were inheritable before: so
        // these are set before the bounding set shrinks.
        let with_setpcap = Hex(self.permitted.0 | 1 << CAP_SETPCAP);
        Capabilities { permitted: with_setpcap, effective: with_setpcap, ..*self }.set(program);
        drop_from_bounding(Hex(bounding.0 & !self.bounding.0), program);
    }

    /// Adds the call that sets the effective, permitted and inheritable capabilities.
    pub(crate) fn set(&self, program: &mut Program) {
        let header = [CAPABILITY_VERSION_3, 0].map(u32::to_ne_bytes).concat();
        // The lower halves of the three sets, then the upper halves.
        let sets = [self.effective, self.permitted, self.inheritable];
        let halves = |shift: u32| sets.map(|set| (set.0 >> shift) as u32);
        let data: Vec<u8> = [halves(0), halves(32)].concat().into_iter().flat_map(u32::to_ne_bytes).collect();
        let (header, data) = (program.put(&header), program.put(&data));
        program.call("set the capabilities", libc::SYS_capset, &[header.into(), data.into()]);
    }

    /// Adds the calls that make the ambient set so. What is in it must be permitted and inheritable.
    pub(crate) fn set_ambient(&self, program: &mut Program) {
        let args = |operation: i32, cap: u32| {
            [libc::PR_CAP_AMBIENT.into(), operation.into(), cap.into(), 0.into(), 0.into()]
        };
        let clear = args(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0);
        program.call("clear the ambient capabilities", libc::SYS_prctl, &clear);
        for cap in self.ambient.bits() {
            let what = format!("raise {} to an ambient capability", name(cap));
            program.call(what, libc::SYS_prctl, &args(libc::PR_CAP_AMBIENT_RAISE, cap));
        }
    }
}

/// Adds the calls that take these out of the bounding set, which needs CAP_SETPCAP.
pub(crate) fn drop_from_bounding(set: Hex, program: &mut Program) {
    for cap in set.bits().filter(|cap| *cap <= *LAST_CAPABILITY) {
        let what = format!("drop {} from the bounding set", name(cap));
        program.call(what, libc::SYS_prctl, &[libc::PR_CAPBSET_DROP.into(), cap.into()]);
    }
}

/// The highest capability that this kernel knows. It refuses to drop another.
static LAST_CAPABILITY: LazyLock<u32> = LazyLock::new(|| {
    // SAFETY: PR_CAPBSET_READ takes a number and touches no memory.
    let known = |cap: &u32| unsafe { libc::prctl(libc::PR_CAPBSET_READ, *cap, 0, 0, 0) } >= 0;
    (0..u64::BITS).take_while(known).last().unwrap_or(0)
});

/// The name that people know it by.
pub(crate) fn name(cap: u32) -> String {
    NAMES.get(cap as usize).map_or_else(|| format!("capability {cap}"), |name| format!("CAP_{name}"))
}

/// In the order of `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_of_this_kernel_has_a_name_or_a_number() {
        assert_eq!(
            (name(0), name(40), name(41)),
            ("CAP_CHOWN".into(), "CAP_CHECKPOINT_RESTORE".into(), "capability 41".into())
        );
        assert!(*LAST_CAPABILITY >= 40);
    }
}
