//! Labels of the security modules: `process.apparmorProfile`, `process.selinuxLabel`, `linux.mountLabel`.
//!
//! A label that can't be set on a process is an error: the job would run with more rights than asked for. Messages
//! contain the path in backquotes, by which podman recognises them.

use super::procfs::Proc;
use crate::config::Ask;
use crate::error::{Error, Result};
use ckrun_virt::error::text;
use nix::errno::Errno;
use oci_spec::runtime::{Process, Spec};

/// Checks, before anything is made, that the modules that labels are asked of are there.
///
/// # Errors
/// Names the field.
pub fn validate(process: &Process) -> Result<()> {
    if profile(process).is_some() && !apparmor_enabled() {
        let why = "can't write `/proc/self/attr/apparmor/exec`: AppArmor is not enabled on this host";
        return Err(Error::config("process.apparmorProfile", why));
    }
    if label(process).is_some() && !selinux_enabled() {
        let why = "can't write `/proc/self/attr/exec`: SELinux is not enabled on this host";
        return Err(Error::config("process.selinuxLabel", why));
    }
    Ok(())
}

/// Makes the next exec of this process enter its AppArmor profile.
///
/// # Errors
/// `ENOENT` from the kernel: no such profile is loaded.
pub fn enter_profile(process: &Process, proc: &Proc) -> Result<()> {
    let Some(profile) = profile(process) else { return Ok(()) };
    let command = format!("exec {profile}");
    // The shared file is the one of the first module in the kernel's list; AppArmor has its own since Linux 5.8, but
    // only where modules are stacked.
    let own = "self/attr/apparmor/exec";
    let result = match proc.write(own, command.as_bytes()) {
        Err(Errno::ENOENT) if !std::path::Path::new("/proc/self/attr/apparmor").exists() => {
            ("self/attr/exec", proc.write("self/attr/exec", command.as_bytes()))
        }
        result => (own, result),
    };
    refused("process.apparmorProfile", profile, result)
}

/// Makes the next exec of this process take its SELinux label.
///
/// # Errors
/// `EINVAL`: the policy knows no such label.
pub fn label_next_exec(process: &Process, proc: &Proc) -> Result<()> {
    let Some(label) = label(process) else { return Ok(()) };
    refused("process.selinuxLabel", label, ("self/attr/exec", proc.write("self/attr/exec", label.as_bytes())))
}

/// Runs `make` with the job's SELinux label on the keys that it makes.
///
/// # Errors
/// As [`label_next_exec`], and those of `make`.
pub fn labelling_keys(process: &Process, proc: &Proc, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let Some(label) = label(process) else { return make() };
    let path = "self/attr/keycreate";
    refused("process.selinuxLabel", label, (path, proc.write(path, label.as_bytes())))?;
    make()?;
    // An empty write is no write; a newline clears it.
    refused("process.selinuxLabel", "", (path, proc.write(path, b"\n")))
}

/// The mount option that labels a file system, `context="LABEL"`, if `linux.mountLabel` asks for it. Where SELinux is
/// not enabled there is nothing to be kept apart: the label is left out with a warning, as in crun.
pub fn mount_option(spec: &Spec) -> Option<String> {
    let label = spec.lx()?.mount_label().as_deref().filter(|label| !label.is_empty())?;
    if !selinux_enabled() {
        log::warn!("linux.mountLabel: {label:?} is left out: SELinux is not enabled on this host");
        return None;
    }
    Some(format!("context=\"{label}\""))
}

/// Whether AppArmor is in this kernel and switched on.
pub fn apparmor_enabled() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

/// Whether SELinux is in this kernel and has a policy, which is when its file system is mounted.
pub fn selinux_enabled() -> bool {
    rustix::fs::statfs(c"/sys/fs/selinux").is_ok_and(|fs| fs.f_type as u64 == libc::SELINUX_MAGIC as u64)
}

/// The field by which a process is to be confined further than the rest of the configuration does it.
pub fn confining(process: &Process) -> Option<&'static str> {
    let by_profile = profile(process).is_some_and(|profile| profile != "unconfined");
    let by_label = label(process).is_some();
    by_profile.then_some("process.apparmorProfile").or(by_label.then_some("process.selinuxLabel"))
}

/// The profile to enter. "unconfined" asks for none, and without AppArmor that is so already.
fn profile(process: &Process) -> Option<&str> {
    let profile = process.apparmor_profile().as_deref().filter(|profile| !profile.is_empty())?;
    (profile != "unconfined" || apparmor_enabled()).then_some(profile)
}

fn label(process: &Process) -> Option<&str> {
    process.selinux_label().as_deref().filter(|label| !label.is_empty())
}

fn refused(field: &str, label: &str, (path, result): (&str, Result<(), Errno>)) -> Result<()> {
    result
        .map_err(|errno| Error::config(field, format!("write {label:?} to `/proc/{path}`: {}", text(errno))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::testing::in_child;
    use serde_json::json;

    fn process(mut json: serde_json::Value) -> Process {
        json["cwd"] = "/".into();
        json["user"] = json!({"uid": 0, "gid": 0});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_job_without_labels_needs_no_module() {
        for json in [json!({}), json!({"apparmorProfile": "", "selinuxLabel": ""})] {
            let process = process(json);
            let proc = Proc::open().unwrap();
            validate(&process).unwrap();
            enter_profile(&process, &proc).unwrap();
            label_next_exec(&process, &proc).unwrap();
            labelling_keys(&process, &proc, || Ok(())).unwrap();
        }
    }

    #[test]
    fn unconfined_needs_no_module_either() {
        let process = process(json!({"apparmorProfile": "unconfined"}));
        in_child(move || {
            validate(&process).unwrap();
            enter_profile(&process, &Proc::open().unwrap()).unwrap();
        });
    }

    /// On every host: either the module is missing, or it does not know the label.
    #[test]
    fn an_impossible_label_is_refused_with_field_and_path() {
        let profile = process(json!({"apparmorProfile": "ckrun-test-no-such-profile"}));
        let label = process(json!({"selinuxLabel": "ckrun_test:no_such:label_t:s0"}));
        in_child(move || {
            let proc = Proc::open().unwrap();
            let said =
                validate(&profile).and_then(|()| enter_profile(&profile, &proc)).unwrap_err().to_string();
            assert!(
                said.starts_with("process.apparmorProfile: ") && said.contains("`/proc/self/attr/"),
                "{said}"
            );
            // Also when nobody has validated it.
            assert!(enter_profile(&profile, &proc).is_err());
            let said =
                validate(&label).and_then(|()| label_next_exec(&label, &proc)).unwrap_err().to_string();
            assert!(
                said.starts_with("process.selinuxLabel: ") && said.contains("`/proc/self/attr/"),
                "{said}"
            );
            assert!(label_next_exec(&label, &proc).is_err());
            assert!(labelling_keys(&label, &proc, || Ok(())).is_err());
        });
    }

    #[test]
    fn a_mount_label_is_an_option_where_selinux_is() {
        let spec = |label| {
            let json = json!({"ociVersion": "1.0.0", "linux": {"mountLabel": label}});
            serde_json::from_value::<Spec>(json).unwrap()
        };
        let expected = selinux_enabled().then_some("context=\"a:b:c_t:s0:c1,c2\"".to_owned());
        assert_eq!(mount_option(&spec("a:b:c_t:s0:c1,c2")), expected);
        assert_eq!(mount_option(&spec("")), None);
    }
}
