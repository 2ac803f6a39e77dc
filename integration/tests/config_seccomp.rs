//! Seccomp profiles in force in the container.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::agent::Agent;
use ckrun_integration::bundle::Container;
use serde_json::{Value, json};

fn filtered(script: &str, rules: Value) -> Container {
    Container::sh(script).with(|c| {
        c["root"]["readonly"] = json!(false);
        c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
    })
}

const MKDIR: [&str; 2] = ["mkdir", "mkdirat"];

#[test]
fn a_call_fails_with_the_errno_asked_for() {
    let errno = |rule: Value| filtered("mkdir /d 2>&1; true", json!([rule])).run().ok();
    assert!(errno(json!({"names": MKDIR, "action": "SCMP_ACT_ERRNO"})).ends_with("Operation not permitted"));
    let rule = json!({"names": MKDIR, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EXDEV});
    assert!(errno(rule).ends_with("Invalid cross-device link"));
    assert_eq!(errno(json!({"names": MKDIR, "action": "SCMP_ACT_LOG"})), "");
}

#[test]
fn a_call_kills() {
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP"] {
        let script = "sh -c 'mkdir /d'; exit $?";
        let ended = filtered(script, json!([{"names": MKDIR, "action": action}])).run();
        assert_eq!(ended.code, 128 + libc::SIGSYS, "{action}: {ended:?}");
    }
}

#[test]
fn arguments_decide() {
    // socket(AF_NETLINK, …) only; AF_NETLINK is 16.
    let rule = json!([{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EXDEV,
        "args": [{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}]}]);
    let said = filtered("ip link 2>&1; ip addr 2>&1; true", rule).run().ok();
    assert!(said.contains("cross-device"), "{said}");
}

#[test]
fn the_default_action_holds_for_all_else() {
    let container = Container::sh("echo never").with(|c| {
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "syscalls": [{"names": ["execve", "exit_group"], "action": "SCMP_ACT_ALLOW"}],
        });
    });
    let ended = container.run();
    assert_ne!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.stdout, "");
}

#[test]
fn flags_and_architectures_are_taken() {
    let container = filtered(
        "grep Seccomp: /proc/self/status | cut -f2",
        json!([{"names": MKDIR, "action": "SCMP_ACT_ERRNO"}]),
    );
    container.change(|c| {
        c["linux"]["seccomp"]["flags"] = json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]);
        c["linux"]["seccomp"]["architectures"] =
            json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"]);
    });
    assert_eq!(container.run().ok(), "2");
    container.change(|c| {
        c["linux"]["seccomp"]["syscalls"][0]["names"] = json!(["mkdir", "mkdirat", "call_of_the_future"])
    });
    assert_eq!(container.run().exits(0).stdout, "2\n");
}

#[test]
fn an_agent_answers_for_the_kernel() {
    let container = filtered(
        "mkdir /a; mkdir /b 2>&1; mkdir /c 2>&1; ls -d /a /b /c 2>/dev/null; true",
        json!([{"names": MKDIR, "action": "SCMP_ACT_NOTIFY"}]),
    );
    let socket = container.file("agent");
    container.change(|c| {
        c["linux"]["seccomp"]["listenerPath"] = json!(socket);
        c["linux"]["seccomp"]["listenerMetadata"] = json!("for the agent");
        c["annotations"] = json!({"a": "b"});
    });
    let agent = Agent::at(&socket);
    let running = container.start(&["run", "ID"]);
    let (listener, about) = agent.receive();
    assert!(about["ociVersion"].as_str().unwrap().starts_with("1."), "{about}");
    assert_eq!(about["fds"], json!(["seccompFd"]));
    assert_eq!(about["metadata"], "for the agent");
    assert_eq!(about["state"]["id"], container.id());
    assert_eq!(about["state"]["bundle"], container.bundle().to_str().unwrap());
    assert_eq!(about["state"]["annotations"], json!({"a": "b"}));
    assert_eq!(about["pid"], about["state"]["pid"]);
    let first = listener.next();
    listener.allow(first);
    for errno in [libc::EXDEV, libc::ENOSPC] {
        listener.fail(listener.next(), errno);
    }
    let said = running.wait().ok();
    assert_eq!(
        said,
        "mkdir: can't create directory '/b': Invalid cross-device link\n\
        mkdir: can't create directory '/c': No space left on device\n/a"
    );
    container.no_trace();
}

#[test]
fn the_listener_comes_at_the_start_and_again_for_an_exec() {
    let container =
        filtered("mkdir /a 2>&1; read end", json!([{"names": MKDIR, "action": "SCMP_ACT_NOTIFY"}]));
    let socket = container.file("agent");
    container.change(|c| c["linux"]["seccomp"]["listenerPath"] = json!(socket));
    let agent = Agent::at(&socket);
    let mut live = container.create();
    container.ckrun(&["start", "ID"]).ok();
    let (listener, about) = agent.receive();
    assert_eq!(about["pid"], live.pid);
    listener.fail(listener.next(), libc::EXDEV);
    assert!(live.stdout.line().ends_with("cross-device link"));
    let exec = container.start(&["exec", "ID", "mkdir", "/b"]);
    let (second, about) = agent.receive();
    assert_ne!(about["pid"], live.pid);
    assert_eq!(about["state"]["pid"], live.pid);
    second.fail(second.next(), libc::ENOSPC);
    assert!(exec.wait().stderr.ends_with("No space left on device\n"));
}

#[test]
fn profiles_that_can_not_be_carried_out() {
    let refused = |rules: Value, words: &[&str]| drop(filtered("true", rules).run().fails(1, words));
    refused(json!([{"names": MKDIR, "action": "SCMP_ACT_NOTIFY"}]), &["linux.seccomp.listenerPath"]);
    refused(
        json!([{"names": MKDIR, "action": "SCMP_ACT_FLY"}]),
        &["linux.seccomp", "action", "SCMP_ACT_FLY"],
    );
    let nobody = filtered("true", json!([{"names": MKDIR, "action": "SCMP_ACT_NOTIFY"}]))
        .with(|c| c["linux"]["seccomp"]["listenerPath"] = json!("/no/agent"));
    nobody.run().fails(1, &["linux.seccomp.listenerPath", "/no/agent", "no such file"]);
}
