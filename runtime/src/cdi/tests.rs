use super::*;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

/// A host with a static and a dynamic directory.
struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        Host { dir }
    }

    fn with(self, file: &str, content: Value) -> Host {
        fs::write(self.dir.path().join(file), content.to_string()).unwrap();
        self
    }

    fn dirs(&self) -> Vec<PathBuf> {
        ["etc", "run", "missing"].map(|name| self.dir.path().join(name)).to_vec()
    }

    fn apply(&self, spec: &mut Spec, wanted: &[&str]) -> Result<Vec<Owned>> {
        apply(spec, &wanted.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), &self.dirs())
    }

    fn edited(&self, wanted: &[&str]) -> Spec {
        let mut spec = spec();
        self.apply(&mut spec, wanted).unwrap();
        spec
    }

    fn refusal(&self, wanted: &[&str]) -> String {
        let mut edited = spec();
        let said = self.apply(&mut edited, wanted).unwrap_err().to_string();
        assert_eq!(edited, spec(), "a refused edit leaves nothing behind");
        said
    }
}

fn spec() -> Spec {
    serde_json::from_value(json!({
        "ociVersion": "1.3.0",
        "process": {"cwd": "/", "env": ["PATH=/bin", "EMU=none"], "user": {"uid": 1000, "gid": 0, "additionalGids": [7]}},
        "mounts": [{"destination": "/opt/emu/lib", "source": "/a"}, {"destination": "/proc", "source": "proc"}],
        "linux": {"devices": [{"path": "/dev/emu0", "type": "b", "major": 1, "minor": 2}]},
    }))
    .unwrap()
}

/// A description with one device.
fn file(version: &str, device: Value, common: Value) -> Value {
    json!({
        "cdiVersion": version, "kind": "vendor.com/emu",
        "devices": [{"name": "emu0", "containerEdits": device}],
        "containerEdits": common,
    })
}

