//! A job goes to a host with another kernel and another CPU, and back: the functions of its vDSO are elsewhere there,
//! and the kernel lacks what newer ones have. The host is a virtual machine, with nothing but cgroup2.
//! `make test-all` runs this, since it downloads a kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::guests::guest;
use ckrun_integration::machine::boot;
use ckrun_integration::run::{binary, finish, install};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What keeps the C library from the widest registers, which the other CPU lacks.
const NARROW: &str = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-ERMS";

/// Restores what comes along (an initramfs keeps times by the second), looks whether it goes on, and sends a checkpoint of it
/// back.
const SCRIPT: &str = r#"
turn() { tail -n 1 bundle/rootfs/log | cut -d' ' -f1; }
await() { n=0; while [ "$(turn)" -lt $1 ]; do sleep 0.1; n=$((n+1)); [ $n -lt 300 ]; done; }
echo "kernel $(uname -r)"
ckrun restore --dry-run --image-path image --bundle bundle t || echo "refused with $?"
ckrun restore --dry-run --unused-cpu-features all --changed-files ignore --image-path image --bundle bundle t
ckrun restore -d --unused-cpu-features all --changed-files ignore --image-path image --bundle bundle t </dev/null >said 2>&1 || { cat said; exit 1; }
await $(($(turn) + 20)); echo "limits $(cat /sys/fs/cgroup/ckrun-t/pids.max /sys/fs/cgroup/ckrun-t/memory.max)"
ckrun checkpoint --image-path second t
ckrun restore -d --image-path second --bundle bundle t </dev/null >said 2>&1 || { cat said; exit 1; }
await $(($(turn) + 20)); ckrun checkpoint --image-path third t
ckrun list --quiet; echo "log $(tail -n 1 bundle/rootfs/log)"
tar c third bundle/rootfs/log >/dev/ttyS1
"#;

fn ckrun(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new(binary());
    command.arg("--root").arg(dir.join("root")).args(args).current_dir(dir);
    finish(command).exits(0).stdout
}

/// Waits until the log has so many lines more; the last turn, and what was wrong.
fn await_turns(log: &Path, more: usize) -> (usize, String) {
    let lines = || fs::read_to_string(log).unwrap_or_default();
    let turn =
        |text: &str| text.lines().last().and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or(0);
    let target = turn(&lines()) + more;
    loop {
        let text = lines();
        if turn(&text) >= target && text.ends_with('\n') {
            let wrong = text.lines().last().unwrap_or_default().split(' ').nth(1).unwrap_or_default();
            return (turn(&text), wrong.to_owned());
        }
        std::thread::yield_now();
    }
}

#[test]
#[ignore = "heavy: make test-all"]
fn a_job_goes_to_another_kernel_and_cpu_and_comes_back() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, work) = (scratch.path(), scratch.path().join("work"));
    let rootfs = work.join("bundle/rootfs");
    for name in ["proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(rootfs.join(name)).unwrap();
    }
    install(&guest("traveller"), &rootfs.join("traveller"));
    ckrun(dir, &["spec", "--bundle", "work/bundle"]);
    let config = work.join("bundle/config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["/traveller"]);
    spec["process"]["env"] = serde_json::json!([NARROW]);
    spec["root"]["readonly"] = false.into();
    let cgroup = format!("/ckrun-traveller-{}", std::process::id());
    spec["linux"]["cgroupsPath"] = cgroup.into();
    spec["linux"]["resources"]["pids"] = serde_json::json!({ "limit": 100 });
    fs::write(&config, spec.to_string()).unwrap();
    let id = format!("traveller-{}", std::process::id());

    let log = rootfs.join("log");
    let mut start = Command::new(binary());
    start.args(["--root", "root", "run", "-d", "--bundle", "work/bundle", &id]).current_dir(dir);
    start
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    assert!(start.status().unwrap().success());
    await_turns(&log, 5);
    ckrun(dir, &["checkpoint", "--image-path", "work/image", &id]);
    // There the job's cgroup has its default name, and limits of that host.
    spec["linux"]["cgroupsPath"] = "/ckrun-t".into();
    spec["linux"]["resources"]["memory"] = serde_json::json!({ "limit": 64 << 20 });
    fs::write(&config, spec.to_string()).unwrap();

    let (said, sent) = boot("Nehalem", &work, SCRIPT);
    println!("{said}");
    let has = |what: &str| assert!(said.contains(what), "{what}: not in\n{said}");
    has("script: 0");
    has("lacks what");
    has("refused with 1");
    has("can be restored here");
    has("limits 100\n67108864");
    assert!(said.lines().any(|line| line.starts_with("log ") && line.ends_with(" 0")), "{said}");

    // And back, from that kernel to this one.
    let archive = dir.join("sent.tar");
    fs::write(&archive, sent).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["xf", "sent.tar", "-C", "work"]).current_dir(dir);
    finish(tar).ok();
    let back = format!("/ckrun-traveller-back-{}", std::process::id());
    spec["linux"]["cgroupsPath"] = back.into();
    fs::write(&config, spec.to_string()).unwrap();
    let mut again = Command::new(binary());
    again.args([
        "--root",
        "root",
        "restore",
        "-d",
        "--changed-files",
        "ignore",
        "--image-path",
        "work/third",
    ]);
    again.args(["--bundle", "work/bundle", &id]).current_dir(dir);
    again
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    assert!(again.status().unwrap().success());
    let (_, wrong) = await_turns(&log, 50);
    ckrun(dir, &["delete", "--force", &id]);
    assert_eq!(wrong, "0");
}
