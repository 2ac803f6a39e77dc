//! kill -9 of ckrun and of the supervisor of a job's plugins, in the middle of any event.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::emulator::Emulator;
use ckrun_integration::job::{Job, cleared, path};
use ckrun_integration::leftovers::settle;
use ckrun_integration::pipes::{await_end, pidfd};
use ckrun_integration::supervisor::{keeper, kill_both, kill_supervisor, killed, supervisor, taken_over};
use ckrun_integration::told::{self, Told};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Stdio;

/// FIFOs by which a plugin waits in the middle of an event.
struct Gate(PathBuf);

impl Gate {
    fn new(job: &Job) -> Gate {
        let dir = job.container.file("gate");
        fs::create_dir(&dir).unwrap();
        for name in ["here", "go", "said"] {
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
fn cut_short(job: &Job, gate: &Gate, words: &[&str]) {
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
        cut_short(&job, &gate, &["checkpoint", "--leave-running", "--image-path", path(&image), "ID"]);
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
        cut_short(&job, &gate, &[&["run", "--detach"][..], &told.words(&["a", &plugin]), &["ID"]].concat());
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
        cut_short(&job, &gate, &words.concat());
        cleared(&job.container);
        settle(job.container.id());
        job.container.no_trace();
        fs::remove_dir_all(&gate.0).unwrap();
    }
    told.restore(&job, &image, &[]);
    end(&job);
}

fn plugins(job: &Job, told: &Told) -> Vec<i32> {
    let list = told.list(&job.container);
    let pid = |plugin: &serde_json::Value| i32::try_from(plugin["pid"].as_i64().unwrap()).unwrap();
    list["plugins"].as_array().unwrap().iter().map(pid).collect()
}

#[test]
fn a_supervisor_that_was_killed_is_replaced_at_once() {
    let job = Job::new("link", "device");
    let told = Told::of(&job.container);
    let emulator = Emulator::at_work();
    told.start(&job, &[&format!("a:device={},text=wave", emulator.device.display()), "b"]);
    told.heard();
    for times in 1..3 {
        let ends: Vec<_> = plugins(&job, &told).into_iter().map(pidfd).collect();
        kill_supervisor(&job.container);
        // Its plugins see the end of their sockets, and leave the link as it is.
        ends.into_iter().for_each(await_end);
        // It waits until the other has taken over, and says what has happened.
        let said = job.container.ckrun(&["plugin", "restart", "ID"]).exits(0);
        assert!(said.stderr.contains("was killed, and another one has taken over"), "{said:?}");
        let heard: Vec<_> = told.heard().into_iter().filter(|line| !line.ends_with(" end")).collect();
        let recover = format!("a recover {}", emulator.device.display());
        assert_eq!(heard, ["a hello", "b hello", &recover, "b recover"]);
        job.is_well();
        let list = told.list(&job.container);
        assert_eq!((&list["supervisor"], &list["killed"]), (&json!("running"), &json!(times)));
        assert!(list["plugins"][0]["state"].as_str().unwrap().contains("killed"), "{list:#}");
    }
    let said = job.container.ckrun(&["plugin", "restart", "ID"]).exits(0);
    assert_eq!(said.stderr, "", "it was said twice");
    job.leave_running(&job.image("image"));
    assert_eq!(told.heard()[0], "a presuspend");
    job.is_well();
    end(&job);
    assert!(emulator.end() > 0);
}

#[test]
fn no_call_fails_however_often_the_supervisor_is_killed() {
    let job = Job::new("answered", "connections");
    let real = job.container.file("real.sock");
    let listener = UnixListener::bind(&real).unwrap();
    std::thread::spawn(move || while listener.accept().is_ok() {});
    job.start_with(&["--map", &format!("unix:/run/emu.sock={}", real.display())]);
    for times in 1..=30 {
        kill_supervisor(&job.container);
        job.is_well();
        taken_over(&job.container, times);
    }
    job.container.ckrun(&["plugin", "restart", "ID"]).exits(0);
    assert_eq!(told::list(&job.container)["killed"], 30);
    end(&job);
}

#[test]
fn a_job_that_ends_while_its_supervisor_is_dead_is_let_go_of() {
    let job = Job::new("registers", "general");
    let told = Told::of(&job.container);
    told.start(&job, &["a"]);
    let (keeper, supervisor) = (keeper(&job.container), supervisor(&job.container));
    let (gone, job_end) = (pidfd(keeper), pidfd(job.container.pid()));
    // Nobody waits for the supervisor's end while the keeper is stopped.
    kill(Pid::from_raw(keeper), Signal::SIGSTOP).unwrap();
    killed(supervisor);
    kill(Pid::from_raw(job.container.pid()), Signal::SIGKILL).unwrap();
    await_end(job_end);
    kill(Pid::from_raw(keeper), Signal::SIGCONT).unwrap();
    await_end(gone);
    let heard = told.heard();
    assert_eq!(heard[heard.len() - 3..], ["a recover", "a exit ended", "a end"], "{heard:?}");
    end(&job);
}

#[test]
fn a_supervisor_goes_on_without_its_keeper() {
    let job = Job::new("registers", "general");
    let told = Told::of(&job.container);
    told.start(&job, &["a"]);
    told.heard();
    killed(keeper(&job.container));
    job.leave_running(&job.image("image"));
    let heard = told.heard();
    assert_eq!(heard[0], "a presuspend", "{heard:?}");
    job.is_well();
    end(&job);
}

#[test]
fn a_supervisor_that_was_killed_with_its_keeper_is_replaced_by_the_next_verb() {
    let job = Job::new("link", "device");
    let told = Told::of(&job.container);
    let emulator = Emulator::at_work();
    told.start(&job, &[&format!("a:device={},text=wave", emulator.device.display()), "b"]);
    told.heard();
    let ends: Vec<_> = plugins(&job, &told).into_iter().map(pidfd).collect();
    kill_both(&job.container);
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
    // From now on it has a keeper again.
    kill_supervisor(&job.container);
    job.container.ckrun(&["plugin", "restart", "ID"]).exits(0);
    end(&job);
    assert!(emulator.end() > 0);
}

#[test]
fn a_plugin_that_was_killed_alone_is_started_again() {
    let job = Job::new("registers", "general");
    let told = Told::of(&job.container);
    told.start(&job, &["a", "b"]);
    killed(plugins(&job, &told)[1]);
    told.heard();
    let said = job.container.ckrun(&["plugin", "restart", "ID"]).exits(0);
    let why = "plugin b had gone: it ended (killed by SIGKILL); it was started again";
    assert!(said.stderr.contains(why), "{said:?}");
    job.leave_running(&job.image("image"));
    let heard = told.heard();
    assert_eq!(heard[..4], ["b hello", "b recover", "a presuspend", "b presuspend"], "{heard:?}");
    assert_eq!(told.list(&job.container)["plugins"][1]["state"], "attached");
    job.is_well();
    end(&job);
}

#[test]
fn a_plugin_that_can_not_take_over_is_done_without() {
    let job = Job::new("registers", "general");
    let told = Told::of(&job.container);
    told.start(&job, &["a", "b:how=veto,on=recover"]);
    killed(plugins(&job, &told)[1]);
    let why = ["plugin b: recover: veto: a bad moment"];
    job.container.ckrun(&["plugin", "restart", "ID"]).fails(1, &why);
    let state = told.list(&job.container)["plugins"][1]["state"].as_str().unwrap().to_owned();
    assert_eq!(state, "failed: recover: veto: a bad moment");
    told.heard();
    let image = job.image("image");
    let words = ["checkpoint", "--image-path", path(&image), "ID"];
    let said = job.container.ckrun(&words).exits(1);
    assert!(said.stderr.contains("plugin b: presuspend: it has gone: recover: veto"), "{said:?}");
    job.is_unharmed(&image);
    end(&job);
}

#[test]
fn a_verb_that_is_stopped_holds_nobody_up() {
    let job = Job::new("registers", "general");
    let told = Told::of(&job.container);
    let gate = Gate::new(&job);
    // It waits, and then asks for what only the verb can say.
    told.start(&job, &["a", &format!("b:how=ask-late,on=precheckpoint,gate={}", gate.0.display())]);
    let image = job.image("image");
    let mut command = job.container.command(&["checkpoint", "--image-path", path(&image), "ID"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut ckrun = command.spawn().unwrap();
    gate.reached();
    let verb = Pid::from_raw(ckrun.id().cast_signed());
    kill(verb, Signal::SIGSTOP).unwrap();
    gate.open();
    // The plugin goes on, and so does the supervisor.
    let said = fs::read_to_string(gate.0.join("said")).unwrap();
    assert!(said.contains("has not answered within 10 s"), "{said:?}");
    let list = told.list(&job.container);
    assert_eq!(list["supervisor"], "running");
    kill(verb, Signal::SIGCONT).unwrap();
    assert!(ckrun.wait().unwrap().success());
    job.container.no_trace();
}

/// It is killed by a plugin, in the middle of an event.
#[test]
fn a_checkpoint_whose_supervisor_is_killed_leaves_the_job_as_it_was() {
    for event in ["presuspend", "precheckpoint", "committed"] {
        let job = Job::new("registers", "general");
        let told = Told::of(&job.container);
        told.start(&job, &["a", &format!("b:how=orphan,on={event}")]);
        let image = job.image("image");
        let said = job.container.ckrun(&["checkpoint", "--image-path", path(&image), "ID"]).exits(1);
        assert!(said.stderr.contains("supervisor of the job's plugins"), "{said:?}");
        if event == "committed" {
            // It was complete before; it is the job's, which goes on.
            assert!(image.join("manifest.json").exists());
            job.is_well();
        } else {
            job.is_unharmed(&image);
        }
        let again = job.container.ckrun(&["plugin", "restart", "ID"]).exits(0);
        assert!(again.stderr.contains("another one has taken over"), "{again:?}");
        end(&job);
    }
}

#[test]
fn the_end_of_a_job_is_told_by_the_next_supervisor_if_the_first_is_killed_then() {
    let job = Job::new("registers", "general");
    let told = Told::of(&job.container);
    let gate = Gate::new(&job);
    told.start(&job, &[&gate.plugin("b", "exit"), "a"]);
    let gone = pidfd(keeper(&job.container));
    kill(Pid::from_raw(job.container.pid()), Signal::SIGKILL).unwrap();
    gate.reached();
    told.heard();
    kill_supervisor(&job.container);
    await_end(gone);
    let heard = told.heard();
    for word in ["b recover", "a recover", "b exit ended", "a exit ended"] {
        assert!(heard.iter().any(|line| line == word), "{word}: {heard:?}");
    }
    end(&job);
}
