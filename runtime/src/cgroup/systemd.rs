//! systemd as the one that makes the cgroups (`--systemd-cgroup`).
//!
//! The container is a transient scope, a unit for processes that somebody else started: so it can be made only with a
//! process to put in. systemd delegates the scope's cgroup to ckrun and sets the limits that it knows, which it would
//! otherwise take back whenever it writes its own; the others are then written as without systemd. Controllers of v1
//! that systemd does not manage (cpuset, freezer) get a cgroup of the same name from ckrun.

use super::dbus::{Body, Bus, CallError, Message, Target, Value};
use super::place::Asked;
use super::properties::{self, Property};
use super::{Cgroups, Request, io, make, v1};
use crate::error::{Error, Result};
use ckrun_virt::Failure;
use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const FIELD: &str = "linux.cgroupsPath";

const DESTINATION: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// A container's unit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Unit {
    /// `prefix-name.scope`.
    name: String,
    slice: String,
    /// The address of the bus: later verbs may have less of an environment than the first.
    bus: String,
    /// What the annotations ask for; needed once.
    #[serde(skip)]
    properties: Vec<Property>,
}

impl Unit {
    /// The unit that `linux.cgroupsPath` (`slice:prefix:name`) asks for, and its place.
    pub(super) fn plan(request: &Request<'_>) -> Result<(Asked, Unit)> {
        let (slice, name) = names(request)?;
        let mut directory = expand(&slice)?;
        let properties = properties::of_annotations(request)?;
        let unit = Unit { name, slice, bus: address(request.rootless)?, properties };
        if request.rootless {
            // A user's systemd has a cgroup of its own, below which its slices are.
            let own = unit.manager_property("ControlGroup")?;
            directory = Path::new("/").join(own.trim_start_matches('/')).join(directory);
        }
        Ok((Asked::parse(&Path::new("/").join(directory).join(&unit.name))?, unit))
    }

    /// Starts the scope with `pid` in it.
    pub(super) fn start(&self, pid: Pid, cgroups: &Cgroups) -> Result<()> {
        let io_accounting = if cgroups.is_pure_v2() { "IOAccounting" } else { "BlockIOAccounting" };
        let mut properties: Vec<Property> = vec![
            ("Description".into(), Value::Str(format!("ckrun container {}", self.name))),
            ("Slice".into(), Value::Str(self.slice.clone())),
            ("Delegate".into(), Value::Bool(true)),
            ("PIDs".into(), Value::U32s(vec![pid.as_raw().cast_unsigned()])),
            ("DefaultDependencies".into(), Value::Bool(false)),
        ];
        for accounting in ["MemoryAccounting", "CPUAccounting", "TasksAccounting", io_accounting] {
            properties.push((accounting.into(), Value::Bool(true)));
        }
        properties.extend(self.properties.iter().cloned());
        let body = || Body::default().str(&self.name).str("replace").properties(&properties).nothing();
        self.run_job("start", |bus| match call(bus, "StartTransientUnit", "ssa(sv)a(sa(sv))", body()) {
            // A unit of this name that failed is kept until somebody has taken note.
            Err(CallError::Refused { name, .. }) if name.ends_with(".UnitExists") => {
                call(bus, "ResetFailedUnit", "s", Body::default().str(&self.name))?;
                call(bus, "StartTransientUnit", "ssa(sv)a(sa(sv))", body())
            }
            result => result,
        })?;
        cgroups.dirs.iter().filter(|dir| !dir.is_v2() && !dir.hierarchy.has("name=systemd")).try_for_each(
            |dir| {
                match make(&dir.path) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => {
                        return Err(Failure::new(format!("make cgroup {}", dir.path.display()), errno).into());
                    }
                }
                if dir.hierarchy.has("cpuset") {
                    v1::inherit_cpuset(&dir.hierarchy.mount, &dir.path)?;
                }
                dir.join(pid)
            },
        )
    }

    /// Tells systemd the limits that it knows.
    pub(super) fn set(&self, resources: &oci_spec::runtime::LinuxResources, pure_v2: bool) -> Result<()> {
        let properties = properties::of_resources(resources, pure_v2)?;
        if properties.is_empty() {
            return Ok(());
        }
        let mut bus = self.connect()?;
        // For as long as the unit runs, not for longer.
        let body = Body::default().str(&self.name).bool(true).properties(&properties);
        call(&mut bus, "SetUnitProperties", "sba(sv)", body).map_err(|e| self.error("set limits of", &e))?;
        Ok(())
    }

    /// Kills what is left, and lets systemd remove the scope. One that is gone already is fine.
    pub(super) fn stop(&self, cgroups: &Cgroups) -> Result<()> {
        // systemd would ask the processes first and wait for a minute and a half.
        if cgroups.tree().is_some_and(|dir| !dir.existed && io::exists(&dir.path)) {
            cgroups.kill_all(libc::SIGKILL)?;
        }
        let body = || Body::default().str(&self.name);
        let stopped = self.run_job("stop", |bus| call(bus, "StopUnit", "ss", body().str("replace")));
        let mut bus = self.connect()?;
        // Fails when there is nothing to forget.
        let _ = call(&mut bus, "ResetFailedUnit", "s", body());
        stopped
    }

    /// Calls something that starts a job of this unit, and waits until the job is done.
    fn run_job(&self, verb: &str, start: impl FnOnce(&mut Bus) -> Result<Message, CallError>) -> Result<()> {
        let mut bus = self.connect()?;
        let run = || {
            bus.add_match(&format!("type='signal',interface='{MANAGER}',member='JobRemoved'"))?;
            let job = match start(&mut bus) {
                Err(CallError::Refused { name, .. }) if name.ends_with(".NoSuchUnit") && verb == "stop" => {
                    return Ok("done".to_owned());
                }
                answer => answer?.arguments().str().ok_or(Errno::EBADMSG)?,
            };
            loop {
                let signal = bus.signal()?;
                let mut arguments = signal.arguments();
                if signal.member != "JobRemoved" || arguments.u32().is_none() {
                    continue;
                }
                if arguments.str().as_deref() == Some(&job) {
                    arguments.str();
                    return Ok(arguments.str().unwrap_or_default());
                }
            }
        };
        match run() {
            Ok(result) if result == "done" => Ok(()),
            Ok(result) => {
                let why = format!("systemd can't {verb} {}: its job ended as {result:?}", self.name);
                Err(Error::config(FIELD, why))
            }
            Err(error) => Err(self.error(verb, &error)),
        }
    }

    fn manager_property(&self, name: &str) -> Result<String> {
        let mut bus = self.connect()?;
        let target =
            Target { destination: DESTINATION, path: PATH, interface: "org.freedesktop.DBus.Properties" };
        let answer = bus
            .call(target, "Get", "ss", Body::default().str(MANAGER).str(name))
            .map_err(|e| self.error("find the place of", &e))?;
        let mut arguments = answer.arguments();
        let value = arguments.signature().and_then(|_| arguments.str());
        value.ok_or_else(|| self.error("find the place of", &CallError::Connection(Errno::EBADMSG)))
    }

    fn connect(&self) -> Result<Bus> {
        Bus::connect(&self.bus).map_err(|error| {
            let why = format!("systemd's bus at {} can't be used: {error}", self.bus);
            Error::config(FIELD, format!("{why}; without --systemd-cgroup it is not needed"))
        })
    }

    fn error(&self, verb: &str, error: &CallError) -> Error {
        Error::config(FIELD, format!("systemd can't {verb} {}: {error}", self.name))
    }
}

