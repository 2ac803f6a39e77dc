//! A job that speaks with ckrun: `--job-api`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::job::{path, quietly};
use ckrun_integration::pipes::{any_ready, await_end, pidfd, try_pidfd};
use ckrun_integration::run::{finish, needs};
use ckrun_integration::supervisor::kill_supervisor;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::json;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A container whose job asks for checkpoints, and what it writes down.
fn asking() -> (Container, PathBuf) {
    let container = Container::new().args(&["/asking"]);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cc = Command::new(needs("cc", "gcc"));
    let kit = sources.join("../plugins/job");
    cc.args(["-O2", "-Wall", "-Wextra", "-static", "-I"]).arg(&kit).arg("-o");
    cc.arg(container.rootfs().join("asking")).arg(sources.join("guests/asking.c")).arg(kit.join("ckrun.c"));
    finish(cc).ok();
    let out = container.file("out");
    fs::create_dir(&out).unwrap();
    container.change(|c| {
        let mount = json!({"destination": "/out", "type": "bind", "source": out, "options": ["rbind"]});
        c["mounts"].as_array_mut().unwrap().push(mount);
        c["root"]["readonly"] = json!(false);
    });
    (container, out.join("log"))
}

/// Waits until the job has written `line`.
fn await_line(log: &Path, line: &str) -> Vec<String> {
    let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, log.parent().unwrap(), WatchFlags::MODIFY).unwrap();
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        if text.lines().any(|written| written == line) {
            return text.lines().map(str::to_owned).collect();
        }
        any_ready(&[watch.as_fd()]);
        while rustix::io::read(&watch, &mut [0; 4096]).is_ok() {}
    }
}

/// Waits until every ckrun has ended that works for this container: nobody is the parent of those that the job asks for.
fn await_ckruns(container: &Container) {
    let store = container.store();
    let works_for_it = |pid: i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(path(&store))
    };
    let pids = fs::read_dir("/proc").unwrap();
    let pids = pids.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i32>().ok());
    for pid in pids.filter(|pid| works_for_it(*pid)) {
        if let Some(process) = try_pidfd(pid) {
            await_end(process);
        }
    }
}

#[test]
fn a_job_asks_for_checkpoints_and_sees_both_sides() {
    let (container, log) = asking();
    let images = container.file("images");
    fs::create_dir(&images).unwrap();
    quietly(&container, &["run", "--detach", "--job-api", path(&images), "ID"]).ok();
    let end = pidfd(container.pid());
    await_end(end);
    let refused = "refused";
    let first = ["present 1 generation 0", "before", "after 0", "first 0", refused, "before"];
    let written = fs::read_to_string(&log).unwrap();
    for (line, expected) in written.lines().zip(first) {
        assert!(line.starts_with(expected), "{written}");
    }
    assert_eq!(written.lines().count(), first.len(), "{written}");
    assert!(written.contains("refused \"no/name\""), "{written}");
    assert!(images.join("second/manifest.json").exists());
    await_ckruns(&container);
    container.no_trace();

    // From the second one: it was killed, and is on the other side now.
    let second = images.join("second");
    let restore = ["restore", "--detach", "--job-api", path(&images), "--image-path", path(&second), "ID"];
    quietly(&container, &restore).ok();
    let lines = await_line(&log, "forbidden");
    assert_eq!(lines[first.len()..], ["after 1", "second 1", "generation 1", "forbidden"]);
    let image = container.file("image");
    let asked = ["checkpoint", "--image-path", path(&image), "ID"];
    container.ckrun(&asked).fails(1, &["the job has forbidden checkpoints: the flash is being written"]);
    assert_eq!(container.status(), "running");

    // Nothing of that ends with the one who has heard it.
    fs::remove_file(&log).unwrap();
    kill_supervisor(&container);
    await_line(&log, "after 0");
    let said = container.ckrun(&asked).exits(1);
    assert!(
        said.stderr.contains("the job has forbidden checkpoints: the flash is being written"),
        "{said:?}"
    );
    container.ckrun(&["delete", "--force", "ID"]).ok();
    container.no_trace();

    // From the first one, where nobody speaks with it any more.
    fs::remove_file(&log).unwrap();
    let first = images.join("first");
    let ended = quietly(&container, &["restore", "--image-path", path(&first), "ID"]);
    assert_eq!(ended.code, 1, "the job's own");
    let written = fs::read_to_string(&log).unwrap();
    assert!(written.starts_with("first -1\nrefused"), "{written}");
    container.no_trace();
}
