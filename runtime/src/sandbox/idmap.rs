//! The id mappings of a new user namespace.
//!
//! Root writes the maps itself. Anybody else may map only their own id, with setgroups denied; for more there are the
//! setuid helpers newuidmap and newgidmap, which know /etc/subuid and /etc/subgid (user_namespaces(7)).

use crate::config::Ask;
use crate::error::{Error, Result};
use ckrun_virt::Doing;
use nix::unistd::{Pid, getegid, geteuid};
use oci_spec::runtime::{LinuxIdMapping, Spec};
use std::path::Path;
use std::process::Command;

/// Writes the id mappings of config.json for the process `init`, which waits for them in its new user namespace.
///
/// # Errors
/// The kernel or the helper refuses the mapping.
pub fn write(spec: &Spec, init: Pid) -> Result<()> {
    let Some(linux) = spec.lx() else { return Ok(()) };
    let uids = linux.uid_mappings().as_deref().unwrap_or_default();
    let gids = linux.gid_mappings().as_deref().unwrap_or_default();
    let (euid, egid) = (geteuid(), getegid());
    if euid.is_root() {
        write_map(init, "uid_map", "linux.uidMappings", uids)?;
        return write_map(init, "gid_map", "linux.gidMappings", gids);
    }
    if only_own(uids, euid.as_raw()) {
        write_map(init, "uid_map", "linux.uidMappings", uids)?;
    } else {
        helper("newuidmap", "linux.uidMappings", init, uids)?;
    }
    if only_own(gids, egid.as_raw()) {
        // Without privilege the kernel takes a group map only once the way to drop groups is closed.
        let path = format!("/proc/{init}/setgroups");
        std::fs::write(&path, "deny").doing(|| format!("write {path}"))?;
        write_map(init, "gid_map", "linux.gidMappings", gids)
    } else {
        helper("newgidmap", "linux.gidMappings", init, gids)
    }
}

fn only_own(map: &[LinuxIdMapping], id: u32) -> bool {
    matches!(map, [one] if one.host_id() == id && one.size() == 1)
}

/// The map in the kernel's form: "inside outside length" lines. The kernel takes it in one write only.
pub fn lines(map: &[LinuxIdMapping]) -> String {
    map.iter().map(|m| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size())).collect()
}

fn write_map(init: Pid, file: &str, field: &str, map: &[LinuxIdMapping]) -> Result<()> {
    let path = format!("/proc/{init}/{file}");
    std::fs::write(&path, lines(map))
        .map_err(|e| Error::config(field, format!("{path} does not take it: {e}")))
}

fn helper(name: &str, field: &str, init: Pid, map: &[LinuxIdMapping]) -> Result<()> {
    // Clients may call ckrun without a PATH.
    let program = ["/usr/bin", "/usr/local/bin", "/bin", "/run/wrappers/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
        .ok_or_else(|| {
            Error::config(
                field,
                format!("maps more than the caller's own id, and {name} (package uidmap) is missing"),
            )
        })?;
    let numbers = map.iter().flat_map(|m| [m.container_id(), m.host_id(), m.size()]);
    let output = Command::new(&program)
        .arg(init.to_string())
        .args(numbers.map(|n| n.to_string()))
        .output()
        .map_err(|e| Error::file(&program, &e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::config(field, format!("{name} refuses it: {said}")))
}
