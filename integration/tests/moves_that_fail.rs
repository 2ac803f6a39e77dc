//! A job and its slot of an emulator can't move: the other host has no such design, no slot, a server that dies, half a file.
//! Each time the reason is named, and the job goes on, or can be had elsewhere, as if nothing had happened.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::hosts::{Host, SMALL, Site};
use ckrun_integration::run::{Ended, install};
use ckrun_integration::supervisor::killed;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Barrier};

const TRANSACTIONS: u64 = 20_000;
const LINK: &str = "dev:/dev/emu0";
const EMU: &str = "emu:link=device";

/// Two hosts; B has a server of one slot and of another or the same design.
fn hosts(site: &Site, design: &[&str]) -> (Host, Host) {
    let (mut a, mut b) = (site.host("a"), site.host("b"));
    a.serve("emu-a", 1, &SMALL);
    b.serve("emu-b", 1, design);
    for host in [&a, &b] {
        host.bundle("tb", LINK, TRANSACTIONS);
    }
    (a, b)
}

/// The outcome of a job that nobody disturbs; another one runs then, and has done a part of its work.
fn started(a: &Host) -> String {
    a.start(EMU);
    let expected = a.outcome();
    assert!(expected.contains("\nexit 0\n"), "{expected}");
    a.start(EMU);
    a.reaches(1000);
    expected
}

/// The job's image at /mnt/image, and its outcome if nobody had disturbed it.
fn saved(a: &Host) -> String {
    let expected = started(a);
    a.ckrun(&["checkpoint", "--image-path", "/mnt/image", "ID"]).ok();
    expected
}

const RESTORE: [&str; 6] = ["restore", "--detach", "--image-path", "/mnt/image", "--bundle", "/srv/tb"];

fn restores(host: &Host, more: &[&str]) -> Ended {
    host.quietly(&[&RESTORE[..], more, &["ID"]].concat())
}

/// What stands between a plugin and the server at /run/NAME: `look` sees each request before the server does, and says whether
/// that is to see it.
fn between(host: &Host, name: &str, look: impl Fn(&str) -> bool + Send + Sync + 'static) {
    let (listener, there) =
        (socket(&host.path("/run/between")), host.path("/run").join(name).join("control"));
    host.emulator("/run/between");
    let look = Arc::new(look);
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (look, there) = (Arc::clone(&look), there.clone());
            std::thread::spawn(move || {
                let mut server = UnixStream::connect(there)?;
                let mut answers = BufReader::new(server.try_clone()?);
                for line in BufReader::new(client.try_clone()?).lines() {
                    let line = line?;
                    if !look(&line) {
                        break;
                    }
                    writeln!(server, "{line}")?;
                    let mut answer = String::new();
                    answers.read_line(&mut answer)?;
                    (&client).write_all(answer.as_bytes())?;
                }
                client.shutdown(std::net::Shutdown::Both)
            });
        }
    });
}

/// Listens at a path that is longer than an address may be.
fn socket(path: &Path) -> UnixListener {
    let short = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(path.parent().unwrap(), short.path().join("s")).unwrap();
    UnixListener::bind(short.path().join("s").join(path.file_name().unwrap())).unwrap()
}

fn operation(line: &str) -> String {
    serde_json::from_str::<Value>(line).unwrap()["op"].as_str().unwrap().to_owned()
}

#[test]
fn another_build_of_the_design() {
    let site = Site::new();
    let (a, mut b) = hosts(&site, &["--ram", "2048", "--fifo", "64", "--boot", "100000"]);
    let expected = started(&a);
    // Nothing of the job may be made there: a ckrun that had come to the sandbox would have been killed.
    let ckrun = "env CKRUN_FAULT=restore:sandbox ckrun";
    let refused = a.moves(&b, &["--ckrun", ckrun, "ID"]);
    refused.fails(
        1,
        &["plugin emu: check: mismatch: the job was saved with design ", "2048 words", "goes on here"],
    );
    b.is_empty();
    assert!(b.control("emu-b", &["list"])["slots"][0]["owner"].is_null());
    // A second try, where it fits.
    b.serve("emu-c", 1, &SMALL);
    a.moves(&b, &["ID"]).exits(0);
    assert_eq!(b.outcome(), expected);
}

