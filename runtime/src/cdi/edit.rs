//! What devices do to a configuration.

use super::file::{DeviceNode, Edits, Hook, Mount};
use super::registry::Found;
use crate::error::{Error, Result};
use ckrun_virt::Failure;
use nix::errno::Errno;
use oci_spec::runtime::{
    Hook as OciHook, Hooks, Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxIntelRdt,
    LinuxNetDevice, LinuxResources, Mount as OciMount, Process, Spec,
};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path};

/// Edits `spec` for all devices in `found`: for each what belongs to it, and once for each description what belongs to
/// all of its devices. An edit replaces what is there under the same name: a variable, a device, a mount.
///
/// # Errors
/// A device node is missing on this host, or is another one than described.
pub fn edit(spec: &mut Spec, found: &[Found<'_>]) -> Result<()> {
    for (i, one) in found.iter().enumerate() {
        if !found[..i].iter().any(|earlier| earlier.path == one.path) {
            apply(spec, &one.file.container_edits).map_err(|why| of(one, "containerEdits", why))?;
        }
        let at = format!("the device {:?}", one.device.name);
        apply(spec, &one.device.container_edits).map_err(|why| of(one, &at, why))?;
    }
    Ok(())
}

fn of(found: &Found<'_>, at: &str, why: String) -> Error {
    Error::Json { path: found.path.into(), why: format!("{at}: {why}") }
}

fn apply(spec: &mut Spec, edits: &Edits) -> Result<(), String> {
    if let Some(process) = spec.process_mut() {
        set_env(process, &edits.env);
        add_groups(process, &edits.additional_gids);
    }
    for (i, node) in edits.device_nodes.iter().enumerate() {
        add_device(spec, node).map_err(|why| format!("deviceNodes[{i}]: {why}"))?;
    }
    if !edits.mounts.is_empty() {
        add_mounts(spec, &edits.mounts);
    }
    for hook in &edits.hooks {
        add_hook(spec.hooks_mut().get_or_insert_default(), hook);
    }
    if let Some(rdt) = &edits.intel_rdt {
        let mut oci = LinuxIntelRdt::default();
        oci.set_clos_id(rdt.clos_id.clone())
            .set_l3_cache_schema(rdt.l3_cache_schema.clone())
            .set_mem_bw_schema(rdt.mem_bw_schema.clone())
            .set_schemata(rdt.schemata.clone())
            .set_enable_monitoring(rdt.enable_monitoring.then_some(true));
        linux(spec).set_intel_rdt(Some(oci));
    }
    for device in &edits.net_devices {
        let mut oci = LinuxNetDevice::default();
        oci.set_name(Some(device.name.clone()));
        let all = linux(spec).net_devices_mut().get_or_insert_default();
        all.insert(device.host_interface_name.clone(), oci);
    }
    Ok(())
}

/// The `linux` object. Not oci-spec's default one, which is full of things that nobody asked for.
fn linux(spec: &mut Spec) -> &mut Linux {
    spec.linux_mut().get_or_insert_with(|| {
        let mut empty = Linux::default();
        empty.set_resources(None).set_namespaces(None).set_masked_paths(None).set_readonly_paths(None);
        empty
    })
}

fn set_env(process: &mut Process, variables: &[String]) {
    let name = |variable: &str| variable.split('=').next().map(str::to_owned);
    let env = process.env_mut().get_or_insert_default();
    for variable in variables {
        match env.iter_mut().find(|known| name(known) == name(variable)) {
            Some(known) => known.clone_from(variable),
            None => env.push(variable.clone()),
        }
    }
}

fn add_groups(process: &mut Process, gids: &[u32]) {
    let mut all = process.user().additional_gids().clone().unwrap_or_default();
    for gid in gids.iter().filter(|gid| **gid != 0) {
        if !all.contains(gid) {
            all.push(*gid);
        }
    }
    if !gids.is_empty() {
        process.user_mut().set_additional_gids(Some(all));
    }
}

fn add_device(spec: &mut Spec, node: &DeviceNode) -> Result<(), String> {
    let mut device = complete(node)?;
    if let Some(process) = spec.process() {
        let owner = |id: u32| (id > 0).then_some(id);
        device.set_uid(node.uid.or(owner(process.user().uid())));
        device.set_gid(node.gid.or(owner(process.user().gid())));
    }
    let rule = matches!(device.typ(), LinuxDeviceType::B | LinuxDeviceType::C).then(|| {
        let access = match node.permissions.as_str() {
            "" => "rwm",
            "none" => "",
            some => some,
        };
        let mut rule = LinuxDeviceCgroup::from(&device);
        rule.set_access(Some(access.into()));
        rule
    });
    let linux = linux(spec);
    let devices = linux.devices_mut().get_or_insert_default();
    devices.retain(|known| known.path() != device.path());
    devices.push(device);
    if let Some(rule) = rule {
        let resources = linux.resources_mut().get_or_insert_with(LinuxResources::default);
        let mut rules = resources.devices().clone().unwrap_or_default();
        rules.push(rule);
        resources.set_devices(Some(rules));
    }
    Ok(())
}

/// A device node as OCI wants it; what the description leaves out is read off the host's node.
fn complete(node: &DeviceNode) -> Result<LinuxDevice, String> {
    let described = node.kind == "p" || (!node.kind.is_empty() && node.major != 0);
    let host_path = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    let host = match std::fs::symlink_metadata(host_path) {
        Ok(host) => Some(host),
        Err(_) if described => None,
        Err(e) => {
            let errno = e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            return Err(Failure::new(format!("look at {host_path}"), errno).to_string());
        }
    };
    let mut device = LinuxDevice::default();
    device.set_path(node.path.clone().into()).set_uid(node.uid).set_gid(node.gid);
    device.set_file_mode(node.file_mode.or(host.as_ref().map(|host| host.mode() & 0o7777)));
    device.set_major(node.major).set_minor(node.minor).set_typ(kind(&node.kind));
    if described {
        return Ok(device);
    }
    if let Some(host) = host {
        let kind_there = match host.file_type() {
            kind if kind.is_block_device() => LinuxDeviceType::B,
            kind if kind.is_char_device() => LinuxDeviceType::C,
            kind if kind.is_fifo() => LinuxDeviceType::P,
            _ => return Err(format!("{host_path} is not a device")),
        };
        let expected = kind(&node.kind);
        let same =
            expected == kind_there || (expected, kind_there) == (LinuxDeviceType::U, LinuxDeviceType::C);
        if !node.kind.is_empty() && !same {
            return Err(format!("{host_path} is of type {:?}, not {:?}", kind_there.as_str(), node.kind));
        }
        if node.kind.is_empty() {
            device.set_typ(kind_there);
        }
        if node.major == 0 && kind_there != LinuxDeviceType::P {
            device.set_major(libc::major(host.rdev()).into()).set_minor(libc::minor(host.rdev()).into());
        }
    }
    Ok(device)
}

fn kind(text: &str) -> LinuxDeviceType {
    match text {
        "b" => LinuxDeviceType::B,
        "u" => LinuxDeviceType::U,
        "p" => LinuxDeviceType::P,
        _ => LinuxDeviceType::C,
    }
}

/// Adds mounts and puts all in order: nothing may be mounted over an earlier mount below it.
fn add_mounts(spec: &mut Spec, mounts: &[Mount]) {
    let all = spec.mounts_mut().get_or_insert_default();
    for mount in mounts {
        let mut oci = OciMount::default();
        oci.set_source(Some(mount.host_path.clone().into()))
            .set_destination(mount.container_path.clone().into())
            .set_typ((!mount.kind.is_empty()).then(|| mount.kind.clone()))
            .set_options((!mount.options.is_empty()).then(|| mount.options.clone()));
        all.retain(|known| known.destination() != oci.destination());
        all.push(oci);
    }
    let depth = |path: &Path| path.components().filter(|c| matches!(c, Component::Normal(_))).count();
    all.sort_by_key(|mount| depth(mount.destination()));
}

fn add_hook(hooks: &mut Hooks, hook: &Hook) {
    let mut oci = OciHook::default();
    oci.set_path(hook.path.clone().into())
        .set_args((!hook.args.is_empty()).then(|| hook.args.clone()))
        .set_env((!hook.env.is_empty()).then(|| hook.env.clone()))
        .set_timeout(hook.timeout);
    #[allow(deprecated, reason = "descriptions may still ask for prestart hooks")]
    let list = match hook.hook_name.as_str() {
        "prestart" => hooks.prestart_mut(),
        "createRuntime" => hooks.create_runtime_mut(),
        "createContainer" => hooks.create_container_mut(),
        "startContainer" => hooks.start_container_mut(),
        "poststart" => hooks.poststart_mut(),
        // The last of `HOOKS`, which the name was checked against.
        _ => hooks.poststop_mut(),
    };
    let list = list.get_or_insert_default();
    // An engine that has edited the configuration passes the annotations on all the same.
    if !list.contains(&oci) {
        list.push(oci);
    }
}
