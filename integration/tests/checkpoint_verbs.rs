//! checkpoint and restore as a user drives them: where the job goes on, and what is left where.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::job::{Job, path, size};
use ckrun_integration::pipes::{await_end, pidfd};
use ckrun_integration::snapshot::{pids, snapshot, unchanged};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// What was written since the checkpoint is to be taken as it is.
const AS_IT_IS: [&str; 2] = ["--changed-files", "ignore"];

#[test]
fn leave_running_leaves_the_job_as_it_was() {
    let job = Job::up("processes", "threads-in-tree");
    let before = snapshot(&job.container);
    let image = job.image("image");
    job.leave_running(&image);
    assert_eq!(job.container.status(), "running");
    unchanged(&before, &snapshot(&job.container), "afterwards");
    job.is_well();
}

#[test]
fn one_image_many_jobs() {
    let job = Job::up("memory", "private");
    let image = job.image("image");
    job.leave_running(&image);
    // Elsewhere, under another id, while the first goes on; and a third.
    let others = [job.elsewhere(), job.elsewhere()];
    for other in &others {
        other.restore_with(&image, &AS_IT_IS);
    }
    job.is_well();
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
    for other in &others {
        other.is_well();
    }
    // Its image is an image like any other.
    let second = others[0].image("second");
    others[0].checkpoint(&second);
    others[0].restore(&second);
}

#[test]
fn ten_generations() {
    for (guest, mode) in [("memory", "private"), ("processes", "threads-in-tree"), ("signals", "pending")] {
        let job = Job::up(guest, mode);
        let mut sizes = Vec::new();
        for generation in 0..10 {
            let image = job.image(&format!("generation-{generation}"));
            job.checkpoint(&image);
            sizes.push(size(&image));
            job.restore(&image);
        }
        // What a restart adds would add up.
        let (first, last) = (sizes[0], sizes[9]);
        assert!(last < first + first / 4 + 65536, "{guest} {mode}: {sizes:?}");
    }
}

/// The job's streams are those of the new ckrun, and so is its exit status.
#[test]
fn in_the_foreground() {
    let container = Container::sh("echo up; read word; echo \"got $word\"; exit 7");
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    let image = container.file("image");
    container.ckrun(&["checkpoint", "--image-path", path(&image), "ID"]).ok();
    live.await_end();
    let mut running = container.start(&["restore", "--image-path", path(&image), "ID"]);
    running.say("something");
    assert_eq!(running.stdout.line(), "got something");
    running.wait().exits(7);
    container.no_trace();
}

#[test]
fn a_signal_for_ckrun_is_one_for_the_job() {
    let container = Container::sh("trap 'echo told; exit 3' TERM; echo up; while :; do read word; done");
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    let image = container.file("image");
    container.ckrun(&["checkpoint", "--image-path", path(&image), "ID"]).ok();
    let mut running = container.start(&["restore", "--image-path", path(&image), "ID"]);
    // ckrun passes signals on once it has restored the job.
    let deadline = std::time::Instant::now() + ckrun_integration::pipes::PATIENCE;
    while container.ckrun(&["state", "ID"]).code != 0 || container.status() != "running" {
        assert!(std::time::Instant::now() < deadline);
    }
    running.signal(Signal::SIGTERM);
    assert_eq!(running.stdout.line(), "told");
    running.wait().exits(3);
}

#[test]
fn a_restored_container_is_one_like_any_other() {
    let job = Job::up("processes", "tree");
    let image = job.image("image");
    let count = pids(&job.container).len();
    job.checkpoint(&image);
    let pid_file = job.container.file("pid");
    job.restore_with(&image, &["--pid-file", path(&pid_file)]);
    let container = &job.container;
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), container.pid().to_string());
    assert_eq!(pids(container).len(), count);
    assert_eq!(container.ckrun(&["exec", "ID", "sh", "-c", "kill -0 1 && echo there"]).ok(), "there");
    container.ckrun(&["pause", "ID"]).ok();
    assert_eq!(container.status(), "paused");
    container.ckrun(&["resume", "ID"]).ok();
    job.is_well();
    let end = pidfd(container.pid());
    container.ckrun(&["kill", "ID", "KILL"]).ok();
    await_end(end);
    container.ckrun(&["delete", "ID"]).ok();
    container.no_trace();
}

