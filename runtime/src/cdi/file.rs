//! A vendor's description of devices: the JSON, and the rules that the JSON must meet.

use super::name::{check_device, check_kind};
use serde::Deserialize;
use std::collections::HashMap;

/// The newest version of the specification that ckrun knows.
const NEWEST: Version = (1, 1);
/// What a description needs at least that uses nothing newer.
const OLDEST: Version = (0, 3);

/// Major and minor; a patch never changes the format.
type Version = (u32, u32);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    cdi_version: String,
    pub(super) kind: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// For any of the devices.
    #[serde(default)]
    pub(super) container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Edits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) net_devices: Vec<NetDevice>,
    pub(super) hooks: Vec<Hook>,
    pub(super) mounts: Vec<Mount>,
    pub(super) intel_rdt: Option<IntelRdt>,
    #[serde(alias = "additionalGIDs")]
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DeviceNode {
    pub(super) path: String,
    #[serde(default)]
    pub(super) host_path: String,
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) major: i64,
    #[serde(default)]
    pub(super) minor: i64,
    pub(super) file_mode: Option<u32>,
    #[serde(default)]
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NetDevice {
    pub(super) host_interface_name: String,
    pub(super) name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: String,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<String>,
    pub(super) timeout: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default)]
    pub(super) options: Vec<String>,
    #[serde(default, rename = "type")]
    pub(super) kind: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[derive(Default)]
pub(super) struct IntelRdt {
    #[serde(rename = "closID")]
    pub(super) clos_id: Option<String>,
    pub(super) l3_cache_schema: Option<String>,
    pub(super) mem_bw_schema: Option<String>,
    pub(super) schemata: Option<Vec<String>>,
    pub(super) enable_monitoring: bool,
}

/// The hooks of the runtime-spec, which are those that a description may add.
pub const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

impl File {
    /// Checks everything that the types don't; the error begins with the field.
    pub(super) fn check(&self) -> Result<(), String> {
        let version = version(&self.cdi_version).map_err(|why| format!("cdiVersion: {why}"))?;
        check_kind(&self.kind).map_err(|why| format!("kind: {why}"))?;
        self.container_edits.check("containerEdits")?;
        if self.devices.is_empty() {
            return Err("devices: there is none".into());
        }
        for (i, device) in self.devices.iter().enumerate() {
            check_device(&device.name).map_err(|why| format!("devices[{i}].name: {why}"))?;
            if self.devices[..i].iter().any(|earlier| earlier.name == device.name) {
                return Err(format!("devices[{i}].name: {:?} is there twice", device.name));
            }
            device.container_edits.check(&format!("devices[{i}].containerEdits"))?;
        }
        let (needed, field) = self.needs();
        if version < needed {
            let (major, minor) = needed;
            return Err(format!("cdiVersion: {:?}, but {field} needs {major}.{minor}.0", self.cdi_version));
        }
        Ok(())
    }

    /// The version that the newest thing in use came with, and where that is.
    fn needs(&self) -> (Version, String) {
        let mut newest = (OLDEST, String::new());
        let mut uses = |used: bool, version: Version, field: &dyn Fn() -> String| {
            if used && version > newest.0 {
                newest = (version, field());
            }
        };
        uses(!self.annotations.is_empty(), (0, 6), &|| "annotations".into());
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        uses(class.contains('.'), (0, 6), &|| "a dot in the class of kind".into());
        for (i, device) in self.devices.iter().enumerate() {
            let digit = device.name.starts_with(|c: char| c.is_ascii_digit());
            uses(digit, (0, 5), &|| format!("a digit at the start of devices[{i}].name"));
            uses(!device.annotations.is_empty(), (0, 6), &|| format!("devices[{i}].annotations"));
        }
        let of_devices = self.devices.iter().enumerate();
        let of_devices =
            of_devices.map(|(i, d)| (format!("devices[{i}].containerEdits"), &d.container_edits));
        for (at, edits) in of_devices.chain([("containerEdits".to_owned(), &self.container_edits)]) {
            uses(edits.mounts.iter().any(|m| !m.kind.is_empty()), (0, 4), &|| {
                format!("a type in {at}.mounts")
            });
            let host_path = edits.device_nodes.iter().any(|node| !node.host_path.is_empty());
            uses(host_path, (0, 5), &|| format!("a hostPath in {at}.deviceNodes"));
            uses(edits.intel_rdt.is_some(), (0, 7), &|| format!("{at}.intelRdt"));
            uses(!edits.additional_gids.is_empty(), (0, 7), &|| format!("{at}.additionalGids"));
            let newer = edits.intel_rdt.as_ref().is_some_and(|r| r.schemata.is_some() || r.enable_monitoring);
            uses(newer, (1, 1), &|| format!("schemata or enableMonitoring in {at}.intelRdt"));
            uses(!edits.net_devices.is_empty(), (1, 1), &|| format!("{at}.netDevices"));
        }
        newest
    }
}

