use super::*;
use crate::sandbox::testing::in_child;
use serde_json::json;

fn process(mut json: serde_json::Value) -> Process {
    json["cwd"] = "/".into();
    json["user"] = json!({"uid": 0, "gid": 0});
    serde_json::from_value(json).unwrap()
}

fn spec(linux: serde_json::Value) -> Spec {
    serde_json::from_value(json!({"ociVersion": "1.3.0", "linux": linux})).unwrap()
}

#[test]
fn lists_of_numbers() {
    assert_eq!(list("f", "").unwrap(), [0; 0]);
    assert_eq!(list("f", "0-3,7").unwrap(), [0b1000_1111]);
    assert_eq!(list("f", "64, 1").unwrap(), [2, 1]);
    for bad in ["x", "3-1", "1-", "-1", "99999999", "1-2-3"] {
        assert!(list("f", bad).unwrap_err().to_string().starts_with("f: "), "{bad}");
    }
}

/// The 40th field is the policy, the 19th the nice value (proc_pid_stat(5)).
fn stat(field: usize) -> String {
    let text = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    text[text.rfind(')').unwrap() + 2..].split(' ').nth(field - 3).unwrap().to_owned()
}

#[test]
fn scheduler_and_io_priority() {
    in_child(|| {
        schedule(&process(json!({"scheduler": {"policy": "SCHED_BATCH", "nice": 7}}))).unwrap();
        assert_eq!((stat(41).as_str(), stat(19).as_str()), ("3", "7"));
        let keep = json!(["SCHED_FLAG_KEEP_POLICY", "SCHED_FLAG_KEEP_PARAMS"]);
        schedule(&process(json!({"scheduler": {"policy": "SCHED_OTHER", "flags": keep}}))).unwrap();
        assert_eq!(stat(41), "3", "the flags reached the kernel");
        schedule(&process(json!({
            "scheduler": {"policy": "SCHED_OTHER", "nice": 9},
            "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 4},
        })))
        .unwrap();
        assert_eq!((stat(41).as_str(), stat(19).as_str()), ("0", "9"));
        // SAFETY: two numbers.
        assert_eq!(unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) }, 3 << 13 | 4);
    });
}

#[test]
fn a_real_time_job() {
    in_child(|| {
        let fifo = process(json!({"scheduler": {"policy": "SCHED_FIFO", "priority": 10}}));
        match schedule(&fifo) {
            Ok(()) => assert_eq!((stat(41).as_str(), stat(40).as_str()), ("1", "10")),
            // A cgroup without real-time bandwidth.
            Err(e) => assert!(
                e.to_string().starts_with("process.scheduler: set SCHED_FIFO: operation not permitted")
            ),
        }
    });
}

#[test]
fn what_does_not_fit_the_scheduler_names_its_field() {
    for (scheduler, field) in [
        (json!({"policy": "SCHED_OTHER", "nice": 20}), "process.scheduler.nice: "),
        (json!({"policy": "SCHED_FIFO", "nice": 1}), "process.scheduler.nice: "),
        (json!({"policy": "SCHED_BATCH", "priority": 1}), "process.scheduler.priority: "),
        (json!({"policy": "SCHED_RR", "priority": -1}), "process.scheduler.priority: "),
        (json!({"policy": "SCHED_RR", "runtime": 1}), "process.scheduler.policy: "),
        (json!({"policy": "SCHED_ISO"}), "process.scheduler: set SCHED_ISO: invalid argument"),
        (json!({"policy": "SCHED_RR", "priority": 100}), "process.scheduler: set SCHED_RR: invalid argument"),
    ] {
        let said = schedule(&process(json!({"scheduler": scheduler}))).unwrap_err().to_string();
        assert!(said.starts_with(field), "{said}");
    }
    let said = schedule(&process(json!({"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}})));
    assert_eq!(said.unwrap_err().to_string(), "process.ioPriority.priority: 8 is not 0 to 7");
}

#[test]
fn a_32_bit_domain() {
    in_child(|| {
        domain_and_memory(&spec(json!({"personality": {"domain": "LINUX32"}}))).unwrap();
        assert_ne!(nix::sys::utsname::uname().unwrap().machine(), "x86_64");
        domain_and_memory(&spec(json!({"personality": {"domain": "LINUX"}}))).unwrap();
        let flags = spec(json!({"personality": {"domain": "LINUX", "flags": ["X"]}}));
        let said = domain_and_memory(&flags).unwrap_err().to_string();
        assert!(said.starts_with("linux.personality.flags: "), "{said}");
    });
}

#[test]
fn cpus_before_and_after_the_cgroup() {
    in_child(|| {
        let allowed = || {
            let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = text.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        let before = allowed();
        let first = before.split(['-', ',']).next().unwrap();
        let affinity = |json| serde_json::from_value::<ExecCPUAffinity>(json).unwrap();
        initial_cpus(&affinity(json!({}))).unwrap();
        assert_eq!(allowed(), before);
        final_cpus(&affinity(json!({"final": before}))).unwrap();
        assert_eq!(allowed(), before);
        initial_cpus(&affinity(json!({"initial": first}))).unwrap();
        assert_eq!(allowed(), first);
        let said = final_cpus(&affinity(json!({"final": "65535"}))).unwrap_err().to_string();
        assert!(
            said.starts_with("process.execCPUAffinity.final: run on CPUs 65535: invalid argument"),
            "{said}"
        );
    });
}

#[test]
fn memory_policies() {
    in_child(|| {
        let set = |policy| domain_and_memory(&spec(json!({"memoryPolicy": policy})));
        let get = || {
            let mut mode: libc::c_int = -1;
            let null = std::ptr::null_mut::<u64>();
            // SAFETY: writes one int.
            let got = unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, null, 0, null, 0) };
            (got == 0).then_some(mode)
        };
        if get().is_none() {
            let said = set(json!({"mode": "MPOL_LOCAL"})).unwrap_err().to_string();
            assert!(
                said.starts_with("linux.memoryPolicy: set MPOL_LOCAL: function not implemented"),
                "{said}"
            );
            return;
        }
        set(json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]})).unwrap();
        assert_eq!(get(), Some(libc::MPOL_BIND | libc::MPOL_F_STATIC_NODES));
        set(json!({"mode": "MPOL_PREFERRED"})).unwrap();
        set(json!({"mode": "MPOL_DEFAULT"})).unwrap();
        assert_eq!(get(), Some(0));
        let said = set(json!({"mode": "MPOL_BIND", "nodes": "1023"})).unwrap_err().to_string();
        assert!(said.starts_with("linux.memoryPolicy: set MPOL_BIND: invalid argument"), "{said}");
    });
}

#[test]
fn nodes_must_fit_the_mode() {
    for policy in [
        json!({"mode": "MPOL_DEFAULT", "nodes": "0"}),
        json!({"mode": "MPOL_INTERLEAVE"}),
        json!({"mode": "MPOL_BIND", "nodes": "a"}),
    ] {
        let said = domain_and_memory(&spec(json!({"memoryPolicy": policy}))).unwrap_err().to_string();
        assert!(said.starts_with("linux.memoryPolicy.nodes: "), "{said}");
    }
}
