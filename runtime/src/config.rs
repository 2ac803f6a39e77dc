//! A bundle's config.json: read, checked, and asked short questions.

use crate::error::{Error, Result};
use oci_spec::runtime::{
    Hook, Linux, LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, Process, Spec,
};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// The largest config.json read. Kubernetes' largest seen are under 100 KiB; a limit keeps a wrong path (a device, a
/// disk image) from filling memory.
const MAX_JSON: u64 = 8 << 20;

/// A bundle: its directory and what its config.json asks for.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The directory, absolute and free of symlinks.
    pub dir: PathBuf,
    /// The configuration.
    pub spec: Spec,
    /// The same as JSON, for the container's state.
    pub json: Vec<u8>,
}

impl Bundle {
    /// Reads `dir`/config.json.
    ///
    /// # Errors
    /// The directory or the file is missing, or is not the JSON that the runtime-spec describes; the message names
    /// the field.
    pub fn load(dir: &Path) -> Result<Bundle> {
        let dir = dir.canonicalize().map_err(|e| Error::file(dir, &e))?;
        let path = dir.join("config.json");
        let json = read_capped(&path)?;
        let spec = parse_json(&path, &json)?;
        Ok(Bundle { dir, spec, json })
    }

    /// Brings the JSON in line with a specification that was changed.
    pub fn refresh(&mut self) -> Result<()> {
        self.json = serde_json::to_vec(&self.spec)
            .map_err(|e| Error::Json { path: self.dir.join("config.json"), why: e.to_string() })?;
        Ok(())
    }

    /// The root file system, absolute.
    pub fn rootfs(&self) -> Result<PathBuf> {
        let root = self.spec.root().as_ref().ok_or_else(|| Error::config("root", "is missing"))?;
        Ok(self.dir.join(root.path()))
    }
}

/// Short questions to a configuration whose every part is optional.
pub trait Ask {
    /// The `linux` object.
    fn lx(&self) -> Option<&Linux>;
    /// All namespaces that the container does not share with the host.
    fn namespaces(&self) -> &[LinuxNamespace];
    /// The entry for one kind of namespace.
    fn namespace(&self, kind: LinuxNamespaceType) -> Option<&LinuxNamespace> {
        self.namespaces().iter().find(|ns| ns.typ() == kind)
    }
    /// The mounts, in order.
    fn mount_list(&self) -> &[Mount];
    /// `linux.resources`.
    fn resources(&self) -> Option<&LinuxResources>;
    /// The hooks of one kind, by the name that it has in config.json.
    fn hook_list(&self, kind: &str) -> &[Hook];
    /// The process to run.
    ///
    /// # Errors
    /// There is none.
    fn job(&self) -> Result<&Process>;
}

impl Ask for Spec {
    fn lx(&self) -> Option<&Linux> {
        self.linux().as_ref()
    }

    fn namespaces(&self) -> &[LinuxNamespace] {
        self.lx().and_then(|l| l.namespaces().as_deref()).unwrap_or_default()
    }

    fn mount_list(&self) -> &[Mount] {
        self.mounts().as_deref().unwrap_or_default()
    }

    fn resources(&self) -> Option<&LinuxResources> {
        self.lx().and_then(|l| l.resources().as_ref())
    }

    fn hook_list(&self, kind: &str) -> &[Hook] {
        let Some(hooks) = self.hooks() else { return &[] };
        #[allow(deprecated, reason = "docker still sends prestart hooks")]
        let list = match kind {
            "prestart" => hooks.prestart(),
            "createRuntime" => hooks.create_runtime(),
            "createContainer" => hooks.create_container(),
            "startContainer" => hooks.start_container(),
            "poststart" => hooks.poststart(),
            "poststop" => hooks.poststop(),
            _ => &None,
        };
        list.as_deref().unwrap_or_default()
    }

    fn job(&self) -> Result<&Process> {
        self.process().as_ref().ok_or_else(|| Error::config("process", "is missing"))
    }
}

/// Reads a JSON file of the runtime-spec.
///
/// # Errors
/// Names the file and, when the text is JSON of a wrong type, the field.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse_json(path, &read_capped(path)?)
}

fn read_capped(path: &Path) -> Result<Vec<u8>> {
    let found = std::fs::metadata(path).map_err(|e| Error::file(path, &e))?;
    let refuse = |why: String| Err(Error::Json { path: path.into(), why });
    if !found.is_file() && !found.is_dir() {
        // A FIFO would make us wait for a writer, a device might never end.
        return refuse("is not a regular file".into());
    }
    if found.len() > MAX_JSON {
        return refuse(format!("is larger than {} MiB", MAX_JSON >> 20));
    }
    std::fs::read(path).map_err(|e| Error::file(path, &e))
}

/// Parses JSON of the runtime-spec that came from `origin`.
pub fn parse_json<T: DeserializeOwned>(origin: &Path, text: &[u8]) -> Result<T> {
    // Serde would take an array for an object whose fields it lists in order.
    if text.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| *b != b'{') {
        return Err(Error::Json { path: origin.into(), why: "is not a JSON object".into() });
    }
    serde_json::from_slice(text)
        .or_else(|_| lenient(text))
        .map_err(|why| Error::Json { path: origin.into(), why })
}

/// The second reading of a text that the strict types refused: capabilities that this ckrun does not know are dropped
/// with a warning, as the runtime-spec wants; two flags that oci-spec 0.10 spells wrongly are given its spelling;
/// anything else is an error that names its field.
fn lenient<T: DeserializeOwned>(text: &[u8]) -> std::result::Result<T, String> {
    let mut value: serde_json::Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    for process in ["/process/capabilities", "/capabilities"] {
        if let Some(serde_json::Value::Object(sets)) = value.pointer_mut(process) {
            for list in sets.values_mut().filter_map(|v| v.as_array_mut()) {
                list.retain(known_capability);
            }
        }
    }
    for flags in ["/process/scheduler/flags", "/scheduler/flags"] {
        for flag in value.pointer_mut(flags).and_then(|v| v.as_array_mut()).into_iter().flatten() {
            match flag.as_str() {
                Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
                Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
                _ => {}
            }
        }
    }
    serde_path_to_error::deserialize(value).map_err(|e| match e.path().to_string() {
        path if path == "." => e.inner().to_string(),
        path => format!("{path}: {}", e.inner()),
    })
}

fn known_capability(name: &serde_json::Value) -> bool {
    // What is not a string stays, for the type error that names it.
    let known =
        !name.is_string() || serde_json::from_value::<oci_spec::runtime::Capability>(name.clone()).is_ok();
    if !known {
        let name = name.as_str().unwrap_or_default();
        log::warn!("process.capabilities: ignoring unknown or unavailable capabilities: [{name}]");
    }
    known
}
