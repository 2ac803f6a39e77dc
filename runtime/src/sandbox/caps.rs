//! The capabilities of the job: `process.capabilities`.
//!
//! The order matters, because every step takes away what an earlier one needs:
//!
//! 1. no_new_privs, and the filter, if there is no no_new_privs (loading it needs CAP_SYS_ADMIN);
//! 2. [`Sets::drop_bounding`], which needs CAP_SETPCAP;
//! 3. [`Sets::keep`], or a change of user would empty the permitted set;
//! 4. groups and user, which need CAP_SETGID and CAP_SETUID;
//! 5. [`Sets::apply`]: permitted, effective and inheritable, then the ambient ones, which must be in two of these.

use crate::error::{Error, Result};
use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use oci_spec::runtime::{Capabilities, LinuxCapabilities};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities,
};
use std::str::FromStr;

/// The five sets, as the kernel numbers capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sets {
    bounding: CapabilitySet,
    permitted: CapabilitySet,
    effective: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

impl Sets {
    /// Reads what config.json asks for. A set that it does not mention is empty. A capability that this kernel is too
    /// old for is left out with a warning, as the runtime-spec wants.
    pub fn new(asked: &LinuxCapabilities) -> Sets {
        let sets =
            [asked.bounding(), asked.permitted(), asked.effective(), asked.inheritable(), asked.ambient()];
        let mut sets = sets.map(bits);
        let all = sets.iter().fold(CapabilitySet::empty(), |all, set| all | *set);
        // The kernel has all capabilities up to a last one.
        for newest in all.iter().collect::<Vec<_>>().into_iter().rev() {
            if capability_is_in_bounding_set(newest) != Err(rustix::io::Errno::INVAL) {
                break;
            }
            log::warn!("process.capabilities: this kernel has no {}", names(newest));
            sets.iter_mut().for_each(|set| set.remove(newest));
        }
        let [bounding, permitted, effective, inheritable, ambient] = sets;
        Sets { bounding, permitted, effective, inheritable, ambient }
    }

    /// No capability at all, for a job whose configuration has no `process.capabilities`.
    pub fn none() -> Sets {
        let none = CapabilitySet::empty();
        Sets { bounding: none, permitted: none, effective: none, inheritable: none, ambient: none }
    }

    /// Takes everything that is not in `bounding` out of what this process and its descendants can ever get.
    ///
    /// # Errors
    /// `EPERM` without CAP_SETPCAP; names the field.
    pub fn drop_bounding(&self) -> Result<()> {
        for number in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << number);
            if self.bounding.contains(one) {
                continue;
            }
            match remove_capability_from_bounding_set(one) {
                Ok(()) => {}
                // The number after the kernel's last capability.
                Err(rustix::io::Errno::INVAL) => break,
                Err(e) => {
                    let why = Failure::new(format!("drop {}", names(one)), Errno::from_raw(e.raw_os_error()));
                    return Err(Error::config("process.capabilities.bounding", why.to_string()));
                }
            }
        }
        Ok(())
    }

    /// Lets the permitted capabilities survive the change to another user.
    ///
    /// # Errors
    /// The process has locked its securebits.
    pub fn keep(&self) -> Result<()> {
        Ok(set_keep_capabilities(true).doing(|| "keep the capabilities over setuid")?)
    }

    /// Sets everything: [`Sets::begin`] and [`Sets::finish`].
    ///
    /// # Errors
    /// A capability that ckrun itself does not have can't be granted; names it and the field.
    pub fn apply(&self) -> Result<()> {
        self.begin()?;
        self.finish()
    }

    /// Sets the inheritable and the ambient set, and makes all that is permitted effective again, which a change of user
    /// ended. What can't be ambient, being not both permitted and inheritable, is left out as in runc, and said only under
    /// `--debug`: buildah asks for it in every build.
    ///
    /// # Errors
    /// As [`Sets::apply`].
    pub fn begin(&self) -> Result<()> {
        set_keep_capabilities(false).doing(|| "stop keeping capabilities")?;
        let mut sets = capabilities(None).doing(|| "read the capabilities")?;
        sets.effective = sets.permitted;
        sets.inheritable = self.inheritable;
        set_capabilities(None, sets).map_err(|e| self.refused(e))?;

        clear_ambient_capability_set().doing(|| "clear the ambient capabilities")?;
        let possible = self.permitted & self.inheritable;
        if !possible.contains(self.ambient) {
            let rest = names(self.ambient - possible);
            log::debug!(
                "process.capabilities.ambient: {rest} can't be ambient without being permitted and inheritable"
            );
        }
        for one in (self.ambient & possible).iter() {
            if let Err(e) = configure_capability_in_ambient_set(one, true) {
                log::warn!("process.capabilities.ambient: can't raise {}: {e}", names(one));
            }
        }
        Ok(())
    }

    /// Gives up what is not to be permitted or effective. It is one system call, capset(2), since a filter may deny all
    /// others by then; what leaves the permitted set leaves the ambient one with it.
    ///
    /// # Errors
    /// As [`Sets::apply`].
    pub fn finish(&self) -> Result<()> {
        let sets = CapabilitySets {
            effective: self.effective,
            permitted: self.permitted,
            inheritable: self.inheritable,
        };
        set_capabilities(None, sets).map_err(|e| self.refused(e))
    }

    /// Finds out why capset(2) said no.
    fn refused(&self, errno: rustix::io::Errno) -> Error {
        let errno = Errno::from_raw(errno.raw_os_error());
        let because = |which: &str, caps: CapabilitySet, why: &str| {
            let what = Failure::new(format!("grant {}", names(caps)), errno);
            Error::config(format!("process.capabilities.{which}"), format!("{what}: {why}"))
        };
        let Ok(own) = capabilities(None) else { return Failure::new("set the capabilities", errno).into() };
        let not_own = self.permitted - own.permitted;
        if !not_own.is_empty() {
            return because("permitted", not_own, "ckrun does not have it itself");
        }
        let not_permitted = self.effective - self.permitted;
        if !not_permitted.is_empty() {
            return because("effective", not_permitted, "it is not in the permitted set");
        }
        because("inheritable", self.inheritable, "only what is in the bounding set can be inherited")
    }
}