/// The plugin's process, and the supervisor, whose child it is.
fn beside(host: &Host) -> (i32, i32) {
    let list: Value = serde_json::from_str(&host.ckrun(&["plugin", "list", "--json", "ID"]).ok()).unwrap();
    let plugin = i32::try_from(list["plugins"][0]["pid"].as_i64().unwrap()).unwrap();
    let stat = fs::read_to_string(format!("/proc/{plugin}/stat")).unwrap();
    let parent = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap();
    (plugin, parent.parse().unwrap())
}

#[test]
fn the_processes_beside_a_job_are_killed_before_it_moves() {
    let site = Site::new();
    let (a, b) = hosts(&site, &SMALL);
    let expected = started(&a);
    killed(beside(&a).0);
    a.ckrun(&["plugin", "restart", "ID"]).exits(0);
    killed(beside(&a).1);
    a.ckrun(&["plugin", "restart", "ID"]).exits(0);
    killed(beside(&a).0);
    a.moves(&b, &["ID"]).exits(0);
    killed(beside(&b).1);
    assert_eq!(b.outcome(), expected);
}

#[test]
fn the_only_slot_is_taken() {
    let site = Site::new();
    let (a, mut b) = hosts(&site, &SMALL);
    b.control("emu-b", &["--owner", "tb7@b", "claim"]);
    let expected = started(&a);
    a.moves(&b, &["ID"]).fails(
        1,
        &[
            "plugin emu: check: unavailable: no slot is free: slot 0 of /run/emu-b/control is taken by tb7@b",
            "goes on here",
        ],
    );
    b.is_empty();
    b.serve("emu-c", 1, &SMALL);
    a.moves(&b, &["ID"]).exits(0);
    assert_eq!(b.outcome(), expected);
}

#[test]
fn the_server_dies_while_it_loads() {
    let site = Site::new();
    let (a, mut b) = hosts(&site, &SMALL);
    let expected = saved(&a);
    let server = rustix::process::Pid::from_raw(b.server()).unwrap();
    between(&b, "emu-b", move |line| {
        let loads = operation(line) == "load";
        if loads {
            rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
        }
        !loads
    });
    restores(&b, &[]).fails(1, &["plugin emu: restart: unavailable: "]);
    b.is_empty();
    b.kill_server();
    // A second try, elsewhere.
    a.ckrun(&["list", "--quiet"]).ok();
    restores(&a, &[]).ok();
    assert_eq!(a.outcome(), expected);
    b.serve("emu-c", 1, &SMALL);
    restores(&b, &[]).ok();
    assert_eq!(b.outcome(), expected);
}

#[test]
fn the_state_file_is_truncated_or_missing() {
    let site = Site::new();
    let (a, b) = hosts(&site, &SMALL);
    let expected = saved(&a);
    let state = site.shared("image/plugins/emu/slot.state");
    let whole = fs::read(&state).unwrap();
    fs::write(&state, &whole[..whole.len() / 2]).unwrap();
    restores(&b, &[]).fails(1, &["slot.state"]);
    b.is_empty();
    fs::remove_file(&state).unwrap();
    restores(&b, &[]).fails(1, &["slot.state"]);
    b.is_empty();
    fs::write(&state, &whole).unwrap();
    restores(&b, &[]).ok();
    assert_eq!(b.outcome(), expected);
}

/// ckrun on A is killed when the emulator has saved its state and the image is not complete: there is none, and the job, which
/// nobody has ended, goes on with its slot when the next verb comes. When A itself goes, all that is left is what was there
/// before: the last image that is complete.
#[test]
fn a_dies_between_save_and_commit() {
    let site = Site::new();
    let (a, b) = hosts(&site, &SMALL);
    let saves = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&saves);
    between(&a, "emu-a", move |line| {
        count.fetch_add(u32::from(operation(line) == "save"), Relaxed);
        true
    });
    let expected = started(&a);
    a.ckrun(&["checkpoint", "--leave-running", "--image-path", "/mnt/image", "ID"]).ok();
    a.reaches(2000);
    let before = saves.load(Relaxed);
    let killed = a.run(&[
        "env",
        "CKRUN_FAULT=checkpoint:commit",
        "ckrun",
        "checkpoint",
        "--image-path",
        "/mnt/torn",
        &site.id,
    ]);
    assert_ne!(killed.code, 0, "{killed:?}");
    assert!(saves.load(Relaxed) > before, "the emulator had saved its state");
    assert!(!site.shared("torn").exists());
    b.quietly(&["restore", "--detach", "--image-path", "/mnt/torn", "--bundle", "/srv/tb", "ID"])
        .fails(1, &["/mnt/torn"]);
    b.is_empty();
    // The job stands still no more, and its slot neither.
    a.ckrun(&["plugin", "list", "ID"]).ok();
    a.reaches(4000);
    a.die();
    restores(&b, &[]).ok();
    assert_eq!(b.outcome(), expected);
    b.is_empty();
}

