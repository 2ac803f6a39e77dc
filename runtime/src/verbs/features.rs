//! `ckrun features`: what this ckrun can do, for the programs that call it.

use super::print_json;
use crate::error::Result;
use crate::sandbox::{mount_options, seccomp};
use crate::state::OCI_VERSION;
use serde_json::{Value, json};

/// Print what this ckrun supports, as the features structure of the runtime-spec
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ckrun features | jq .linux.seccomp")]
pub struct Args {}

/// Carries it out.
pub fn run(_: &Args) -> Result<()> {
    print_json(&features())
}

/// The features structure. It tells what ckrun knows, not what this host has; only the flags of seccomp filters are
/// asked of the kernel, as the runtime-spec wants.
pub fn features() -> Value {
    let mut annotations = json!({"dev.ckrun.version": env!("CARGO_PKG_VERSION")});
    if let Ok(version) = libseccomp::ScmpVersion::current() {
        annotations["io.github.seccomp.libseccomp.version"] = version.to_string().into();
    }
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": crate::cdi::HOOKS,
        "mountOptions": mount_options::known(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities(),
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": ACTIONS,
                "operators": OPERATORS,
                "archs": ARCHITECTURES,
                "knownFlags": FLAGS,
                "supportedFlags": seccomp::supported_flags(),
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {"modes": MEMORY_POLICIES, "flags": MEMORY_POLICY_FLAGS},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        "annotations": annotations,
        "potentiallyUnsafeConfigAnnotations": UNSAFE_ANNOTATIONS,
    })
}

/// The names of all capabilities, by number.
fn capabilities() -> Vec<String> {
    let mut all: Vec<_> = caps::all().into_iter().collect();
    all.sort_unstable_by_key(|capability| capability.index());
    all.into_iter().map(|capability| capability.to_string()).collect()
}

const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

const ARCHITECTURES: [&str; 23] = [
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

const MEMORY_POLICIES: [&str; 7] = [
    "MPOL_BIND",
    "MPOL_DEFAULT",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];

const MEMORY_POLICY_FLAGS: [&str; 3] =
    ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"];

/// Annotations of config.json that change what ckrun does; who passes on annotations of strangers should filter them.
/// One that ends in a dot is a prefix.
const UNSAFE_ANNOTATIONS: [&str; 2] = ["org.systemd.property.", "dev.ckrun."];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Ask;
    use crate::sandbox::scheduling;
    use oci_spec::runtime::{Features, LinuxSeccompFilterFlag, Spec};

    /// Two spellings of the same structure: what oci-spec reads of it must be all of it.
    #[test]
    fn it_is_the_runtime_specs_structure() {
        let features = features();
        let read: Features = serde_json::from_value(features.clone()).unwrap();
        let again = serde_json::to_value(read).unwrap();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&again), keys(&features));
        assert_eq!(keys(&again["linux"]), keys(&features["linux"]));
        assert_eq!(again["linux"]["seccomp"]["archs"].as_array().unwrap().len(), ARCHITECTURES.len());
        assert_eq!(features["linux"]["capabilities"].as_array().unwrap().len(), 41);
    }

    #[test]
    fn what_it_promises_of_seccomp_compiles() {
        for action in ACTIONS.iter().filter(|action| **action != "SCMP_ACT_NOTIFY") {
            for operator in OPERATORS {
                let profile = json!({
                    "defaultAction": action,
                    "architectures": ARCHITECTURES,
                    "syscalls": [{"names": ["read"], "action": action, "args":
                        [{"index": 0, "value": 1, "op": operator}]}],
                });
                seccomp::Filter::compile(&serde_json::from_value(profile).unwrap()).unwrap();
            }
        }
        let known: Vec<LinuxSeccompFilterFlag> = serde_json::from_value(json!(FLAGS)).unwrap();
        assert!(seccomp::supported_flags().iter().all(|flag| known.contains(flag)));
    }

    #[test]
    fn what_it_promises_of_memory_policies_is_understood() {
        for mode in MEMORY_POLICIES {
            let policy = json!({"mode": mode, "flags": MEMORY_POLICY_FLAGS, "nodes": "not a list"});
            let json = json!({"ociVersion": OCI_VERSION, "linux": {"memoryPolicy": policy}});
            let spec: Spec = serde_json::from_value(json).unwrap();
            assert!(spec.lx().unwrap().memory_policy().is_some());
            let said = scheduling::domain_and_memory(&spec).unwrap_err().to_string();
            assert!(said.starts_with("linux.memoryPolicy.nodes: "), "{said}");
        }
    }
}
