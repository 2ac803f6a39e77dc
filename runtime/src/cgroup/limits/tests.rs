use super::super::tests::{Scratch, Shell, refused};
use super::*;
use std::collections::BTreeMap;

/// A directory with the files of a cgroup: what is written can be read, and what isn't there can't be written.
struct Fake(tempfile::TempDir);

impl Fake {
    fn new(files: &[&str]) -> Fake {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        Fake(dir)
    }

    fn knobs(&self, v1: bool) -> Knobs<'_> {
        Knobs { controller: "x", v1, dir: Some(self.0.path()), mount: None, missing: "x" }
    }

    /// What was written to which file. A later write to the same file covers the beginning of the former.
    fn written(&self) -> BTreeMap<String, String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap().map(|e| e.unwrap());
        let read = |e: std::fs::DirEntry| {
            (e.file_name().into_string().unwrap(), std::fs::read_to_string(e.path()).unwrap())
        };
        entries.map(read).filter(|(_, text)| !text.is_empty()).collect()
    }
}

fn map<const N: usize>(entries: [(&str, &str); N]) -> BTreeMap<String, String> {
    entries.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

const MEMORY_V2: [&str; 4] = ["memory.max", "memory.swap.max", "memory.low", "memory.current"];

#[test]
fn cgroup2_limits_swap_alone() {
    for (json, expected) in [
        (r#"{"limit":1000,"swap":3000}"#, map([("memory.max", "1000"), ("memory.swap.max", "2000")])),
        (r#"{"limit":1000,"swap":1000}"#, map([("memory.max", "1000"), ("memory.swap.max", "0")])),
        (r#"{"limit":1000,"swap":-1}"#, map([("memory.max", "1000"), ("memory.swap.max", "max")])),
        (r#"{"limit":-1}"#, map([("memory.max", "max"), ("memory.swap.max", "max")])),
        (r#"{"limit":-1,"swap":5}"#, map([("memory.max", "max"), ("memory.swap.max", "5")])),
        (r#"{"limit":1000,"reservation":10}"#, map([("memory.max", "1000"), ("memory.low", "10")])),
        (
            r#"{"limit":0,"swap":0,"reservation":0,"disableOOMKiller":false,"kernel":0,"kernelTCP":0}"#,
            map([]),
        ),
    ] {
        let fake = Fake::new(&MEMORY_V2);
        v2::memory(&fake.knobs(false), &serde_json::from_str(json).unwrap()).unwrap();
        assert_eq!(fake.written(), expected, "{json}");
    }
    let memory = |json: &str, files: &[&str]| {
        let fake = Fake::new(files);
        v2::memory(&fake.knobs(false), &serde_json::from_str(json).unwrap())
    };
    refused(memory(r#"{"limit":1000,"swap":999}"#, &MEMORY_V2), "linux.resources.memory.swap");
    refused(memory(r#"{"swap":1000}"#, &MEMORY_V2), "linux.resources.memory.swap");
    // Without swap accounting, no swap and any swap are what there is; so much swap is not.
    memory(r#"{"limit":1000,"swap":1000}"#, &["memory.max"]).unwrap();
    memory(r#"{"limit":1000,"swap":-1}"#, &["memory.max"]).unwrap();
    refused(memory(r#"{"limit":1000,"swap":2000}"#, &["memory.max"]), "linux.resources.memory.swap");
}

#[test]
fn an_update_of_the_sum_alone_knows_the_limit() {
    let fake = Fake::new(&MEMORY_V2);
    std::fs::write(fake.0.path().join("memory.max"), "1000\n").unwrap();
    v2::memory(&fake.knobs(false), &serde_json::from_str(r#"{"swap":1500}"#).unwrap()).unwrap();
    assert_eq!(fake.written()["memory.swap.max"], "500");
}

#[test]
fn a_limit_below_what_is_used_is_refused_if_that_was_asked() {
    let fake = Fake::new(&MEMORY_V2);
    std::fs::write(fake.0.path().join("memory.current"), "2000\n").unwrap();
    let apply = |json| v2::memory(&fake.knobs(false), &serde_json::from_str(json).unwrap());
    refused(apply(r#"{"limit":1000,"checkBeforeUpdate":true}"#), "linux.resources.memory.limit");
    apply(r#"{"limit":3000,"checkBeforeUpdate":true}"#).unwrap();
    apply(r#"{"limit":1000}"#).unwrap();
}

#[test]
fn cgroup2_has_quota_and_period_in_one_file() {
    for (json, expected) in [
        (
            r#"{"quota":5000,"period":10000,"shares":1024}"#,
            map([("cpu.max", "5000 10000"), ("cpu.weight", "100")]),
        ),
        (r#"{"quota":-1}"#, map([("cpu.max", "max")])),
        (r#"{"quota":5000}"#, map([("cpu.max", "5000")])),
        (r#"{"period":10000}"#, map([("cpu.max", "max 10000")])),
        (r#"{"idle":1,"burst":50}"#, map([("cpu.idle", "1"), ("cpu.max.burst", "50")])),
        (r#"{"shares":0,"quota":0,"period":0,"realtimeRuntime":0,"realtimePeriod":0}"#, map([])),
    ] {
        let fake = Fake::new(&["cpu.max", "cpu.weight", "cpu.idle", "cpu.max.burst"]);
        v2::cpu(&fake.knobs(false), &serde_json::from_str(json).unwrap()).unwrap();
        assert_eq!(fake.written(), expected, "{json}");
    }
}

#[test]
fn weights_and_throttles_are_converted() {
    let json = r#"{"weight":500,"weightDevice":[],
        "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1048576}]}"#;
    let fake = Fake::new(&["io.weight", "io.max"]);
    v2::block_io(&fake.knobs(false), &serde_json::from_str(json).unwrap()).unwrap();
    assert_eq!(fake.written(), map([("io.weight", "4950"), ("io.max", "8:0 rbps=1048576")]));
    let fake = Fake::new(&["io.bfq.weight", "io.weight", "io.max"]);
    v2::block_io(&fake.knobs(false), &serde_json::from_str(json).unwrap()).unwrap();
    assert_eq!(fake.written(), map([("io.bfq.weight", "500"), ("io.max", "8:0 rbps=1048576")]));

    let v1 = r#"{"weight":500,"leafWeight":0,"weightDevice":[{"major":8,"minor":0,"weight":10}],
        "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":7}]}"#;
    let files = ["blkio.bfq.weight", "blkio.bfq.weight_device", "blkio.throttle.write_iops_device"];
    let fake = Fake::new(&files);
    v1::block_io(&fake.knobs(true), &serde_json::from_str(v1).unwrap()).unwrap();
    let expected = ["500", "8:0 10", "8:0 7"];
    assert_eq!(
        fake.written(),
        files.map(str::to_owned).into_iter().zip(expected.map(str::to_owned)).collect()
    );
    let bare = Fake::new(&[]);
    let text = refused(
        v1::block_io(&bare.knobs(true), &serde_json::from_str(v1).unwrap()),
        "linux.resources.blockIO.weight",
    );
    assert!(
        text.ends_with("this kernel has no blkio.weight (no proportional-weight I/O scheduler)"),
        "{text}"
    );
}

#[test]
fn huge_pages_and_rdma_have_the_same_files_on_both() {
    let limit = serde_json::from_str(r#"{"pageSize":"2MB","limit":4194304}"#).unwrap();
    for (v1, suffix) in [(true, "limit_in_bytes"), (false, "max")] {
        let (plain, reserved) = (format!("hugetlb.2MB.{suffix}"), format!("hugetlb.2MB.rsvd.{suffix}"));
        let fake = Fake::new(&[&plain, &reserved]);
        hugepages(&fake.knobs(v1), &limit).unwrap();
        assert_eq!(fake.written(), map([(&plain, "4194304"), (&reserved, "4194304")]));
    }
    let fake = Fake::new(&["rdma.max"]);
    rdma(&fake.knobs(true), &serde_json::from_str(r#"{"mlx5_1":{"hcaHandles":3,"hcaObjects":10}}"#).unwrap())
        .unwrap();
    assert_eq!(fake.written(), map([("rdma.max", "mlx5_1 hca_handle=3 hca_object=10")]));
    let evil = serde_json::from_str(r#"{"pageSize":"../x","limit":1}"#).unwrap();
    refused(hugepages(&fake.knobs(true), &evil), "linux.resources.hugepageLimits[../x]");
}

/// A user's cgroups are below others, in which nothing may be written and nothing needs to be.
#[test]
fn controllers_are_enabled_only_where_they_are_not() {
    let root = tempfile::tempdir().unwrap();
    let leaf = root.path().join("slice/user/leaf");
    std::fs::create_dir_all(&leaf).unwrap();
    for (dir, available) in
        [("", "memory pids"), ("slice", "memory pids"), ("slice/user", "pids"), ("slice/user/leaf", "")]
    {
        std::fs::write(root.path().join(dir).join("cgroup.controllers"), available).unwrap();
        std::fs::write(root.path().join(dir).join("cgroup.subtree_control"), "").unwrap();
    }
    let written =
        |dir: &str| std::fs::read_to_string(root.path().join(dir).join("cgroup.subtree_control")).unwrap();
    v2::enable(root.path(), &leaf, "pids").unwrap();
    assert_eq!(["", "slice", "slice/user"].map(written), ["", "", "+pids"]);
    v2::enable(root.path(), &leaf, "memory").unwrap();
    assert_eq!(["", "slice"].map(written), ["", "+memory"]);
}

/// What docker and podman send when nothing was asked for.
#[test]
fn what_asks_for_nothing_needs_no_controller() {
    let nothing = r#"{"blockIO":{"weight":0},"memory":{"disableOOMKiller":false,"limit":0,"kernel":0},
        "cpu":{"shares":0,"cpus":""},"pids":{"limit":-1},"hugepageLimits":[],"network":{},"unified":{}}"#;
    Cgroups::default().apply(&resources(nothing)).unwrap();
}

#[test]
fn without_a_controller_the_field_is_named() {
    for (field, json) in [
        ("memory.limit", r#"{"memory":{"limit":1}}"#),
        ("cpu.quota", r#"{"cpu":{"quota":1}}"#),
        ("cpu.cpus", r#"{"cpu":{"cpus":"0"}}"#),
        ("pids.limit", r#"{"pids":{"limit":1}}"#),
        ("blockIO.weight", r#"{"blockIO":{"weight":10}}"#),
        (
            "blockIO.throttleReadBpsDevice",
            r#"{"blockIO":{"throttleReadBpsDevice":[{"major":1,"minor":1,"rate":1}]}}"#,
        ),
        ("hugepageLimits[2MB]", r#"{"hugepageLimits":[{"pageSize":"2MB","limit":1}]}"#),
        ("network.classID", r#"{"network":{"classID":1}}"#),
        ("network.priorities", r#"{"network":{"priorities":[{"name":"eth0","priority":1}]}}"#),
        ("rdma[x]", r#"{"rdma":{"x":{"hcaHandles":1}}}"#),
        ("unified[memory.max]", r#"{"unified":{"memory.max":"1"}}"#),
    ] {
        refused(Cgroups::default().apply(&resources(json)), &format!("linux.resources.{field}"));
    }
}

/// Limits that a real v1 kernel takes and enforces. Skips the controllers that this machine doesn't have there.
#[test]
fn v1_memory_goes_up_and_down_together_with_swap() {
    let scratch = Scratch::new().only(|dir| dir.hierarchy.has("memory"));
    if scratch.cgroups.is_empty() {
        return;
    }
    let swap = scratch.cgroups.dirs[0].path.join("memory.memsw.limit_in_bytes").exists();
    for megabytes in [64u64, 256, 16, 32] {
        let (limit, sum) = (megabytes << 20, megabytes << 21);
        let json = match swap {
            true => format!(r#"{{"memory":{{"limit":{limit},"swap":{sum},"reservation":{limit}}}}}"#),
            false => format!(r#"{{"memory":{{"limit":{limit},"swap":-1,"reservation":{limit}}}}}"#),
        };
        scratch.apply(&json).unwrap();
        assert_eq!(scratch.read("memory", "memory.limit_in_bytes"), limit.to_string());
        assert_eq!(scratch.read("memory", "memory.soft_limit_in_bytes"), limit.to_string());
        if swap {
            assert_eq!(scratch.read("memory", "memory.memsw.limit_in_bytes"), sum.to_string());
        }
    }
    let mut shell = Shell::in_cgroups(&scratch.cgroups);
    // tail keeps what has no line end.
    assert!(!shell.can("(head -c 100000000 /dev/zero | tail >/dev/null)"));
    scratch.apply(r#"{"memory":{"limit":-1}}"#).unwrap();
    assert!(scratch.read("memory", "memory.limit_in_bytes").len() > 15);
    assert!(shell.can("(head -c 100000000 /dev/zero | tail >/dev/null)"));
    scratch.apply(r#"{"memory":{"disableOOMKiller":true,"swappiness":10,"kernelTCP":40960}}"#).unwrap();
    assert!(scratch.read("memory", "memory.oom_control").starts_with("oom_kill_disable 1"));
    assert_eq!(scratch.read("memory", "memory.swappiness"), "10");
    assert_eq!(scratch.read("memory", "memory.kmem.tcp.limit_in_bytes"), "40960");
}

#[test]
fn v1_bandwidth_is_set_in_whatever_order_the_kernel_wants() {
    let scratch = Scratch::new().only(|dir| dir.hierarchy.has("cpu"));
    if scratch.cgroups.is_empty() {
        return;
    }
    for (quota, period, burst) in
        [(20_000, 50_000, 10_000), (2_000, 5_000, 1_000), (90_000, 100_000, 90_000), (1_000, 10_000, 0)]
    {
        scratch
            .apply(&format!(
                r#"{{"cpu":{{"quota":{quota},"period":{period},"burst":{burst},"shares":512}}}}"#
            ))
            .unwrap();
        let values: [i64; 4] = ["cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.cfs_burst_us", "cpu.shares"]
            .map(|file| scratch.read("cpu", file).parse().unwrap());
        assert_eq!(values, [quota, period, burst, 512]);
    }
    scratch.apply(r#"{"cpu":{"idle":1}}"#).unwrap();
    assert_eq!(scratch.read("cpu", "cpu.idle"), "1");
    scratch.apply(r#"{"cpu":{"idle":0,"shares":2048,"quota":-1}}"#).unwrap();
    assert_eq!(scratch.read("cpu", "cpu.shares"), "2048");
    assert_eq!(scratch.read("cpu", "cpu.cfs_quota_us"), "-1");
    refused(scratch.apply(r#"{"cpu":{"shares":1}}"#), "linux.resources.cpu.shares");
    let text = refused(scratch.apply(r#"{"cpu":{"period":1}}"#), "linux.resources.cpu.period");
    assert!(text.ends_with("cpu.cfs_period_us: invalid argument"), "{text}");
}

#[test]
fn processes_and_processors_are_limited() {
    let scratch = Scratch::new();
    if scratch.cgroups.v1("pids").is_some() {
        scratch.apply(r#"{"pids":{"limit":1}}"#).unwrap();
        let mut shell = Shell::in_cgroups(&scratch.cgroups);
        assert_eq!(scratch.read("pids", "pids.max"), "1");
        // The shell can't fork, and ends.
        shell.tell("(:)");
        assert_ne!(shell.status(), Some(0));
        scratch.apply(r#"{"pids":{"limit":0}}"#).unwrap();
        assert_eq!(scratch.read("pids", "pids.max"), "max");
    }
    if scratch.cgroups.v1("cpuset").is_some() {
        let first = scratch.read("cpuset", "cpuset.cpus").split([',', '-']).next().unwrap().to_owned();
        scratch.apply(&format!(r#"{{"cpu":{{"cpus":"{first}","mems":"0"}}}}"#)).unwrap();
        assert_eq!(scratch.read("cpuset", "cpuset.cpus"), first);
        refused(scratch.apply(r#"{"cpu":{"cpus":"x"}}"#), "linux.resources.cpu.cpus");
    }
}

/// In a hybrid layout a controller that v1 doesn't have is enabled on cgroup2 when it is asked for.
#[test]
fn huge_pages_are_limited_wherever_they_are() {
    let scratch = Scratch::new();
    let Some(dir) = scratch.cgroups.v2() else { return };
    let root = &dir.hierarchy.mount;
    let list = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    if scratch.cgroups.v1("hugetlb").is_some() || !list("cgroup.controllers").contains("hugetlb") {
        return;
    }
    let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages").unwrap();
    let Some(kilobytes) = sizes.flatten().find_map(|entry| {
        entry.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()
    }) else {
        return;
    };
    let size = match kilobytes {
        kb if kb % (1 << 20) == 0 => format!("{}GB", kb >> 20),
        kb if kb % (1 << 10) == 0 => format!("{}MB", kb >> 10),
        kb => format!("{kb}KB"),
    };
    let limit = kilobytes << 11;
    scratch.apply(&format!(r#"{{"hugepageLimits":[{{"pageSize":"{size}","limit":{limit}}}]}}"#)).unwrap();
    assert_eq!(scratch.read("", &format!("hugetlb.{size}.max")), limit.to_string());
    scratch.apply(&format!(r#"{{"unified":{{"hugetlb.{size}.max":"max"}}}}"#)).unwrap();
    assert_eq!(scratch.read("", &format!("hugetlb.{size}.max")), "max");
    assert!(scratch.cgroups.stats().unwrap().hugetlb.contains_key(&size));
    let text = refused(
        scratch.apply(r#"{"hugepageLimits":[{"pageSize":"3MB","limit":1}]}"#),
        "linux.resources.hugepageLimits[3MB]",
    );
    assert!(text.contains("this kernel has no "), "{text}");
}