/// Both find a free slot when they look, and both want it.
#[test]
fn two_restarts_at_once_ask_for_one_slot() {
    let site = Site::new();
    let (a, b) = hosts(&site, &SMALL);
    let expected = saved(&a);
    b.bundle("other", LINK, TRANSACTIONS);
    let both = Arc::new(Barrier::new(2));
    between(&b, "emu-b", move |line| {
        if operation(line) == "claim" {
            both.wait();
        }
        true
    });
    let other = ["restore", "--detach", "--image-path", "/mnt/image", "--bundle", "/srv/other", "other"];
    let ended = std::thread::scope(|scope| {
        let one = scope.spawn(|| restores(&b, &[]));
        let other = scope.spawn(|| b.quietly(&other));
        [one.join().unwrap(), other.join().unwrap()]
    });
    let [won, lost] = if ended[0].code == 0 { [0, 1] } else { [1, 0] };
    ended[won].clone().ok();
    ended[lost].clone().fails(1, &["plugin emu: restart: unavailable: ", "taken"]);
    let list = b.ckrun(&["list", "--quiet"]).ok();
    assert_eq!(list, [site.id.as_str(), "other"][won]);
    assert_eq!(b.outcome_of(&list, ["tb", "other"][won]), expected);
    // And then the other one, which is the same job.
    b.emulator("/run/emu-b");
    restores(&b, &[]).ok();
    assert_eq!(b.outcome(), expected);
}

#[test]
fn a_plugin_that_says_no() {
    let site = Site::new();
    let (a, b) = hosts(&site, &SMALL);
    let expected = started(&a);
    a.ckrun(&["delete", "--force", "ID"]).ok();
    let told = site.shared("told.py");
    install(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/guests/plugin_told.py")), &told);
    for event in ["presuspend", "precheckpoint"] {
        let told = format!("/mnt/told.py:how=veto,on={event}");
        a.quietly(&["run", "--detach", "--bundle", "/srv/tb", "--plugin", EMU, "--plugin", &told, "ID"]).ok();
        a.reaches(1000);
        let refused = a.moves(&b, &["ID"]);
        refused.fails(1, &[&format!("plugin told.py: {event}: veto: a bad moment"), "goes on here"]);
        b.is_empty();
        assert_eq!(a.outcome(), expected);
    }
}

/// One image, and as many restarts as a campaign has faults.
#[test]
fn faults_are_chosen_at_the_restart() {
    let site = Site::new();
    let (a, b) = hosts(&site, &SMALL);
    let expected = saved(&a);
    let undisturbed: Vec<&str> = expected.split_whitespace().collect();
    // Where the next word of the input FIFO will be put: nobody reads what is there now.
    let state = fs::read(site.shared("image/plugins/emu/slot.state")).unwrap();
    let word = |at: usize| u32::from_le_bytes(state[at..at + 4].try_into().unwrap());
    let (first, count) = (word(184), word(188));
    assert!(count < 64, "the FIFO is full");
    let free = format!("in:{}:0", (first + count) % 64);
    for (element, outcome) in [
        (free.as_str(), "masked"),
        // Neither testbench nor accelerator uses the last word of the RAM.
        ("ram:1023:31", "silent"),
        ("shadow:3", "detected"),
    ] {
        let fault = format!("fault:emulator={element}");
        restores(&b, &["--plugin", &fault, "--plugin", "emu"]).ok();
        let ended = b.outcome();
        let words: Vec<&str> = ended.split_whitespace().collect();
        match outcome {
            "masked" => assert_eq!(ended, expected),
            "silent" => {
                assert!(ended.contains("\nexit 0\n"), "{ended}");
                assert_eq!(words[..4], undisturbed[..4], "{ended}");
                assert_ne!(words[5], undisturbed[5], "{ended}");
            }
            _ => assert!(ended.contains("has detected a fault") && ended.contains("\nexit 2\n"), "{ended}"),
        }
        b.is_empty();
    }
}
