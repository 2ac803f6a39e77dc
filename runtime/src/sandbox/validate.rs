//! What is wrong with a configuration that can be known before anything is made.

use super::{labels, netdev, pivot, sysctl};
use crate::config::{Ask, Bundle};
use crate::error::{Error, Result};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType as Kind, Spec};

/// Checks a bundle.
///
/// # Errors
/// The first field that can't be carried out, and why.
pub fn check(bundle: &Bundle) -> Result<()> {
    let spec = &bundle.spec;
    version(spec)?;
    let rootfs = bundle.rootfs()?;
    match rootfs.metadata() {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(Error::config("root.path", format!("{} is not a directory", rootfs.display()))),
        Err(e) => return Err(Error::file(&rootfs, &e)),
    }
    if spec.lx().is_none() {
        return Err(Error::config("linux", "is missing: this is a runtime for Linux containers"));
    }
    process(spec)?;
    names(spec)?;
    user_namespace(spec)?;
    time_namespace(spec)?;
    pivot::propagation(spec)?;
    if !spec.mount_list().is_empty() && !owns(spec, Kind::Mount) {
        log::warn!(
            "mounts: are not made, since linux.namespaces has no mount namespace: they would be the host's"
        );
    }
    sysctl::validate(spec)?;
    netdev::validate(spec)
}

/// Any 1.x: the runtime-spec only adds to itself within a major version.
fn version(spec: &Spec) -> Result<()> {
    let version = spec.version();
    let mut numbers = version.split(['-', '+']).next().unwrap_or("").split('.').map(str::parse::<u32>);
    let parsed = (numbers.next(), numbers.next(), numbers.next(), numbers.next());
    match parsed {
        (Some(Ok(1)), Some(Ok(_)), Some(Ok(_)), None) => Ok(()),
        (Some(Ok(_)), Some(Ok(_)), Some(Ok(_)), None) => {
            Err(Error::config("ociVersion", format!("{version:?} is not supported: ckrun knows 1.x.y")))
        }
        _ => Err(Error::config("ociVersion", format!("{version:?} is not a version"))),
    }
}

fn process(spec: &Spec) -> Result<()> {
    let Some(process) = spec.process() else { return Ok(()) };
    labels::validate(process)?;
    if process.args().as_deref().unwrap_or_default().is_empty() {
        return Err(Error::config("process.args", "is empty"));
    }
    if !process.cwd().is_absolute() {
        let why = format!("{:?} is not an absolute path", process.cwd());
        return Err(Error::config("process.cwd", why));
    }
    Ok(())
}

fn owns(spec: &Spec, kind: Kind) -> bool {
    spec.namespace(kind).is_some()
}

fn names(spec: &Spec) -> Result<()> {
    let set = |name: &Option<String>| name.as_deref().is_some_and(|n| !n.is_empty());
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        if set(name) && !owns(spec, Kind::Uts) {
            return Err(Error::config(
                field,
                "needs a uts namespace in linux.namespaces, or it would rename the host",
            ));
        }
    }
    Ok(())
}

fn user_namespace(spec: &Spec) -> Result<()> {
    let empty = |map: &Option<Vec<LinuxIdMapping>>| map.as_deref().unwrap_or_default().is_empty();
    let Some(linux) = spec.lx() else { return Ok(()) };
    let made = spec.namespace(Kind::User).is_some_and(|ns| ns.path().is_none());
    for (field, map) in
        [("linux.uidMappings", linux.uid_mappings()), ("linux.gidMappings", linux.gid_mappings())]
    {
        if made && empty(map) {
            return Err(Error::config(field, "is empty: a new user namespace needs a mapping"));
        }
        if !owns(spec, Kind::User) && !empty(map) {
            return Err(Error::config(field, "needs a user namespace in linux.namespaces"));
        }
    }
    Ok(())
}

fn time_namespace(spec: &Spec) -> Result<()> {
    let offsets = spec.lx().and_then(|l| l.time_offsets().as_ref()).filter(|o| !o.is_empty());
    if offsets.is_some() && spec.namespace(Kind::Time).is_none_or(|ns| ns.path().is_some()) {
        return Err(Error::config("linux.timeOffsets", "needs a new time namespace in linux.namespaces"));
    }
    Ok(())
}
