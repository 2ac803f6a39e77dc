//! Kernel parameters of the container's namespaces: `linux.sysctl`.
//!
//! Most of `/proc/sys` belongs to the whole machine. Only what belongs to a namespace that the container does not
//! share with the host may be set.

use super::procfs::Proc;
use crate::config::Ask;
use crate::error::{Error, Result};
use ckrun_virt::Failure;
use oci_spec::runtime::{LinuxNamespaceType as Kind, Spec};
use std::os::unix::fs::MetadataExt;

/// What the ipc namespace holds of `/proc/sys/kernel`.
const IPC: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];

/// Checks every key, before anything is made.
///
/// # Errors
/// Names `linux.sysctl[KEY]`: the whole machine's, or of a namespace that is shared with the host.
pub fn validate(spec: &Spec) -> Result<()> {
    for key in keys(spec) {
        let refuse = |why: &str| Err(Error::config(field(key), why));
        let path = path(key);
        let parts: Vec<&str> = path.split('/').collect();
        if parts.iter().any(|part| part.is_empty() || *part == "..") {
            return refuse("is no name of a kernel parameter");
        }
        let (owner, what) = match parts[..] {
            ["kernel", name] if IPC.contains(&name) => (Kind::Ipc, "ipc"),
            ["fs", "mqueue", _, ..] => (Kind::Ipc, "ipc"),
            ["net", _, ..] => (Kind::Network, "network"),
            ["kernel", "domainname"] => (Kind::Uts, "uts"),
            ["kernel", "hostname"] => return refuse("has a field of its own: hostname"),
            ["user", _, ..] => (Kind::User, "user"),
            _ => return refuse("belongs to the whole machine, not to a namespace"),
        };
        if !owns(spec, owner) {
            return refuse(&format!("needs a {what} namespace that is not the host's"));
        }
    }
    Ok(())
}

/// Sets every parameter, inside the container's namespaces, before `/proc/sys` is made read-only.
///
/// # Errors
/// Names `linux.sysctl[KEY]` and what the kernel says.
pub fn apply(spec: &Spec, proc: &Proc) -> Result<()> {
    for (key, value) in spec.lx().and_then(|linux| linux.sysctl().as_ref()).into_iter().flatten() {
        let path = format!("sys/{}", path(key));
        proc.write(&path, value.as_bytes()).map_err(|errno| {
            let why = Failure::new(format!("write {value:?} to /proc/{path}"), errno);
            Error::config(field(key), why.to_string())
        })?;
    }
    Ok(())
}

fn keys(spec: &Spec) -> impl Iterator<Item = &String> {
    spec.lx().and_then(|linux| linux.sysctl().as_ref()).into_iter().flat_map(|all| all.keys())
}

fn field(key: &str) -> String {
    format!("linux.sysctl[{key}]")
}

/// A key as a path below /proc/sys. As for sysctl(8), the first separator decides: `net.ipv4.conf.eth0/100.x` and
/// `net/ipv4/conf/eth0.100/x` both mean the interface `eth0.100`.
fn path(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(first) if key[first..].starts_with('.') => {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            };
            key.chars().map(swap).collect()
        }
        _ => key.to_owned(),
    }
}

/// Whether the container has a namespace of this kind which is not ckrun's own.
fn owns(spec: &Spec, kind: Kind) -> bool {
    let Some(namespace) = spec.namespace(kind) else { return false };
    let Some(path) = namespace.path().as_ref().filter(|_| kind == Kind::Network) else { return true };
    // Engines give a path to the host's network namespace, too. A path that can't be read fails when it is joined.
    let identity = |path: &std::path::Path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    identity(path).is_none() || identity(path) != identity("/proc/self/ns/net".as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::testing::in_child;
    use nix::sched::{CloneFlags, unshare};
    use serde_json::json;

    fn spec(namespaces: serde_json::Value, sysctl: serde_json::Value) -> Spec {
        let linux = json!({"namespaces": namespaces, "sysctl": sysctl});
        serde_json::from_value(json!({"ociVersion": "1.0.0", "linux": linux})).unwrap()
    }

    #[test]
    fn both_separators_and_dots_in_names() {
        assert_eq!(path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(path("net/ipv4/ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(path("net.ipv4.conf.eth0/100.rp_filter"), "net/ipv4/conf/eth0.100/rp_filter");
        assert_eq!(path("net/ipv4/conf/eth0.100/rp_filter"), "net/ipv4/conf/eth0.100/rp_filter");
    }

    #[test]
    fn a_key_needs_its_namespace() {
        let all = json!([{"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "user"}]);
        for key in [
            "net.core.somaxconn",
            "kernel.msgmax",
            "fs.mqueue.msg_max",
            "kernel/domainname",
            "user.max_ipc_namespaces",
        ] {
            let value = json!({key: "1"});
            validate(&spec(all.clone(), value.clone())).unwrap();
            let said = validate(&spec(json!([{"type": "mount"}]), value)).unwrap_err().to_string();
            assert!(said.starts_with(&format!("linux.sysctl[{key}]: needs a ")), "{said}");
        }
        for key in [
            "kernel.hostname",
            "kernel.panic",
            "vm.swappiness",
            "net",
            "net...x",
            "/net/x",
            "net/../vm/x",
            "",
        ] {
            let said = validate(&spec(all.clone(), json!({key: "1"}))).unwrap_err().to_string();
            assert!(said.starts_with(&format!("linux.sysctl[{key}]: ")), "{said}");
        }
    }

    #[test]
    fn a_path_to_the_hosts_network_is_still_the_hosts() {
        let host = json!([{"type": "network", "path": "/proc/self/ns/net"}]);
        let said = validate(&spec(host, json!({"net.core.somaxconn": "1"}))).unwrap_err().to_string();
        assert_eq!(
            said,
            "linux.sysctl[net.core.somaxconn]: needs a network namespace that is not the host's"
        );
    }

    #[test]
    fn parameters_are_set_in_the_namespace_only() {
        let read = || std::fs::read_to_string("/proc/sys/kernel/msgmax").unwrap();
        let before = read();
        in_child(|| {
            unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWNET).unwrap();
            let proc = Proc::open().unwrap();
            apply(&spec(json!([]), json!({"kernel.msgmax": "4242", "net/ipv4/ip_forward": "1"})), &proc)
                .unwrap();
            assert_eq!(read(), "4242\n");
            assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "1\n");
            let said = |value| apply(&spec(json!([]), value), &proc).unwrap_err().to_string();
            assert_eq!(
                said(json!({"net.nonexistent": "1"})),
                "linux.sysctl[net.nonexistent]: write \"1\" to /proc/sys/net/nonexistent: \
                 no such file or directory"
            );
            assert!(said(json!({"kernel.msgmax": "x"})).ends_with("invalid argument"));
        });
        assert_eq!(read(), before);
    }
}