#[test]
fn a_paused_job() {
    let job = Job::up("processes", "threads-in-tree");
    let image = job.image("first");
    job.container.ckrun(&["pause", "ID"]).ok();
    job.leave_running(&image);
    assert_eq!(job.container.status(), "paused");
    job.container.ckrun(&["resume", "ID"]).ok();
    job.is_well();
    job.container.ckrun(&["pause", "ID"]).ok();
    let image = job.image("second");
    job.checkpoint(&image);
    job.restore(&image);
}

#[test]
fn the_image_is_private_and_the_report_is_true() {
    let job = Job::up("memory", "private");
    let image = job.image("image");
    let said = job
        .container
        .ckrun(&["checkpoint", "--json", "--leave-running", "--image-path", path(&image), "ID"])
        .ok();
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["image"], path(&image));
    assert_eq!((&report["processes"], &report["threads"]), (&Value::from(1), &Value::from(1)));
    assert!(report["bytes"].as_u64().unwrap() >= 8 << 20, "{report}");
    assert!(report["frozenMs"].as_f64().unwrap() <= report["totalMs"].as_f64().unwrap(), "{report}");
    assert_eq!(fs::metadata(&image).unwrap().permissions().mode() & 0o7777, 0o700);
    for entry in fs::read_dir(&image).unwrap().flatten() {
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", entry.path().display());
    }
}

#[test]
fn logs_go_where_they_are_wanted() {
    let job = Job::up("memory", "code");
    let (image, work) = (job.image("image"), job.image("work"));
    job.container.ckrun(&["checkpoint", "--image-path", path(&image), "--work-path", path(&work), "ID"]).ok();
    assert!(work.join("dump.log").exists());
    job.restore_with(&image, &["--work-path", path(&work)]);
    assert!(work.join("restore.log").exists());
}

#[test]
fn an_id_in_use_is_refused_and_nobody_is_harmed() {
    let job = Job::up("processes", "tree");
    let image = job.image("image");
    job.leave_running(&image);
    let restore = ["restore", "--detach", "--image-path", path(&image), "ID"];
    job.container.ckrun(&[&restore[..4], &AS_IT_IS, &restore[4..]].concat()).fails(1, &[job.container.id()]);
    job.is_well();
}

#[test]
fn a_dry_run_of_a_restore_makes_nothing() {
    let job = Job::up("processes", "tree");
    let image = job.image("image");
    job.checkpoint(&image);
    let told = job.container.file("told");
    job.container.change(|c| {
        let hook = json!([{"path": "/bin/touch", "args": ["touch", told]}]);
        c["hooks"] = json!({"createRuntime": hook, "poststop": hook});
    });
    let said = job.container.ckrun(&["restore", "--dry-run", "--image-path", path(&image), "ID"]).ok();
    assert!(said.contains("can be restored here"), "{said}");
    job.container.no_trace();
    assert!(!told.exists() && !image.join("restore.log").exists());
    job.restore(&image);
    assert!(told.exists());
}