#[test]
fn every_kind_of_edit() {
    let host = Host::new().with(
        "etc/emu.json",
        file(
            "1.1.0",
            json!({
                "env": ["EMU=zero", "EMU_MODE=fast"],
                "deviceNodes": [
                    {"path": "/dev/emu0", "hostPath": "/dev/null"},
                    {"path": "/dev/emu-ctl", "type": "c", "major": 99, "minor": 1, "fileMode": 0o600, "uid": 5, "gid": 6,
                     "permissions": "r"},
                    {"path": "/dev/emu-none", "type": "b", "major": 98, "permissions": "none"},
                ],
                "mounts": [
                    {"hostPath": "/b", "containerPath": "/opt/emu/lib", "options": ["ro", "bind"]},
                    {"hostPath": "tmpfs", "containerPath": "/opt", "type": "tmpfs"},
                ],
                "netDevices": [{"hostInterfaceName": "emu0", "name": "eth1"}],
                "additionalGids": [0, 7, 8],
            }),
            json!({
                "hooks": [
                    {"hookName": "createRuntime", "path": "/usr/bin/emu", "args": ["emu", "up"], "env": ["A=b"], "timeout": 9},
                    {"hookName": "prestart", "path": "/usr/bin/emu"},
                ],
                "intelRdt": {"closID": "emu", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=9", "enableMonitoring": true},
            }),
        ),
    );
    let edited = host.edited(&["vendor.com/emu=emu0", "vendor.com/emu=emu0"]);
    let null = fs::symlink_metadata("/dev/null").unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&null) & 0o7777;
    let expected: Spec = serde_json::from_value(json!({
        "ociVersion": "1.3.0",
        "process": {"cwd": "/", "env": ["PATH=/bin", "EMU=zero", "EMU_MODE=fast"],
            "user": {"uid": 1000, "gid": 0, "additionalGids": [7, 8]}},
        "mounts": [
            {"destination": "/proc", "source": "proc"},
            {"destination": "/opt", "source": "tmpfs", "type": "tmpfs"},
            {"destination": "/opt/emu/lib", "source": "/b", "options": ["ro", "bind"]},
        ],
        "hooks": {
            "createRuntime": [{"path": "/usr/bin/emu", "args": ["emu", "up"], "env": ["A=b"], "timeout": 9}],
            "prestart": [{"path": "/usr/bin/emu"}],
        },
        "linux": {
            "devices": [
                {"path": "/dev/emu0", "type": "c", "major": 1, "minor": 3, "fileMode": mode, "uid": 1000},
                {"path": "/dev/emu-ctl", "type": "c", "major": 99, "minor": 1, "fileMode": 0o600, "uid": 5, "gid": 6},
                {"path": "/dev/emu-none", "type": "b", "major": 98, "minor": 0, "uid": 1000},
            ],
            "resources": {"devices": [
                {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                {"allow": true, "type": "c", "major": 99, "minor": 1, "access": "r"},
                {"allow": true, "type": "b", "major": 98, "minor": 0, "access": ""},
            ]},
            "netDevices": {"emu0": {"name": "eth1"}},
            "intelRdt": {"closID": "emu", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=9", "enableMonitoring": true},
        },
    }))
    .unwrap();
    assert_eq!(edited, expected);
}

#[test]
fn a_bare_configuration_gets_only_what_the_device_asks_for() {
    let host = Host::new()
        .with("etc/emu.json", file("0.5.0", json!({"deviceNodes": [{"path": "/dev/null"}]}), json!({})));
    let mut bare: Spec = serde_json::from_value(json!({"ociVersion": "1.0.0"})).unwrap();
    host.apply(&mut bare, &["vendor.com/emu=emu0"]).unwrap();
    let linux = serde_json::to_value(bare.linux()).unwrap();
    let mut keys: Vec<_> = linux.as_object().unwrap().keys().collect();
    keys.sort_unstable();
    assert_eq!(keys, ["devices", "resources"]);
}

#[test]
fn what_belongs_to_all_devices_is_applied_once() {
    let host = Host::new().with(
        "etc/emu.json",
        json!({
            "cdiVersion": "0.6.0", "kind": "vendor.com/emu", "annotations": {"a": "b"},
            "devices": [
                {"name": "0", "containerEdits": {"env": ["ZERO=1"]}, "annotations": {"c": "d"}},
                {"name": "1", "containerEdits": {"env": ["ONE=1"]}},
            ],
            "containerEdits": {"hooks": [{"hookName": "poststop", "path": "/x"}]},
        }),
    );
    let edited = host.edited(&["vendor.com/emu=1", "vendor.com/emu=0"]);
    assert_eq!(edited.hooks().as_ref().unwrap().poststop().as_ref().unwrap().len(), 1);
    assert_eq!(edited.process().as_ref().unwrap().env().as_ref().unwrap()[2..], ["ONE=1", "ZERO=1"]);
}

#[test]
fn what_is_the_device_itself_is_told_from_a_drivers_software() {
    let mount = |from: &str, to: &str| json!({"hostPath": from, "containerPath": to});
    let edits = json!({
        "deviceNodes": [{"path": "/dev/null"}, {"path": "/dev/emu0", "hostPath": "/dev/zero"}],
        "mounts": [
            mount("/proc/self/status", "/dev/emu1"), mount("/usr/lib", "/usr/lib"), mount("/dev/full", "/run/emu2"),
            {"hostPath": "tmpfs", "containerPath": "/dev/emu-tmp", "type": "tmpfs"},
        ],
    });
    let host = Host::new().with("etc/emu.json", file("1.1.0", edits, json!({})));
    let owned = host.apply(&mut spec(), &["vendor.com/emu=emu0"]).unwrap();
    let all: Vec<_> =
        owned.iter().map(|owned| format!("{}={}", owned.path.display(), owned.real.display())).collect();
    let expected =
        ["/dev/null=/dev/null", "/dev/emu0=/dev/zero", "/dev/emu1=/proc/self/status", "/run/emu2=/dev/full"];
    assert_eq!(all, expected);
    assert!(owned.iter().all(|owned| owned.name == "vendor.com/emu=emu0"));
}

#[test]
fn annotations_ask_too_and_nothing_is_read_without_a_wish() {
    let host = Host::new().with("etc/emu.json", file("0.3.0", json!({"env": ["FOUND=1"]}), json!({})));
    let mut annotated = spec();
    let key = "cdi.k8s.io/plugin_1".to_owned();
    annotated.set_annotations(Some([(key.clone(), "vendor.com/emu=emu0".to_owned())].into()));
    host.apply(&mut annotated, &[]).unwrap();
    assert_eq!(annotated.process().as_ref().unwrap().env().as_ref().unwrap()[2], "FOUND=1");

    annotated.set_annotations(Some([(key, "vendor.com/emu=emu0,nonsense".to_owned())].into()));
    let said = host.apply(&mut annotated, &[]).unwrap_err().to_string();
    assert!(said.starts_with("annotations[cdi.k8s.io/plugin_1]: \"nonsense\" is no CDI device"), "{said}");
    assert!(host.refusal(&["/dev/null"]).starts_with("--device: \"/dev/null\" is no CDI device"));

    fs::write(host.dir.path().join("etc/broken.json"), "{vendor.com/emu").unwrap();
    host.apply(&mut spec(), &[]).unwrap();
}

#[test]
fn the_later_directory_wins_and_one_directory_must_agree() {
    let env = |value: &str| file("0.3.0", json!({"env": [format!("FROM={value}")]}), json!({}));
    let host = Host::new().with("etc/a.json", env("etc")).with("run/a.json", env("run"));
    let from = |host: &Host| {
        host.edited(&["vendor.com/emu=emu0"]).process().as_ref().unwrap().env().clone().unwrap()
    };
    assert_eq!(from(&host)[2], "FROM=run");
    let host = host.with("etc/b.json", env("etc too"));
    assert_eq!(from(&host)[2], "FROM=run", "what is overridden need not agree");
    let host = host.with("run/b.json", env("run too"));
    let said = host.refusal(&["vendor.com/emu=emu0"]);
    assert!(said.contains("is described twice, in ") && said.contains("run/a.json and "), "{said}");
}

#[test]
fn a_device_that_is_not_there() {
    let host = Host::new();
    let dirs = host.dirs().iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(" and ");
    let said = host.refusal(&["vendor.com/emu=emu1"]);
    assert_eq!(said, format!("CDI device vendor.com/emu=emu1: is unknown: {dirs} describe no device"));
    let host = host.with("etc/emu.json", file("0.3.0", json!({}), json!({})));
    let said = host.refusal(&["vendor.com/emu=emu1"]);
    assert!(said.contains("is unknown: of vendor.com/emu, ") && said.ends_with("describe emu0"), "{said}");
    let said = host.refusal(&["other.com/x=1"]);
    assert!(said.ends_with("describe devices of vendor.com/emu only"), "{said}");
}

#[test]
fn yaml_is_to_be_converted() {
    let host = Host::new();
    fs::write(host.dir.path().join("etc/emu.yaml"), "cdiVersion: 0.5.0\nkind: vendor.com/emu\n").unwrap();
    let said = host.refusal(&["vendor.com/emu=emu0"]);
    assert!(said.contains("etc/emu.yaml may do so in YAML: convert it"), "{said}");
    // Once that is done the old file does not matter.
    let host = host.with("etc/emu.json", file("0.3.0", json!({"env": ["A=b"]}), json!({})));
    host.edited(&["vendor.com/emu=emu0"]);
}

#[test]
fn a_broken_file_matters_to_those_who_need_it() {
    let good = file("0.3.0", json!({"env": ["A=b"]}), json!({}));
    let host = Host::new().with("etc/emu.json", good);
    fs::write(host.dir.path().join("etc/other.json"), "{\"kind\": \"other.com/x\"").unwrap();
    fs::write(host.dir.path().join("etc/longer.json"), "{\"kind\": \"vendor.com/emu2\"").unwrap();
    fs::write(host.dir.path().join("etc/README"), "vendor.com/emu").unwrap();
    fs::create_dir(host.dir.path().join("etc/sub.json")).unwrap();
    host.edited(&["vendor.com/emu=emu0"]);
    assert!(host.refusal(&["other.com/x=1"]).contains("etc/other.json: "));
}

#[test]
fn a_host_device_must_be_there_and_of_its_type() {
    for (node, why) in [
        (json!({"path": "/dev/no-such-emu"}), "look at /dev/no-such-emu: no such file or directory"),
        (json!({"path": "/dev/x", "hostPath": "/etc/passwd"}), "/etc/passwd is not a device"),
        (json!({"path": "/dev/null", "type": "b"}), "/dev/null is of type \"c\", not \"b\""),
    ] {
        let file = file("0.5.0", json!({"deviceNodes": [node]}), json!({}));
        let said = Host::new().with("etc/emu.json", file).refusal(&["vendor.com/emu=emu0"]);
        assert!(
            said.ends_with(&format!("etc/emu.json: the device \"emu0\": deviceNodes[0]: {why}")),
            "{said}"
        );
    }
    // Fully described, it may come later.
    let node = json!({"path": "/dev/no-such-emu", "type": "u", "major": 9, "minor": 8});
    let host = Host::new().with("etc/emu.json", file("0.3.0", json!({"deviceNodes": [node]}), json!({})));
    let edited = host.edited(&["vendor.com/emu=emu0"]);
    let device: &LinuxDevice = &edited.linux().as_ref().unwrap().devices().as_ref().unwrap()[1];
    assert_eq!((device.typ(), device.major(), device.minor()), (LinuxDeviceType::U, 9, 8));
}

#[test]
fn each_field_needs_its_version() {
    for (edits, first) in [
        (json!({"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "bind"}]}), "0.4.0"),
        (json!({"deviceNodes": [{"path": "/dev/null", "hostPath": "/dev/null"}]}), "0.5.0"),
        (json!({"additionalGids": [1]}), "0.7.0"),
        (json!({"intelRdt": {"closID": "a"}}), "0.7.0"),
        (json!({"intelRdt": {"schemata": ["L3:0=f"]}}), "1.1.0"),
        (json!({"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}), "1.1.0"),
    ] {
        let versions = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "v0.7.0", "0.8.0", "1.0.0", "1.1.0"];
        for version in versions {
            for file in [file(version, edits.clone(), json!({})), file(version, json!({}), edits.clone())] {
                let host = Host::new().with("etc/emu.json", file);
                let result = host.apply(&mut spec(), &["vendor.com/emu=emu0"]);
                let enough = version.trim_start_matches('v') >= first;
                assert_eq!(result.is_ok(), enough, "{edits} in {version}: {result:?}");
                if let Err(e) = result {
                    assert!(e.to_string().ends_with(&format!(" needs {first}")), "{e}");
                }
            }
        }
    }
}

#[test]
fn names_need_their_version_too() {
    let file = |version: &str, kind: &str, name: &str, annotations: Value| json!({"cdiVersion": version, "kind": kind, "annotations": annotations, "devices": [{"name": name}]});
    for (kind, name, annotations, first) in [
        ("vendor.com/emu", "0", json!({}), "0.5.0"),
        ("vendor.com/emu.x", "a", json!({}), "0.6.0"),
        ("vendor.com/emu", "a", json!({"a": "b"}), "0.6.0"),
    ] {
        let wanted = format!("{kind}={name}");
        for version in ["0.4.0", "0.5.0", "0.6.0"] {
            let host = Host::new().with("etc/emu.json", file(version, kind, name, annotations.clone()));
            let result = host.apply(&mut spec(), &[&wanted]);
            assert_eq!(result.is_ok(), version >= first, "{wanted} in {version}: {result:?}");
        }
    }
}

#[test]
fn a_broken_rule_is_named_with_its_field() {
    let device = |edits: Value| file("1.1.0", edits, json!({}));
    let with = |key: &str, value: Value| {
        let mut file = file("1.1.0", json!({}), json!({}));
        file[key] = value;
        file
    };
    for (file, field) in [
        (with("cdiVersion", json!("1.2.0")), "cdiVersion: \"1.2.0\" is newer than 1.1"),
        (with("cdiVersion", json!("one")), "cdiVersion: "),
        (with("surprise", json!(1)), "surprise: unknown field"),
        (with("devices", json!([])), "devices: there is none"),
        (with("devices", json!([{"name": "a"}, {"name": "a"}])), "devices[1].name: "),
        (with("devices", json!([{"name": "-"}])), "devices[0].name: "),
        (
            with("devices", json!([{"name": "a", "containerEdits": {"env": [1]}}])),
            "devices[0].containerEdits.env[0]: ",
        ),
        (with("containerEdits", json!({"env": ["A"]})), "containerEdits.env[0]: "),
        (with("containerEdits", json!({"deviceNode": []})), "containerEdits"),
        (device(json!({"env": ["=b"]})), "devices[0].containerEdits.env[0]: "),
        (
            device(json!({"deviceNodes": [{"path": "dev"}]})),
            "devices[0].containerEdits.deviceNodes[0].path: ",
        ),
        (
            device(json!({"deviceNodes": [{"path": "/d", "type": "x"}]})),
            "devices[0].containerEdits.deviceNodes[0].type: ",
        ),
        (
            device(json!({"deviceNodes": [{"path": "/d", "permissions": "rx"}]})),
            "devices[0].containerEdits.deviceNodes[0].permissions: ",
        ),
        (
            device(json!({"hooks": [{"hookName": "x", "path": "/h"}]})),
            "devices[0].containerEdits.hooks[0].hookName: ",
        ),
        (
            device(json!({"hooks": [{"hookName": "poststop", "path": "h"}]})),
            "devices[0].containerEdits.hooks[0].path: ",
        ),
        (
            device(json!({"hooks": [{"hookName": "poststop", "path": "/h", "timeout": 0}]})),
            "devices[0].containerEdits.hooks[0].timeout: ",
        ),
        (
            device(json!({"hooks": [{"hookName": "poststop", "path": "/h", "env": ["x"]}]})),
            "devices[0].containerEdits.hooks[0].env[0]: ",
        ),
        (
            device(json!({"mounts": [{"hostPath": "", "containerPath": "/b"}]})),
            "devices[0].containerEdits.mounts[0]: ",
        ),
        (
            device(json!({"netDevices": [{"hostInterfaceName": "a", "name": ""}]})),
            "devices[0].containerEdits.netDevices[0]: ",
        ),
        (
            device(
                json!({"netDevices": [{"hostInterfaceName": "a", "name": "b"}, {"hostInterfaceName": "a", "name": "c"}]}),
            ),
            "devices[0].containerEdits.netDevices[1]: ",
        ),
        (device(json!({"intelRdt": {"closID": "../x"}})), "devices[0].containerEdits.intelRdt.closID: "),
    ] {
        let said = Host::new().with("etc/emu.json", file).refusal(&["vendor.com/emu=emu0"]);
        let (_, why) = said.split_once("etc/emu.json: ").unwrap();
        assert!(why.starts_with(field), "{field}: {said}");
    }
    let bad_kind = json!({"cdiVersion": "0.3.0", "kind": "vendor.com/emu/", "devices": [{"name": "a"}]});
    let said = Host::new().with("etc/emu.json", bad_kind).refusal(&["vendor.com/emu=a"]);
    assert!(said.contains("etc/emu.json: kind: "), "{said}");
}
