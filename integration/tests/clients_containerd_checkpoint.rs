//! containerd's checkpoints: `ctr task checkpoint`, `ctr container checkpoint` and `restore`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::clients::Containerd;
use std::fs;
use std::path::Path;

/// It counts the signals that it gets, in memory, and says its count to whoever reads the FIFO; the count is its exit
/// code too, above 40.
const COUNTER: &str = "n=0; mkfifo /said; trap 'n=$((n+1)); echo count $n >/said' USR1; trap 'exit $((40+n))' TERM; \
                       sleep 100000 & echo ready >/said; while :; do wait; done";

#[track_caller]
fn start(containerd: &Containerd, id: &str) {
    containerd.run(&["--detach"], id, &["sh", "-c", COUNTER]).ok();
    said(containerd, id, "ready");
}

/// Checks what the job says next. ctr may lose what a short process wrote, but not how it ended.
#[track_caller]
fn said(containerd: &Containerd, id: &str, words: &str) {
    // The FIFO appears when the job has come so far.
    let job = "until test -p /said; do :; done; test \"$(cat /said)\" = \"$0\"";
    containerd.exec(id, &[], &["sh", "-c", job, words]).exits(0);
}

/// Lets it count, and checks that it is at `n` then.
#[track_caller]
fn count(containerd: &Containerd, id: &str, n: u32) {
    containerd.call(&["task", "kill", "--signal=USR1", id]).ok();
    said(containerd, id, &format!("count {n}"));
}

/// Ends a task that has an exit code, which is checked.
#[track_caller]
fn stop(containerd: &Containerd, id: &str, code: u32) {
    containerd.call(&["task", "kill", "--signal=TERM", id]).ok();
    // containerd learns a little later than the kernel that it has ended.
    let done = loop {
        let done = containerd.call(&["task", "rm", id]);
        if !done.err.contains("must be stopped before deletion") {
            break done.exits(0);
        }
    };
    assert!(done.err.contains(&format!("non-zero exit code {code}")), "{}", done.err);
    containerd.call(&["container", "rm", id]).ok();
}

fn is_an_image(dir: &str) -> bool {
    ["manifest.json", "inventory.img"].iter().all(|file| Path::new(dir).join(file).is_file())
}

#[test]
fn a_task_is_written_to_a_directory() {
    let containerd = Containerd::new();
    start(&containerd, "web");
    count(&containerd, "web", 1);
    let [image, work, last] = ["image", "work", "last"].map(|name| containerd.enclosure.path(name));
    let checkpoint =
        |options: &[&str]| containerd.call(&[&["task", "checkpoint"], options, &["web"]].concat());
    // The second image takes the place of the first.
    for n in 2..4 {
        checkpoint(&["--work-path", &work, "--image-path", &image]).ok();
        assert!(is_an_image(&image));
        assert_eq!(containerd.status("web"), "RUNNING");
        count(&containerd, "web", n);
    }
    // One that was found paused stays so.
    containerd.call(&["task", "pause", "web"]).ok();
    checkpoint(&["--image-path", &image]).ok();
    assert_eq!(containerd.status("web"), "PAUSED");
    containerd.call(&["task", "resume", "web"]).ok();
    count(&containerd, "web", 4);

    checkpoint(&["--exit", "--image-path", &last]).ok();
    assert!(is_an_image(&last));
    // As in `stop`.
    while containerd.status("web") != "STOPPED" {}
    containerd.remove("web");

    // Where another container's image is, none is written.
    start(&containerd, "other");
    let words = ["task", "checkpoint", "--exit", "--image-path", &last, "other"];
    containerd.call(&words).fails().complains("is not overwritten");
    count(&containerd, "other", 1);
    containerd.remove("other");
    containerd.finish();
}

#[test]
fn a_container_is_restored_from_containerds_store() {
    let containerd = Containerd::new();
    start(&containerd, "web");
    count(&containerd, "web", 1);
    containerd.call(&["container", "checkpoint", "--task", "--rw", "web", "taken"]).ok();
    count(&containerd, "web", 2);

    // containerd gives a restored container the cgroup of the first one, where that still runs.
    let words = ["container", "restore", "--live", "--rw", "again", "taken"];
    stop(&containerd, "web", 42);
    containerd.call(&words).ok();
    assert_eq!(containerd.status("again"), "RUNNING");
    count(&containerd, "again", 2);
    containerd.exec("again", &[], &["grep", "-qx", "sh", "/proc/1/comm"]).exits(0);

    // A checkpoint of the restored one. While the first is in its store, containerd 1.6 makes one without the job: the
    // configuration is in the store already, which it takes for the end of its work.
    containerd.call(&["image", "rm", "--sync", "taken"]).ok();
    containerd.call(&["container", "checkpoint", "--task", "--rw", "again", "second"]).ok();
    stop(&containerd, "again", 42);
    containerd.call(&["container", "restore", "--live", "--rw", "web", "second"]).ok();
    count(&containerd, "web", 3);
    stop(&containerd, "web", 43);
    containerd.finish();
}

#[test]
fn what_can_not_be_done_is_said_and_the_task_goes_on() {
    let containerd = Containerd::new();
    let image = containerd.enclosure.path("image");
    let job =
        "n=0; trap 'exit 41' TERM; mkfifo /said; sleep 100000 & echo ready >/said; while :; do wait; done";
    containerd.run(&["--detach", "--with-ns=pid:/proc/1/ns/pid"], "web", &["sh", "-c", job]).ok();
    said(&containerd, "web", "ready");
    containerd
        .call(&["task", "checkpoint", "--image-path", &image, "web"])
        .fails()
        .complains("only if it has a pid namespace of its own");
    assert!(!fs::exists(&image).unwrap() || !is_an_image(&image));
    assert_eq!(containerd.status("web"), "RUNNING");
    containerd.remove("web");
    containerd.finish();
}
