//! Real programs, checkpointed under load, killed, restored, and checked by what they say themselves: they come from
//! Debian and know nothing of checkpoints. `make test-all` runs them, since they are heavy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::run::{finish, needs};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name)
}

/// A container with the host's programs in it and `files` in its /work, in which `words` run.
fn program(words: &[&str], files: &[PathBuf]) -> Job {
    let job = Job::with(words, |container| {
        let mut container = container;
        for dir in
            ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc"].iter().filter(|dir| Path::new(dir).exists())
        {
            container = container.mount(dir, "bind", dir, &["rbind", "ro"]);
        }
        container
    });
    let work = job.container.rootfs().join("work");
    fs::create_dir(&work).unwrap();
    for file in files {
        fs::copy(file, work.join(file.file_name().unwrap())).unwrap();
    }
    job.start();
    job
}

/// Three generations, at whatever the program is doing.
fn survives(job: &Job) {
    for generation in 0..3 {
        let image = job.image(&format!("generation-{generation}"));
        job.checkpoint(&image);
        job.restore_and_count(&image, 10);
    }
}

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
