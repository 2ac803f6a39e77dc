//! Devices by name, as their vendors describe them: the Container Device Interface, version 1.1.0.
//!
//! A vendor installs a file that says what a container needs to use a device: nodes, mounts, variables, hooks. Asked
//! for `vendor.com/class=name`, ckrun looks the name up and edits config.json before anything is made. Engines do so
//! themselves; this is for `ckrun run --device`, and for a restore, where a name must be looked up on the new host.
//!
//! [`Name`] is what is asked for, [`Registry`] what the host has, [`edit`] what a device does to a configuration, [`Owned`]
//! what of that is the device itself.
//!
//! Own code, because the crate that exists brings a JSON-schema validator with an HTTP client, TLS and an asynchronous
//! runtime. Files in YAML are left to be converted: a parser for them would be ckrun's largest dependency.

mod edit;
mod file;
mod name;
mod owned;
mod registry;

pub use edit::edit;
pub use file::HOOKS;
pub use name::Name;
pub use owned::Owned;
pub use registry::{Found, Registry};

use crate::error::{Error, Result};
use oci_spec::runtime::Spec;
use std::path::PathBuf;

/// Where descriptions are: static ones, then those made at run time, which win.
pub const DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// The annotations by which Kubernetes' device plugins ask for devices begin so.
const ANNOTATION: &str = "cdi.k8s.io/";

/// Edits `spec` for the devices `wanted`, and for those that its annotations ask for. Reads `dirs`, a later one
/// winning over an earlier one, only if there are any. The answer is what the devices are, and where.
///
/// # Errors
/// A name that is none, a device that is not there, a description that is broken; `spec` is then as it was.
pub fn apply(spec: &mut Spec, wanted: &[String], dirs: &[PathBuf]) -> Result<Vec<Owned>> {
    let names = names(spec, wanted)?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let registry = Registry::read(dirs, &names)?;
    let found = names.iter().map(|name| registry.find(name)).collect::<Result<Vec<_>>>()?;
    let mut edited = spec.clone();
    edit(&mut edited, &found)?;
    *spec = edited;
    Ok(names.iter().zip(&found).flat_map(|(name, found)| owned::of(name, found)).collect())
}

/// The names in `wanted` and in the annotations of `spec`, each once, in a fixed order.
///
/// # Errors
/// Names where the text that is no name came from.
pub fn names(spec: &Spec, wanted: &[String]) -> Result<Vec<Name>> {
    let mut annotations: Vec<_> =
        spec.annotations().iter().flatten().filter(|(key, _)| key.starts_with(ANNOTATION)).collect();
    annotations.sort_unstable();
    let annotated = annotations
        .into_iter()
        .flat_map(|(key, value)| value.split(',').map(move |name| (format!("annotations[{key}]"), name)));
    let asked = wanted.iter().map(|name| ("--device".to_owned(), name.as_str()));

    let mut names: Vec<Name> = Vec::new();
    for (origin, text) in asked.chain(annotated) {
        let name: Name = text.parse().map_err(|why: String| Error::config(origin, why))?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
