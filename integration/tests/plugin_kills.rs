//! kill -9 of ckrun and of the supervisor of a job's plugins, in the middle of any event.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::emulator::Emulator;
use ckrun_integration::job::{Job, cleared, path};
use ckrun_integration::leftovers::settle;
use ckrun_integration::pipes::{await_end, pidfd};
use ckrun_integration::told::Told;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

/// Two FIFOs by which a plugin waits in the middle of an event.
struct Gate(PathBuf);

impl Gate {
    fn new(job: &Job) -> Gate {
        let dir = job.container.file("gate");
        fs::create_dir(&dir).unwrap();
        for name in ["here", "go"] {
            nix::unistd::mkfifo(&dir.join(name), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        }
        Gate(dir)
    }

    fn plugin(&self, name: &str, event: &str) -> String {
        format!("{name}:how=pause,on={event},gate={}", self.0.display())
    }

    /// Waits until the plugin is there; it does not stop there again.
    fn reached(&self) {
        assert_eq!(fs::read_to_string(self.0.join("here")).unwrap(), "here\n");
        fs::remove_file(self.0.join("here")).unwrap();
    }

    fn open(&self) {
        fs::write(self.0.join("go"), "").unwrap();
    }
}

/// Starts ckrun, and kills it when the plugin is at its event.
fn killed(job: &Job, gate: &Gate, words: &[&str]) {
    let mut command = job.container.command(words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut ckrun = command.spawn().unwrap();
    gate.reached();
    ckrun.kill().unwrap();
    ckrun.wait().unwrap();
    gate.open();
}

fn end(job: &Job) {
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
}

#[test]
fn a_checkpoint_that_is_killed_is_rolled_back() {
    for event in ["presuspend", "precheckpoint", "committed", "resume"] {
        let job = Job::new("registers", "general");
        let told = Told::of(&job.container);
        let gate = Gate::new(&job);
        told.start(&job, &["a", &gate.plugin("b", event)]);
        told.heard();
        let image = job.image("image");
        killed(&job, &gate, &["checkpoint", "--leave-running", "--image-path", path(&image), "ID"]);
        cleared(&job.container);
        job.is_well();
        let again = job.image("again");
        // It waits for the supervisor to have brought the other story to its end.
        job.leave_running(&again);
        let heard = told.heard();
        let second = heard.iter().rposition(|line| line == "a presuspend").unwrap();
        let after = if event == "resume" || event == "committed" { "checkpoint" } else { "failure" };
        let expected = [format!("a running {after}"), format!("b running {after}")];
        assert_eq!(heard[second - 2..second], expected, "{event}: {heard:?}");
        job.is_well();
        end(&job);
    }
}

#[test]
fn a_job_that_is_killed_in_the_making_leaves_nothing() {
    for event in ["init", "running"] {
        let job = Job::new("registers", "general");
        let told = Told::of(&job.container);
        let gate = Gate::new(&job);
        let plugin = gate.plugin("b", event);
        killed(&job, &gate, &[&["run", "--detach"][..], &told.words(&["a", &plugin]), &["ID"]].concat());
        // Of a container that was made, something is left for `delete`.
        let deleted = job.container.ckrun(&["delete", "--force", "ID"]);
        assert_eq!(deleted.code, 0, "{deleted:?}");
        settle(job.container.id());
        job.container.no_trace();
        let heard = told.heard();
        for word in ["a exit failed", "b exit failed"] {
            assert!(heard.iter().any(|line| line == word), "{event}: {heard:?}");
        }
    }
}

#[test]
fn a_restart_that_is_killed_leaves_nothing() {
    let job = Job::new("registers", "general");
    let told = Told::of(&job.container);
    told.start(&job, &["a", "b"]);
    let image = job.image("image");
    job.checkpoint(&image);
    for event in ["check", "restart", "running"] {
        let gate = Gate::new(&job);
        let plugin = gate.plugin("b", event);
        let words =
            [&["restore", "--detach", "--image-path", path(&image)][..], &told.words(&[&plugin]), &["ID"]];
        killed(&job, &gate, &words.concat());
        cleared(&job.container);
        settle(job.container.id());
        job.container.no_trace();
        fs::remove_dir_all(&gate.0).unwrap();
    }
    told.restore(&job, &image, &[]);
    end(&job);
}

/// The supervisor: the parent of the plugins.
fn supervisor(job: &Job, told: &Told) -> Pid {
    let plugin = told.list(&job.container)["plugins"][0]["pid"].as_i64().unwrap();
    let stat = fs::read_to_string(format!("/proc/{plugin}/stat")).unwrap();
    Pid::from_raw(stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap())
}

#[test]
fn a_supervisor_that_was_killed_is_replaced_by_the_next_verb() {
    let job = Job::new("link", "device");
    let told = Told::of(&job.container);
    let emulator = Emulator::at_work();
    told.start(&job, &[&format!("a:device={},text=wave", emulator.device.display()), "b"]);
    let (first, supervisor) = (told.list(&job.container), supervisor(&job, &told));
    let ends: Vec<_> = first["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|plugin| pidfd(i32::try_from(plugin["pid"].as_i64().unwrap()).unwrap()))
        .collect();
    told.heard();
    let end_of_it = pidfd(supervisor.as_raw());
    kill(supervisor, Signal::SIGKILL).unwrap();
    await_end(end_of_it);
    // Its plugins see the end of their sockets, and leave the link as it is.
    ends.into_iter().for_each(await_end);
    let heard = told.heard();
    assert!(heard.iter().all(|line| line.ends_with(" end")), "{heard:?}");
    job.is_well();
    let list = told.list(&job.container);
    assert_eq!(list["supervisor"], "gone");
    assert!(list["plugins"][0]["state"].as_str().unwrap().starts_with("gone"), "{list:#}");

    let image = job.image("image");
    let said =
        job.container.ckrun(&["checkpoint", "--leave-running", "--image-path", path(&image), "ID"]).exits(0);
    assert!(said.stderr.contains("supervisor"), "{said:?}");
    let heard = told.heard();
    let recover = format!("a recover {}", emulator.device.display());
    assert_eq!(heard[..5], ["a hello", "b hello", &recover, "b recover", "a presuspend"]);
    job.is_well();
    assert_eq!(told.list(&job.container)["supervisor"], "running");
    end(&job);
    assert!(emulator.end() > 0);
}

/// It is killed by a plugin, in the middle of an event.
#[test]
fn a_checkpoint_whose_supervisor_is_killed_leaves_the_job_as_it_was() {
    for event in ["presuspend", "precheckpoint"] {
        let job = Job::new("registers", "general");
        let told = Told::of(&job.container);
        told.start(&job, &["a", &format!("b:how=orphan,on={event}")]);
        let image = job.image("image");
        let said = job.container.ckrun(&["checkpoint", "--image-path", path(&image), "ID"]).exits(1);
        assert!(said.stderr.contains("supervisor of the job's plugins"), "{said:?}");
        job.is_unharmed(&image);
        end(&job);
    }
}