/// Everything at once, of files and of what is mapped; and the restart itself says the same.
#[test]
fn a_dry_run_of_a_restore_names_what_is_missing() {
    let job = Job::up("files", "append");
    let image = job.image("image");
    job.checkpoint(&image);
    let (log, program) = (job.container.rootfs().join("tmp/log"), job.container.rootfs().join("guest"));
    let original = fs::read(&program).unwrap();
    fs::write(&program, [&original[..], b"more"].concat()).unwrap();
    let kept = job.container.file("kept");
    fs::rename(&log, &kept).unwrap();
    let words = |more: &[&'static str]| {
        [&["restore"][..], more, &["--image-path", path(&image), "ID"]]
            .concat()
            .iter()
            .map(|w| (*w).to_owned())
            .collect()
    };
    let run = |more: &[&'static str]| {
        let words: Vec<String> = words(more);
        job.container.ckrun(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let said = run(&["--dry-run"]).exits(1);
    assert_eq!(said.stderr, "");
    let lines: Vec<_> = said.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", said.stdout);
    assert!(lines[0].starts_with("/tmp/log: ") && lines[0].contains("not in the container"), "{}", lines[0]);
    assert!(lines[1].starts_with("/guest: ") && lines[1].contains("its size is"), "{}", lines[1]);
    let json: Value = serde_json::from_str(&run(&["--dry-run", "--json"]).exits(1).stdout).unwrap();
    assert_eq!(json["problems"][1]["what"], "/guest", "{json}");
    run(&["--detach"]).fails(1, &["/tmp/log: ", "/guest: "]);
    job.container.no_trace();
    // A file that is longer only, where that is allowed; and a program that is gone.
    fs::rename(&kept, &log).unwrap();
    run(&["--dry-run", "--changed-files", "/guest=truncate"]).exits(0);
    fs::rename(&program, &kept).unwrap();
    let said = run(&["--dry-run", "--changed-files", "ignore"]).exits(1);
    assert_eq!(said.stdout, "/guest: the job has mapped it, and it is not in the container\n");
    job.container.no_trace();
    // As long as it was, and made of another source.
    let note = original.windows(8).position(|bytes| bytes == b"\x03\0\0\0GNU\0").unwrap();
    let mut rebuilt = original.clone();
    rebuilt[note + 8] ^= 1;
    fs::rename(&kept, &program).unwrap();
    fs::write(&program, rebuilt).unwrap();
    let said = run(&["--dry-run"]).exits(1);
    assert!(
        said.stdout.starts_with("/guest: the job has mapped it, and it is of another build"),
        "{}",
        said.stdout
    );
    run(&["--dry-run", "--changed-files", "ignore"]).exits(0);
    fs::write(&program, &original).unwrap();
    job.restore(&image);
}

/// The source of a mount is missing.
#[test]
fn a_dry_run_of_a_restore_where_the_sandbox_can_not_be_built() {
    let job = Job::up("processes", "tree");
    let image = job.image("image");
    job.checkpoint(&image);
    let config = job.container.config();
    job.container.change(|c| {
        c["mounts"].as_array_mut().unwrap().push(
            json!({"destination": "/data", "type": "bind", "source": "/nonexistent/data", "options": ["bind"]}),
        );
    });
    let words = ["restore", "--dry-run", "--image-path", path(&image), "ID"];
    let said = job.container.ckrun(&words).exits(1);
    assert!(
        said.stdout.starts_with("the sandbox: ") && said.stdout.contains("/nonexistent/data"),
        "{said:?}"
    );
    job.container.no_trace();
    job.container.change(|c| *c = config);
    job.restore(&image);
}

/// A process that `ckrun exec` brought in is not a child of the job's first.
#[test]
fn what_was_brought_in_by_exec() {
    let job = Job::up("processes", "tree");
    let count = pids(&job.container).len();
    job.quietly(&["exec", "--detach", "ID", "sleep", "1000"]).ok();
    let look = job.container.ckrun(&["checkpoint", "--dry-run", "ID"]);
    if look.code != 0 {
        assert!(look.stdout.contains("(sleep)"), "{}", look.stdout);
        return job.is_refused(&["(sleep)"]);
    }
    let image = job.image("image");
    job.checkpoint(&image);
    job.restore(&image);
    assert_eq!(pids(&job.container).len(), count + 1);
}

/// The job writes to a file that it has open, so that each restart finds that longer than it was.
#[test]
fn one_image_is_restored_many_times() {
    let job = Job::up("files", "append");
    let image = job.image("image");
    job.checkpoint(&image);
    let changed = ["--changed-files", "/tmp/log=truncate", "--changed-files", "/status=ignore"];
    for _ in 0..10 {
        job.restore_with(&image, &changed);
        job.container.ckrun(&["delete", "--force", "ID"]).ok();
    }
}

/// A file that a job has open, changed while there was no job.
#[test]
fn files_that_changed_meanwhile() {
    let job = Job::up("files", "append");
    let image = job.image("image");
    job.checkpoint(&image);
    let log = job.container.rootfs().join("tmp/log");
    let length = fs::metadata(&log).unwrap().len();
    let mut text = fs::read(&log).unwrap();
    text.extend_from_slice(b"from elsewhere\n");
    fs::write(&log, &text).unwrap();
    let restore = ["restore", "--detach", "--image-path", path(&image), "ID"];
    let refused = job.container.ckrun(&restore).fails(1, &["/tmp/log"]);
    assert!(refused.stderr.contains("size") || refused.stderr.contains("bytes"), "{}", refused.stderr);
    job.container.no_trace();
    // The guest would say BAD if the policy did not do what it says.
    job.restore_with(&image, &["--changed-files", "/tmp/log=truncate"]);
    assert!(fs::metadata(&log).unwrap().len() >= length);
    // A file that is gone can't be made up for.
    let second = job.image("second");
    job.checkpoint(&second);
    fs::remove_file(&log).unwrap();
    let restore = ["restore", "--detach", "--image-path", path(&second), "ID"];
    job.container.ckrun(&restore).fails(1, &["/tmp/log"]);
    job.container.no_trace();
}
