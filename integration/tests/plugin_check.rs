//! `ckrun plugin check`: plugins that keep to the protocol pass, and of the others it says what they do wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::run::{Ended, binary, finish, install_text, needs};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A copy of a plugin under a path of the test's own, by which its processes are found.
struct Tried {
    dir: tempfile::TempDir,
    program: PathBuf,
}

impl Tried {
    fn of(guest: &str) -> Tried {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(guest);
        Tried::script(guest, &fs::read_to_string(source).unwrap())
    }

    fn script(name: &str, text: &str) -> Tried {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(name);
        install_text(text, &program);
        assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
        Tried { dir, program }
    }

    /// Runs the check with options for the plugin.
    fn check(&self, options: &str, words: &[&str]) -> Ended {
        let mut command = Command::new(binary());
        let plugin = format!("{}:{options}", self.program.display());
        command.args(["plugin", "check"]).args(words).arg(plugin).env("TMPDIR", self.dir.path());
        let ended = finish(command);
        let path = self.dir.path().to_str().unwrap();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let said = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let said = String::from_utf8_lossy(&said).into_owned();
            assert!(!said.contains(path), "a process is left: {said}");
        }
        let left: Vec<_> = fs::read_dir(self.dir.path()).unwrap().flatten().map(|e| e.path()).collect();
        assert_eq!(left, std::slice::from_ref(&self.program), "the check has left files");
        ended
    }

    /// The steps, and those of them that are wrong: what they say.
    fn steps(&self, options: &str, words: &[&str]) -> (Vec<Value>, Vec<String>) {
        let ended = self.check(options, &[&["--json"], words].concat());
        let all: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
        let steps = all["steps"].as_array().unwrap().clone();
        let wrong: Vec<String> = steps
            .iter()
            .filter(|step| step["verdict"] == "wrong")
            .map(|step| step["said"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(all["ok"], wrong.is_empty());
        assert_eq!(ended.code, i32::from(!wrong.is_empty()));
        (steps, wrong)
    }
}

/// Makes the plugin break a rule at an event: the first complaint names plugin, event and reason.
fn complains(how: &str, at: &str, why: &str) {
    needs("python3", "python3");
    let tried = Tried::of("plugin_wrong.py");
    let (_, wrong) = tried.steps(&format!("how={how},at={at}"), &[]);
    let said = wrong.first().unwrap_or_else(|| panic!("{how} at {at} was not noticed"));
    assert!(said.starts_with("plugin plugin_wrong.py: "), "{how} at {at}: {said}");
    assert!(said.contains(why), "{how} at {at}: {said}");
}

/// The same with the event and the seconds.
fn fails(how: &str, at: &str, why: &str) {
    complains(how, at, &format!("plugin plugin_wrong.py: {at}: {why}"));
    complains(how, at, " (after ");
}

/// All events that every plugin hears of in the check, but hello.
const EVENTS: [&str; 9] =
    ["init", "running", "presuspend", "precheckpoint", "committed", "resume", "exit", "check", "restart"];

#[test]
fn a_plugin_in_perl_passes() {
    needs("perl", "perl");
    let tried = Tried::of("plugin.pl");
    let said = tried.check("", &[]).ok();
    assert!(said.ends_with("plugin plugin.pl keeps to the protocol"), "{said}");
    assert!(said.contains("mismatch: the saved state is not whole"), "{said}");
}

#[test]
fn the_example_of_the_crate_passes() {
    // `cargo test --workspace` builds it; alone it is `cargo build -p ckrun-plugin --example echo`.
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let echo = deps.with_file_name("examples").join("echo");
    assert!(
        echo.exists(),
        "{} is missing: `cargo build -p ckrun-plugin --example echo` makes it",
        echo.display()
    );
    let mut command = Command::new(binary());
    command.args(["plugin", "check"]).arg(echo);
    let said = finish(command).ok();
    assert!(said.ends_with("plugin echo keeps to the protocol"), "{said}");
}

#[test]
fn every_event_is_tried() {
    needs("python3", "python3");
    let (steps, wrong) = Tried::of("plugin_wrong.py").steps("", &[]);
    assert_eq!(wrong, [""; 0]);
    for event in ["hello"].iter().chain(&EVENTS) {
        let tried = steps.iter().any(|step| step["step"].as_str().unwrap().starts_with(event));
        assert!(tried, "{event} is not tried");
    }
    assert_eq!(steps.last().unwrap()["step"], "the end at the end of file");
    assert!(steps.iter().all(|step| step["verdict"] == "ok"));
}

#[test]
fn a_plugin_that_hangs() {
    for event in EVENTS {
        fails("hang", event, "it did not answer within its deadline of 0.2 s");
    }
}

#[test]
fn a_plugin_that_never_says_hello() {
    let tried = Tried::script("mute.sh", "#!/bin/sh\nexec sleep 1000\n");
    let (_, wrong) = tried.steps("", &["--deadline", "0.25"]);
    assert_eq!(wrong.len(), 1);
    assert!(
        wrong[0]
            .starts_with("plugin mute.sh: hello: it did not answer within its deadline of 0.25 s (after ")
    );
}

#[test]
fn a_plugin_that_crashes() {
    for event in EVENTS {
        fails("crash", event, "it ended (exit status 3) (after ");
    }
    fails("segv", "presuspend", "it ended (killed by SIGSEGV)");
    fails("close", "presuspend", "it closed the socket");
}

#[test]
fn a_plugin_that_lies() {
    for event in EVENTS {
        fails("lie", event, "it answered request 4711, which was never made");
    }
}

#[test]
fn a_plugin_that_answers_twice() {
    // After exit nobody listens any more.
    for event in EVENTS.into_iter().filter(|event| *event != "exit") {
        complains("twice", event, &format!("({event}) a second time"));
    }
}

#[test]
fn a_plugin_that_floods() {
    fails("flood", "presuspend", "it did not answer within its deadline of 0.2 s");
    fails("flood", "restart", "it did not answer within its deadline of 0.2 s");
}

#[test]
fn a_plugin_that_sends_what_is_no_message() {
    for event in EVENTS {
        fails("junk", event, "it sent a line that is no JSON: expected value");
        fails("long", event, "it sent a line of more than 1048576 bytes");
    }
    fails("list", "init", "it sent a line that has a result that is no object");
}

#[test]
fn a_plugin_that_sends_other_descriptors_than_it_says() {
    for event in EVENTS {
        fails("unannounced", event, "it sent descriptors that it had not announced by \"fds\": 1");
        fails("miscounted", event, "it announced 2 descriptors by \"fds\" and sent 1");
    }
    for event in ["init", "restart", "resume"] {
        fails(
            "no-such-fd",
            event,
            "its answer: /dev/emu0: \"fd\": 3 is none of the 0 descriptors of the message",
        );
    }
}

#[test]
fn a_plugin_that_binds_wrongly() {
    complains("nothing-there", "init", "binds /dev/emu0 to /dev/no-such-emulator: No such file or directory");
    complains(
        "unconnected",
        "init",
        "behind the descriptor of tcp:emu:4000: transport endpoint is not connected",
    );
    complains("handle", "init", "handle of s: a result comes out");
    fails("relative", "init", "its answer: \"emu0\" is not an absolute path");
    fails("forget", "restart", "its answer: /dev/emu0 was bound at the checkpoint and is not any more");
}

#[test]
fn a_plugin_that_does_not_want() {
    fails("veto", "presuspend", "veto: a transfer is under way");
    fails("future", "hello", "its answer: it speaks protocol \"2.0\", ckrun speaks 1.0");
}

#[test]
fn a_plugin_that_saves_what_is_no_file() {
    complains("link", "precheckpoint", "precheckpoint: its folder: ");
}

#[test]
fn a_plugin_that_does_not_end() {
    fails("stay", "exit", "it had not ended within 2 s, although its socket was closed");
    let tried = Tried::of("plugin_wrong.py");
    let (steps, wrong) = tried.steps("how=deaf", &[]);
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0].contains("it had not ended within 2 s, although its socket was closed"), "{wrong:?}");
    assert_eq!(steps.last().unwrap()["verdict"], "wrong");
}

#[test]
fn a_plugin_that_is_not_ready_for_later_versions() {
    complains("agree", "x-ckrun-check", "x-ckrun-check, an unknown event: it answered with a result");
    complains("strict", "presuspend", "unknown members are to be ignored");
}

#[test]
fn a_plugin_that_is_not_there() {
    let mut command = Command::new(binary());
    command.args(["plugin", "check", "/no/such/plugin"]);
    finish(command).fails(1, &["start plugin plugin (/no/such/plugin): no such file or directory"]);
    let mut command = Command::new(binary());
    command.args(["plugin", "check", "no-such-manifest"]);
    finish(command).fails(1, &["/etc/ckrun/plugins.d/no-such-manifest.json: no such file or directory"]);
}