/// Reads `1.1.0` or `v1.1.0`.
fn version(text: &str) -> Result<Version, String> {
    let mut parts = text.strip_prefix('v').unwrap_or(text).split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten(), parts.next().flatten(), parts.next()) {
        (Some(major), Some(minor), Some(_), None) if (major, minor) <= NEWEST => Ok((major, minor)),
        (Some(_), Some(_), Some(_), None) => {
            Err(format!("{text:?} is newer than {}.{}, the newest that ckrun knows", NEWEST.0, NEWEST.1))
        }
        _ => Err(format!("{text:?} is no version like 1.1.0")),
    }
}

impl Edits {
    fn check(&self, at: &str) -> Result<(), String> {
        check_env(&self.env, at)?;
        for (i, node) in self.device_nodes.iter().enumerate() {
            let at = format!("{at}.deviceNodes[{i}]");
            if !node.path.starts_with('/') {
                return Err(format!("{at}.path: {:?} is not absolute", node.path));
            }
            if !["", "b", "c", "u", "p"].contains(&node.kind.as_str()) {
                return Err(format!("{at}.type: {:?} is none of b, c, u and p", node.kind));
            }
            if node.permissions != "none" && !node.permissions.chars().all(|c| "rwm".contains(c)) {
                return Err(format!(
                    "{at}.permissions: {:?} is neither of r, w, m nor none",
                    node.permissions
                ));
            }
        }
        for (i, device) in self.net_devices.iter().enumerate() {
            let at = format!("{at}.netDevices[{i}]");
            if device.host_interface_name.is_empty() || device.name.is_empty() {
                return Err(format!("{at}: both hostInterfaceName and name are needed"));
            }
            let same = |other: &NetDevice| {
                other.host_interface_name == device.host_interface_name || other.name == device.name
            };
            if self.net_devices[..i].iter().any(same) {
                return Err(format!(
                    "{at}: {:?} or {:?} is there twice",
                    device.host_interface_name, device.name
                ));
            }
        }
        for (i, hook) in self.hooks.iter().enumerate() {
            let at = format!("{at}.hooks[{i}]");
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return Err(format!("{at}.hookName: {:?} is none of {}", hook.hook_name, HOOKS.join(", ")));
            }
            if !hook.path.starts_with('/') {
                return Err(format!("{at}.path: {:?} is not absolute", hook.path));
            }
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return Err(format!("{at}.timeout: must be greater than zero"));
            }
            check_env(&hook.env, &at)?;
        }
        for (i, mount) in self.mounts.iter().enumerate() {
            if mount.host_path.is_empty() || mount.container_path.is_empty() {
                return Err(format!("{at}.mounts[{i}]: both hostPath and containerPath are needed"));
            }
        }
        match self.intel_rdt.as_ref().and_then(|rdt| rdt.clos_id.as_deref()) {
            Some(id @ ("." | "..")) => Err(format!("{at}.intelRdt.closID: {id:?} is no name")),
            Some(id) if id != "/" && id.contains(['/', '\n']) => {
                Err(format!("{at}.intelRdt.closID: {id:?} is no name of a directory"))
            }
            _ => Ok(()),
        }
    }
}

fn check_env(env: &[String], at: &str) -> Result<(), String> {
    match env.iter().position(|variable| variable.find('=').is_none_or(|equals| equals == 0)) {
        Some(i) => Err(format!("{at}.env[{i}]: {:?} is not NAME=VALUE", env[i])),
        None => Ok(()),
    }
}
