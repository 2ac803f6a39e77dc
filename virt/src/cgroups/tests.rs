use super::*;
use serde_json::{Value, json};

fn group(path: &str) -> Value {
    json!({"path": path, "mode": 0o755})
}

fn verdict(groups: &[Value]) -> Result<(), String> {
    let cgroups = json!([{"controllers": "pids", "groups": groups}]);
    serde_json::from_value::<Cgroups>(cgroups).unwrap().check()
}

#[test]
fn no_name_leads_out_of_the_containers_own_cgroup() {
    assert_eq!(verdict(&[group(""), group("a"), group("a/b c"), group("...")]), Ok(()));
    for bad in ["..", "../b", "a/..", "a/../../b", "/a", "a/", "a//b", ".", "a/.", "a\nb", "a\0b", "b/c", "a"]
    {
        assert!(verdict(&[group(""), group("a"), group(bad)]).is_err(), "{bad:?}");
    }
    // The container's own is not one of those that are made.
    assert!(verdict(&[group("a")]).is_err());
    assert!(verdict(&[group(""), group("")]).is_err());
    let deep = |depth: usize| (0..=depth).map(|n| group(&vec!["a"; n].join("/"))).collect::<Vec<_>>();
    assert_eq!(verdict(&deep(DEEPEST)), Ok(()));
    assert!(verdict(&deep(DEEPEST + 1)).is_err());
    let twice = json!({"controllers": "pids", "groups": [group("")]});
    assert!(serde_json::from_value::<Cgroups>(json!([twice, twice])).unwrap().check().is_err());
}

#[test]
fn only_settings_are_set() {
    let with = |key: &str, value: Value| {
        let mut odd = group("a");
        odd[key] = value;
        verdict(&[group(""), odd])
    };
    assert_eq!(with("settings", json!({"pids.max": "5"})), Ok(()));
    for bad in
        ["cgroup.procs", "tasks", "cgroup.kill", "../pids.max", "a/pids.max", "", ".", "memory.reclaim"]
    {
        assert!(with("settings", json!({bad: "5"})).is_err(), "{bad:?}");
    }
    assert!(with("settings", json!({"pids.max": "5".repeat(LONGEST + 1)})).is_err());
    assert_eq!(with("owners", json!({"": [1, 1], "cgroup.procs": [1, 1]})), Ok(()));
    assert!(with("owners", json!({"../x": [1, 1]})).is_err());
    assert!(with("subtree", json!(["pids -cpu"])).is_err());
    assert!(with("mode", json!(0o10_0755)).is_err());
    assert_eq!(with("tasks", json!([1, 2])), Ok(()));
    assert!(with("tasks", json!([0])).is_err());
    assert!(with("tasks", json!([1, 1])).is_err());
}