/// The bits of a set of config.json.
fn bits(set: &Option<Capabilities>) -> CapabilitySet {
    let mut bits = CapabilitySet::empty();
    for capability in set.iter().flatten() {
        // oci-spec prints the name without its prefix; both crates know the same names.
        if let Ok(known) = caps::Capability::from_str(&format!("CAP_{capability}")) {
            bits |= CapabilitySet::from_bits_retain(known.bitmask());
        }
    }
    bits
}

/// `CAP_KILL, CAP_CHOWN`, for messages.
fn names(set: CapabilitySet) -> String {
    let known = caps::all().into_iter().filter(|c| set.bits() & c.bitmask() != 0);
    let mut known: Vec<_> = known.map(|c| (c.index(), c.to_string())).collect();
    known.sort_unstable();
    match known.len() {
        0 => format!("capabilities {:#x}", set.bits()),
        _ => known.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::testing::in_child;
    use oci_spec::runtime::Capability;
    use serde_json::json;

    fn sets(json: serde_json::Value) -> Sets {
        Sets::new(&serde_json::from_value(json).unwrap())
    }

    /// A line of /proc/self/status.
    fn status(field: &str) -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    }

    const KILL: u64 = 1 << 5;
    const NET_BIND: u64 = 1 << 10;
    const CHOWN: u64 = 1;

    #[test]
    fn every_name_of_the_spec_has_its_bit() {
        for number in 0..=40 {
            let known = caps::all().into_iter().find(|c| c.index() == number).unwrap();
            let asked: Capability = serde_json::from_value(json!(known.to_string())).unwrap();
            assert_eq!(bits(&Some([asked].into())).bits(), known.bitmask(), "{known}");
            assert_eq!(names(bits(&Some([asked].into()))), known.to_string());
        }
    }

    #[test]
    fn all_five_sets_over_a_change_of_user() {
        let sets = sets(json!({
            "bounding": ["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHOWN"],
            "permitted": ["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHOWN"],
            "effective": ["CAP_KILL", "CAP_CHOWN"],
            "inheritable": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "ambient": ["CAP_KILL", "CAP_CHOWN"],
        }));
        in_child(move || {
            sets.drop_bounding().unwrap();
            sets.keep().unwrap();
            nix::unistd::setresuid(1000.into(), 1000.into(), 1000.into()).unwrap();
            sets.apply().unwrap();
            assert_eq!(status("CapBnd"), KILL | NET_BIND | CHOWN);
            assert_eq!(status("CapPrm"), KILL | NET_BIND | CHOWN);
            assert_eq!(status("CapEff"), KILL | CHOWN);
            assert_eq!(status("CapInh"), KILL | NET_BIND);
            assert_eq!(status("CapAmb"), KILL, "CAP_CHOWN is not inheritable, so it can't be ambient");
            assert!(!rustix::thread::get_keep_capabilities().unwrap());
        });
    }

    #[test]
    fn no_set_means_no_capability() {
        let sets = sets(json!({}));
        in_child(move || {
            sets.drop_bounding().unwrap();
            sets.apply().unwrap();
            assert_eq!(["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"].map(status), [0; 5]);
        });
    }

    #[test]
    fn what_ckrun_lacks_is_refused_by_name() {
        let lacking = sets(json!({"permitted": ["CAP_KILL", "CAP_CHOWN"]}));
        let effective = sets(json!({"effective": ["CAP_KILL"]}));
        let bounding = sets(json!({"bounding": []}));
        in_child(move || {
            let kill = CapabilitySet::KILL;
            let only =
                CapabilitySets { effective: kill, permitted: kill, inheritable: CapabilitySet::empty() };
            set_capabilities(None, only).unwrap();
            assert_eq!(
                lacking.apply().unwrap_err().to_string(),
                "process.capabilities.permitted: grant CAP_CHOWN: operation not permitted: \
                 ckrun does not have it itself"
            );
            assert_eq!(
                effective.apply().unwrap_err().to_string(),
                "process.capabilities.effective: grant CAP_KILL: operation not permitted: \
                 it is not in the permitted set"
            );
            assert_eq!(
                bounding.drop_bounding().unwrap_err().to_string(),
                "process.capabilities.bounding: drop CAP_CHOWN: operation not permitted"
            );
        });
    }
}
