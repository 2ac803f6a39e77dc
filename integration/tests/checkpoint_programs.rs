//! Real programs, checkpointed under load, killed, restored, and checked by what they say themselves: they come from
//! Debian and know nothing of checkpoints. `make test-all` runs them, since they are heavy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::programs::{program, source, survives};
use ckrun_integration::run::{finish, needs};
use std::process::Command;

#[test]
#[ignore = "heavy: make test-all"]
fn a_pipeline_of_bash() {
    needs("bash", "bash");
    survives(&program(&["bash", "/work/pipeline.sh", "/status"], &[source("pipeline.sh")]));
}

#[test]
#[ignore = "heavy: make test-all"]
fn python_with_threads_and_subprocesses() {
    needs("python3", "python3");
    survives(&program(&["python3", "/work/threads.py", "/status"], &[source("threads.py")]));
}

#[test]
#[ignore = "heavy: make test-all"]
fn sqlite_with_a_write_ahead_log() {
    needs("python3", "python3");
    survives(&program(&["python3", "/work/database.py", "/status", "/work/db"], &[source("database.py")]));
}

#[test]
#[ignore = "heavy: make test-all"]
fn gcc_that_builds_something() {
    needs("make", "make");
    needs("gcc", "gcc");
    survives(&program(&["bash", "/work/build.sh", "/status"], &[source("build.sh")]));
}

#[test]
#[ignore = "heavy: make test-all"]
fn go() {
    let made = tempfile::tempdir().unwrap();
    let worker = made.path().join("worker");
    let mut build = Command::new(needs("go", "golang-go"));
    build.args(["build", "-o"]).arg(&worker).arg(source("worker.go"));
    build.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=mod").env("GOCACHE", made.path().join("cache"));
    finish(build).ok();
    survives(&program(&["/work/worker", "/status"], &[worker]));
}

#[test]
#[ignore = "heavy: make test-all"]
fn java() {
    let made = tempfile::tempdir().unwrap();
    let mut build = Command::new(needs("javac", "default-jdk-headless"));
    build.arg("-d").arg(made.path()).arg(source("Worker.java"));
    finish(build).ok();
    needs("java", "default-jre-headless");
    let words = ["java", "-Xmx128m", "-cp", "/work", "Worker", "/status"];
    survives(&program(&words, &[made.path().join("Worker.class")]));
}
