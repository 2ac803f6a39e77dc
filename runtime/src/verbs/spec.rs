//! `ckrun spec`: a config.json to begin with.

use crate::error::{Error, Result};
use nix::unistd::{getegid, geteuid};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Write a config.json to begin with
///
/// The file is never overwritten.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mkdir -p bundle/rootfs && ckrun spec --bundle bundle")]
pub struct Args {
    /// The directory to write it to [default: the current directory]
    #[arg(short, long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// For an ordinary user, who becomes root in a user namespace
    #[arg(long)]
    rootless: bool,
}

/// Carries it out.
pub fn run(args: &Args) -> Result<()> {
    let path = args.bundle.as_deref().unwrap_or(Path::new(".")).join("config.json");
    let text = serde_json::to_string_pretty(&template(args.rootless))
        .map_err(|e| Error::Json { path: path.clone(), why: e.to_string() })?;
    let mut file = File::create_new(&path).map_err(|e| Error::file(&path, &e))?;
    file.write_all(text.as_bytes()).map_err(|e| Error::file(&path, &e))
}

/// A configuration that runs a shell, with little privilege; what `runc spec` writes, for the newest runtime-spec.
/// `rootless`: for a caller without privilege, who becomes root in a user namespace of his own.
pub fn template(rootless: bool) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mut template = json!({
        "ociVersion": crate::state::OCI_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "ckrun",
        "mounts": mounts(rootless),
        "linux": {
            "namespaces": namespaces(rootless),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    let linux = &mut template["linux"];
    if rootless {
        let map = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
        linux["uidMappings"] = map(geteuid().as_raw());
        linux["gidMappings"] = map(getegid().as_raw());
    } else {
        linux["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    }
    template
}

fn mounts(rootless: bool) -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| match options {
        [] => json!({"destination": destination, "type": kind, "source": source}),
        _ => json!({"destination": destination, "type": kind, "source": source, "options": options}),
    };
    // The group of terminals has no mapping in a namespace of one user; nor may that user mount a sysfs of a network
    // namespace that is not his.
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    let pts = &pts[..if rootless { 5 } else { 6 }];
    let sys = match rootless {
        true => mount("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]),
        false => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    };
    json!([
        mount("/proc", "proc", "proc", &[]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", pts),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        sys,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ])
}

fn namespaces(rootless: bool) -> Value {
    let mut kinds = vec!["pid", "network", "ipc", "uts", "mount"];
    if rootless {
        // In a network namespace of its own the container would have no network at all: only the host's root can
        // connect it.
        kinds.retain(|kind| *kind != "network");
    }
    // On cgroup v1 a namespace hides little and older images are confused by it.
    let unified = rustix::fs::statfs(c"/sys/fs/cgroup")
        .is_ok_and(|fs| fs.f_type as u64 == libc::CGROUP2_SUPER_MAGIC as u64);
    if unified {
        kinds.push("cgroup");
    }
    if rootless {
        kinds.push("user");
    }
    kinds.into_iter().map(|kind| json!({"type": kind})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Ask;
    use oci_spec::runtime::{LinuxNamespaceType as Kind, Spec};

    fn spec(rootless: bool) -> Spec {
        serde_json::from_value(template(rootless)).unwrap()
    }

    #[test]
    fn nothing_of_the_template_gets_lost_in_reading() {
        for rootless in [false, true] {
            let written = serde_json::to_value(spec(rootless)).unwrap();
            // The order of capabilities, a set, is the only thing that may change.
            let sorted = |mut value: Value| {
                for set in value["process"]["capabilities"].as_object_mut().unwrap().values_mut() {
                    set.as_array_mut().unwrap().sort_by_key(|name| name.to_string());
                }
                value
            };
            assert_eq!(sorted(written), sorted(template(rootless)));
        }
    }

    #[test]
    fn a_rootless_container_shares_the_network_and_maps_its_user() {
        let (root, rootless) = (spec(false), spec(true));
        assert!(root.namespace(Kind::Network).is_some() && root.namespace(Kind::User).is_none());
        assert!(rootless.namespace(Kind::Network).is_none() && rootless.namespace(Kind::User).is_some());
        let linux = rootless.lx().unwrap();
        assert_eq!(linux.uid_mappings().as_ref().unwrap()[0].host_id(), geteuid().as_raw());
        assert!(linux.resources().is_none());
        let options = rootless.mount_list().iter().flat_map(|mount| mount.options().iter().flatten());
        assert!(options.clone().count() > 10);
        assert!(options.into_iter().all(|option| !option.starts_with("gid=")));
    }
}
