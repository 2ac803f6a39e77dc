//! systemd's side is played by a small manager on a real bus (manager.py), which speaks D-Bus through the reference
//! library: so this is also a test of what goes over the wire. Without dbus-daemon and Python's dbus there is nothing
//! to talk to, and the tests say so and pass.

use super::super::layout;
use super::super::tests::{Shell, refused};
use super::*;
use oci_spec::runtime::LinuxResources;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A bus and a manager of a test's own.
struct Manager {
    children: [Child; 2],
    address: String,
    calls: Lines<BufReader<ChildStdout>>,
    slice: String,
    _dir: tempfile::TempDir,
}

impl Drop for Manager {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for hierarchy in layout::detect().unwrap() {
            let _ = std::fs::remove_dir(hierarchy.mount.join(&self.slice));
        }
    }
}

impl Manager {
    fn new(test: &str) -> Manager {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        let text = format!(
            "<busconfig><type>session</type><listen>unix:path={}/bus</listen><auth>EXTERNAL</auth>
             <policy context='default'><allow send_destination='*'/><allow receive_sender='*'/><allow own='*'/></policy>
             </busconfig>",
            dir.path().display()
        );
        std::fs::write(&config, text).unwrap();
        let mut daemon = Command::new("dbus-daemon");
        daemon.arg("--nofork").arg("--print-address").arg(format!("--config-file={}", config.display()));
        daemon.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut daemon = daemon.spawn().expect("dbus-daemon of the package dbus-daemon");
        let mut address = String::new();
        BufReader::new(daemon.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
        let address = address.trim_end().to_owned();

        // systemd makes a scope's directory where it manages the hierarchy.
        let slice = format!("ckruntest{}{test}.slice", Pid::this());
        let hierarchies = layout::detect().unwrap();
        let managed =
            hierarchies.iter().filter(|h| h.version == layout::Version::V2 || h.has("name=systemd"));
        let mut manager = Command::new("/usr/bin/python3");
        manager.args(["-c", include_str!("manager.py"), test]).args(managed.map(|h| h.mount.join(&slice)));
        manager.env("DBUS_SESSION_BUS_ADDRESS", &address).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut started = manager.spawn().expect("python3 of the package python3");
        let calls = started.stdout.take().unwrap();
        let calls = BufReader::new(calls).lines();
        let mut manager = Manager { children: [daemon, started], address, calls, slice, _dir: dir };
        manager.calls.next().expect("python3 with the packages python3-dbus and python3-gi").unwrap();
        manager
    }

    fn plan(&self, name: &str, annotations: Option<&HashMap<String, String>>) -> Cgroups {
        let path = format!("{}:ckrun:{name}", self.slice);
        let request =
            Request { id: "x", path: Some(Path::new(&path)), systemd: true, rootless: false, annotations };
        let mut cgroups = Cgroups::plan(&request).unwrap();
        cgroups.unit.as_mut().unwrap().bus = self.address.clone();
        cgroups
    }

    /// The next call: what it was about, and the properties.
    fn called(&mut self, method: &str) -> (String, BTreeMap<String, String>) {
        let line = self.calls.next().unwrap().unwrap();
        let (called, unit, properties) = serde_json::from_str::<(String, _, _)>(&line).unwrap();
        assert_eq!(called, method);
        (unit, properties)
    }
}

#[test]
fn slices_are_expanded() {
    let expanded = |slice| expand(slice).unwrap().to_str().unwrap().to_owned();
    assert_eq!(expanded("-.slice"), "");
    assert_eq!(expanded("a.slice"), "a.slice");
    assert_eq!(expanded("a-b-c.slice"), "a.slice/a-b.slice/a-b-c.slice");
    for invalid in ["", "a", ".slice", "-a.slice", "a-.slice", "a--b.slice", "a/b.slice"] {
        refused(expand(invalid), FIELD);
    }
}

#[test]
fn the_path_names_slice_and_unit() {
    let names = |path: &str, rootless| {
        names(&Request { id: "id", path: Some(Path::new(path)), systemd: true, rootless, annotations: None })
    };
    let pair = |slice: &str, unit: &str| (slice.to_owned(), unit.to_owned());
    assert_eq!(names("a.slice:docker:c1", false).unwrap(), pair("a.slice", "docker-c1.scope"));
    assert_eq!(names("::c1", false).unwrap(), pair("system.slice", "c1.scope"));
    assert_eq!(names("", true).unwrap(), pair("user.slice", "ckrun-id.scope"));
    for invalid in ["/docker/c1", "a:b", "a:b:c:d", "a:b:", "a:b:../c"] {
        refused(names(invalid, false), FIELD);
    }
}

#[test]
fn a_scope_starts_with_the_first_process_and_ends_with_the_container() {
    let mut manager = Manager::new("life");
    let annotations =
        HashMap::from([("org.systemd.property.CollectMode".into(), "'inactive-or-failed'".into())]);
    let mut cgroups = manager.plan("one", Some(&annotations));
    cgroups.create().unwrap();
    assert!(cgroups.clone_target().is_none());
    assert!(cgroups.dirs.iter().all(|dir| !dir.path.exists()));

    let mut first = Shell::new();
    cgroups.join(first.pid(), false).unwrap();
    let (unit, properties) = manager.called("StartTransientUnit");
    assert_eq!(unit, "ckrun-one.scope");
    let pids =
        format!("dbus.Array([dbus.UInt32({})], signature=dbus.Signature('u'), variant_level=1)", first.pid());
    for (name, value) in [
        ("PIDs", pids.as_str()),
        ("Slice", &manager.slice),
        ("Delegate", "1"),
        ("DefaultDependencies", "0"),
        ("CollectMode", "inactive-or-failed"),
    ] {
        assert_eq!(properties[name], value, "{name}");
    }
    assert_eq!(cgroups.pids().unwrap(), [first.pid()]);
    // ckrun makes what systemd doesn't.
    if let Some(freezer) = cgroups.v1("freezer") {
        let procs = std::fs::read_to_string(freezer.path.join("cgroup.procs")).unwrap();
        assert_eq!(procs.trim_end(), first.pid().to_string());
    }

    // What is saved is enough for later verbs; another process just joins.
    let cgroups: Cgroups = serde_json::from_str(&serde_json::to_string(&cgroups).unwrap()).unwrap();
    let second = Shell::in_cgroups(&cgroups);
    assert_eq!(cgroups.pids().unwrap(), [first.pid(), second.pid()]);
    let limits: LinuxResources = serde_json::from_str(r#"{"pids":{"limit":20},"cpu":{"shares":0}}"#).unwrap();
    let applied = cgroups.apply(&limits);
    let (unit, properties) = manager.called("SetUnitProperties");
    assert_eq!(unit, "ckrun-one.scope");
    assert_eq!(properties, BTreeMap::from([("TasksMax".into(), "20".into())]));
    if let Some(pids) = cgroups.v1("pids") {
        applied.unwrap();
        assert_eq!(std::fs::read_to_string(pids.path.join("pids.max")).unwrap(), "20\n");
    }

    cgroups.remove().unwrap();
    assert_eq!(first.died_of(), Some(libc::SIGKILL));
    manager.called("StopUnit");
    manager.called("ResetFailedUnit");
    assert!(cgroups.dirs.iter().all(|dir| !dir.path.exists()));
}

#[test]
fn a_failed_unit_of_the_same_name_is_reset() {
    let mut manager = Manager::new("exists");
    let cgroups = manager.plan("two", None);
    let shell = Shell::in_cgroups(&cgroups);
    manager.called("StartTransientUnit");
    manager.called("ResetFailedUnit");
    manager.called("StartTransientUnit");
    assert_eq!(cgroups.pids().unwrap(), [shell.pid()]);
    cgroups.remove().unwrap();
}

#[test]
fn a_job_that_fails_and_a_bus_that_is_not_there_are_errors() {
    let mut manager = Manager::new("fails");
    let mut cgroups = manager.plan("broken", None);
    let shell = Shell::new();
    let text = refused(cgroups.join(shell.pid(), false), FIELD);
    assert!(text.ends_with("systemd can't start ckrun-broken.scope: its job ended as \"failed\""), "{text}");
    drop(shell);
    // Nothing to stop is fine.
    cgroups.remove().unwrap();
    manager.called("StartTransientUnit");
    manager.called("StopUnit");
    cgroups.unit.as_mut().unwrap().bus = "unix:path=/nonexistent/bus".into();
    let text = refused(cgroups.join(Pid::from_raw(i32::MAX), false), FIELD);
    assert!(text.contains("unix:path=/nonexistent/bus can't be used: no such file or directory"), "{text}");
}

#[test]
fn the_place_of_a_user_manager_is_asked_for() {
    let mut manager = Manager::new("user");
    let unit =
        Unit { name: "x".into(), slice: "x".into(), bus: manager.address.clone(), properties: Vec::new() };
    let own = unit.manager_property("ControlGroup").unwrap();
    assert_eq!(own, "/user.slice/user-5.slice/user@5.service");
    assert_eq!(manager.called("Get").0, "ControlGroup");
}