fn call(bus: &mut Bus, method: &str, signature: &str, body: Body) -> Result<Message, CallError> {
    bus.call(Target { destination: DESTINATION, path: PATH, interface: MANAGER }, method, signature, body)
}

/// The slice and the unit's name.
fn names(request: &Request<'_>) -> Result<(String, String)> {
    let default = if request.rootless { "user.slice" } else { "system.slice" };
    let path = request.path.and_then(Path::to_str).unwrap_or_default();
    let (slice, prefix, name) = match *path.split(':').collect::<Vec<_>>() {
        [""] => ("", "ckrun", request.id),
        [slice, prefix, name] if !name.is_empty() => (slice, prefix, name),
        _ => {
            let why = format!("{path:?} is not of the form slice:prefix:name, which --systemd-cgroup needs");
            return Err(Error::config(FIELD, why));
        }
    };
    let slice = if slice.is_empty() { default } else { slice };
    let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
    if unit.contains('/') {
        return Err(Error::config(FIELD, format!("{unit:?} is no name of a unit")));
    }
    Ok((slice.to_owned(), unit))
}

/// Where a slice is: `a-b.slice` is in `a.slice`, and `-.slice` is the root.
fn expand(slice: &str) -> Result<PathBuf> {
    let invalid = || Error::config(FIELD, format!("{slice:?} is no name of a slice"));
    let name = slice.strip_suffix(".slice").filter(|name| !name.contains('/')).ok_or_else(invalid)?;
    let mut path = PathBuf::new();
    if name == "-" {
        return Ok(path);
    }
    for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
        let part = &name[..end];
        if part.is_empty() || part.ends_with('-') {
            return Err(invalid());
        }
        path.push(format!("{part}.slice"));
    }
    Ok(path)
}

/// The address of the bus on which systemd is: the system's, or the user's.
fn address(rootless: bool) -> Result<String> {
    let variable = if rootless { "DBUS_SESSION_BUS_ADDRESS" } else { "DBUS_SYSTEM_BUS_ADDRESS" };
    if let Ok(address) = std::env::var(variable) {
        return Ok(address);
    }
    if !rootless {
        return Ok("unix:path=/run/dbus/system_bus_socket".to_owned());
    }
    let runtime = std::env::var("XDG_RUNTIME_DIR").map_err(|_| {
        Error::config(
            FIELD,
            "--systemd-cgroup needs DBUS_SESSION_BUS_ADDRESS or XDG_RUNTIME_DIR to find systemd",
        )
    })?;
    Ok(format!("unix:path={runtime}/bus"))
}

#[cfg(test)]
mod tests;
