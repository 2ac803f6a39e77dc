use super::super::tests::{Scratch, Shell};
use super::*;

fn rules(json: &str) -> Vec<LinuxDeviceCgroup> {
    serde_json::from_str(json).unwrap()
}

fn checked(json: &str) -> Vec<Rule> {
    rules(json).iter().enumerate().flat_map(|(n, rule)| check(n, rule).unwrap()).collect()
}

/// Everything denied, then null and zero and the making of nodes.
const SOME: &str = r#"[
    {"allow": false, "access": "rwm"},
    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
    {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "r"}
]"#;

#[test]
fn nonsense_is_refused_by_field() {
    for (json, field) in [
        (r#"[{"allow": true, "type": "c"}]"#, "[0].access"),
        (r#"[{"allow": false}, {"allow": true, "access": "rx"}]"#, "[1].access"),
        (r#"[{"allow": true, "major": 99999999999, "access": "r"}]"#, "[0].major"),
        (r#"[{"allow": true, "type": "p", "access": "r"}]"#, "[0].type"),
    ] {
        let none = Cgroups::default();
        let text = none.apply_devices(&rules(json)).unwrap_err().to_string();
        assert!(text.starts_with(&format!("linux.resources.devices{field}: ")), "{text}");
    }
}

#[test]
fn v1_takes_back_what_was_given_and_no_less() {
    let list = |json: &str| Exceptions::of(&checked(json)).map(|e| (e.allow, e.list.len()));
    assert_eq!(list(SOME).unwrap(), (false, 2));
    // A deny of the same or of more takes back; in part, too.
    let taken = format!(
        "{},{}",
        SOME.trim_end_matches([']', '\n']),
        r#"{"allow": false, "type": "c", "access": "rw"}]"#
    );
    let state = Exceptions::of(&checked(&taken)).unwrap();
    assert_eq!(state.list.iter().map(ToString::to_string).collect::<Vec<_>>(), ["c 1:3 m"]);
    // A deny of less would leave a hole.
    let hole = r#"[{"allow": true, "type": "c", "major": 1, "access": "rwm"},
                   {"allow": false, "type": "c", "major": 1, "minor": 5, "access": "w"}]"#;
    let text = list(hole).unwrap_err().to_string();
    assert!(text.starts_with("linux.resources.devices: cgroup v1 can't deny \"c 1:5 w\""), "{text}");
    // A rule for all kinds is two, unless it is about everything.
    assert_eq!(list(r#"[{"allow": true, "access": "r"}]"#).unwrap(), (false, 2));
    assert_eq!(list(r#"[{"allow": true, "access": "rwm"}]"#).unwrap(), (true, 0));
}

#[test]
fn the_default_rules_are_allowances_that_v1_can_express() {
    let defaults = default_device_rules();
    assert_eq!(defaults.len(), 12);
    let json = serde_json::to_string(&defaults).unwrap();
    let state = Exceptions::of(&checked(&json)).unwrap();
    let list: Vec<_> = state.list.iter().map(ToString::to_string).collect();
    assert!(list.contains(&"c *:* m".into()) && list.contains(&"c 136:* rwm".into()), "{list:?}");
}

/// Opens for reading and for writing.
fn rights(shell: &mut Shell, device: &str) -> (bool, bool) {
    // In a subshell: a shell whose own redirection fails ends.
    (shell.can(&format!("(: <{device})")), shell.can(&format!("(: >{device})")))
}

fn enforced(keep: impl Fn(&super::super::Dir) -> bool) {
    let scratch = Scratch::new().only(keep);
    if scratch.cgroups.is_empty() {
        return;
    }
    let mut shell = Shell::in_cgroups(&scratch.cgroups);
    assert_eq!(rights(&mut shell, "/dev/full"), (true, true));

    scratch.cgroups.apply_devices(&rules(SOME)).unwrap();
    assert_eq!(rights(&mut shell, "/dev/null"), (true, true));
    assert_eq!(rights(&mut shell, "/dev/zero"), (true, false));
    assert_eq!(rights(&mut shell, "/dev/full"), (false, false));
    let node = tempfile::tempdir().unwrap();
    let node = node.path().join("node");
    let mknod = format!("mknod {} c 1 3", node.display());
    assert!(shell.can(&mknod));
    std::fs::remove_file(&node).unwrap();

    // An update replaces all rules: last come those that count.
    let update = r#"[
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
        {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 7, "access": "rwm"},
        {"allow": false, "type": "c", "major": 1, "minor": 5, "access": "r"}
    ]"#;
    scratch.cgroups.apply_devices(&rules(update)).unwrap();
    assert_eq!(rights(&mut shell, "/dev/null"), (true, true));
    assert_eq!(rights(&mut shell, "/dev/zero"), (false, true));
    assert_eq!(rights(&mut shell, "/dev/full"), (true, true));
    assert_eq!(rights(&mut shell, "/dev/random"), (false, false));
    assert!(!shell.can(&mknod));

    // All, but one.
    let most = r#"[
        {"allow": true, "access": "rwm"},
        {"allow": false, "type": "c", "major": 1, "minor": 7, "access": "w"}
    ]"#;
    scratch.cgroups.apply_devices(&rules(most)).unwrap();
    assert_eq!(rights(&mut shell, "/dev/full"), (true, false));
    assert_eq!(rights(&mut shell, "/dev/random"), (true, true));

    scratch.cgroups.apply_devices(&rules(r#"[{"allow": true, "access": "rwm"}]"#)).unwrap();
    assert_eq!(rights(&mut shell, "/dev/full"), (true, true));

    scratch.cgroups.apply_devices(&[]).unwrap();
    assert_eq!(rights(&mut shell, "/dev/null"), (false, false));
}

#[test]
fn the_kernel_enforces_the_rules_on_v1() {
    enforced(|dir| dir.hierarchy.has("devices"));
}

#[test]
fn the_kernel_enforces_the_rules_on_cgroup2() {
    enforced(super::super::Dir::is_v2);
}

#[test]
fn v1_keeps_the_order_of_the_rules() {
    let scratch = Scratch::new().only(|dir| dir.hierarchy.has("devices"));
    let Some(dir) = scratch.cgroups.dirs.first() else { return };
    let list = || std::fs::read_to_string(dir.path.join("devices.list")).unwrap();
    scratch.cgroups.apply_devices(&rules(SOME)).unwrap();
    assert_eq!(list(), "c 1:3 rwm\nc 1:5 r\n");
    let reversed = r#"[
        {"allow": true, "type": "b", "major": 7, "access": "rw"},
        {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
    ]"#;
    scratch.cgroups.apply_devices(&rules(reversed)).unwrap();
    // What stays is not touched, so it stays in front.
    assert_eq!(list(), "c 1:3 rwm\nb 7:* rw\n");
}

#[test]
fn cgroup2_can_make_a_hole() {
    let scratch = Scratch::new().only(super::super::Dir::is_v2);
    if scratch.cgroups.is_empty() {
        return;
    }
    let hole = r#"[
        {"allow": true, "type": "c", "major": 1, "access": "rwm"},
        {"allow": false, "type": "c", "major": 1, "minor": 5, "access": "w"}
    ]"#;
    scratch.cgroups.apply_devices(&rules(hole)).unwrap();
    let mut shell = Shell::in_cgroups(&scratch.cgroups);
    assert_eq!(rights(&mut shell, "/dev/zero"), (true, false));
    assert_eq!(rights(&mut shell, "/dev/full"), (true, true));
    assert!(!shell.can("(: <>/dev/zero)"));
    assert!(shell.can("(: <>/dev/full)"));
    assert!(!rights(&mut shell, "/dev/tty").1);
}
