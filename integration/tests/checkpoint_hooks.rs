//! The hooks of a container that is restored.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::job::{path, quietly};
use ckrun_integration::pipes::{await_end, pidfd};
use serde_json::json;
use std::fs;

/// A container that runs a script, with streams that lead nowhere.
fn runs(script: &str) -> Container {
    let container = Container::sh(script);
    quietly(&container, &["run", "--detach", "ID"]).ok();
    container
}

fn checkpoint(container: &Container) -> std::path::PathBuf {
    let (image, end) = (container.file("image"), pidfd(container.pid()));
    container.ckrun(&["checkpoint", "--image-path", path(&image), "ID"]).ok();
    await_end(end);
    container.no_trace();
    image
}

#[test]
fn hooks_run_as_for_a_new_container() {
    let container = runs("while :; do sleep 1; done");
    let image = checkpoint(&container);
    let said = container.file("said");
    let hook = |kind: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("echo {kind} >> {}", said.display())]}]);
    container.change(|c| {
        c["root"]["readonly"] = json!(false);
        c["hooks"] = json!({
            "prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
            "createContainer": hook("createContainer"), "poststart": hook("poststart"), "poststop": hook("poststop"),
            "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "grep -E '^(CapEff|NSpid)' /proc/self/status > /said"]}],
        });
    });
    quietly(&container, &["restore", "--detach", "--image-path", path(&image), "ID"]).ok();
    container.ckrun(&["delete", "--force", "ID"]).ok();
    let order = fs::read_to_string(&said).unwrap();
    assert_eq!(order, "prestart\ncreateRuntime\ncreateContainer\npoststart\npoststop\n");
    // The one inside has no more rights than the job.
    let inside = fs::read_to_string(container.rootfs().join("said")).unwrap();
    let effective = inside.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let allowed = container.config()["process"]["capabilities"]["effective"].as_array().unwrap().len();
    assert_eq!(u64::from_str_radix(effective, 16).unwrap().count_ones() as usize, allowed, "{inside}");
}

#[test]
fn a_hook_that_fails_leaves_an_image_that_can_be_restored() {
    let container = runs("while :; do sleep 1; done");
    let image = checkpoint(&container);
    let words = ["restore", "--detach", "--image-path", path(&image), "ID"];
    for kind in ["prestart", "createContainer", "startContainer"] {
        container.change(|c| {
            c["hooks"] = json!({kind: [{"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"]}]})
        });
        let failed = quietly(&container, &words);
        assert_eq!(failed.code, 1);
        assert!(failed.stderr.contains(kind) && failed.stderr.contains("why"), "{}", failed.stderr);
        container.no_trace();
    }
    container.change(|c| drop(c.as_object_mut().unwrap().remove("hooks")));
    quietly(&container, &words).ok();
    assert_eq!(container.status(), "running");
    container.ckrun(&["delete", "--force", "ID"]).ok();
}
