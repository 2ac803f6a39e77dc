//! The plugin with real machines, and a job that the test plays: it stands still because it is the test's thread.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

mod common;

use ckrun_plugin::occasion::{Exit, Occasion, Recover};
use ckrun_plugin::rehearsal::{Rehearsal, saved};
use ckrun_plugin::{After, Binding, Code, Reason};
use common::{Job, Lines, guest, plugin};
use std::fs;
use std::process::Command;

/// Lines in all.
const LINES: u64 = 400;

/// What the guest answers to a job that is never moved.
fn undisturbed() -> String {
    let mut job = Job::new(&[]);
    let mut lines = Lines::new(7);
    for _ in 0..LINES {
        job.send(&lines.next());
    }
    job.finish(&lines)
}

/// The job sends ahead, a line at most in part, and reads seldom: at any moment something is on the line.
fn moved(link: (&str, &str), moves: u32, forth: impl Fn(&mut Job)) {
    let mut job = Job::new(&[link]);
    let mut lines = Lines::new(7);
    let mut random = std::process::id();
    for n in 0..moves {
        let (from, to) =
            (u64::from(n) * LINES / u64::from(moves), (u64::from(n) + 1) * LINES / u64::from(moves));
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let at = from + u64::from(random >> 8) % (to - from);
        for number in from..to {
            let line = lines.next();
            let (first, rest) = line.split_at(if number == at { line.len() / 2 } else { 0 });
            job.send(first);
            if number == at {
                forth(&mut job);
            }
            job.send(rest);
            if number % 23 == 0 {
                job.read_some();
            }
        }
    }
    let said = job.finish(&lines);
    assert_eq!(said, undisturbed(), "random number {random}");
}

#[test]
fn moves_over_a_device_change_nothing() {
    moved(("device", "/dev/emu3"), 4, Job::migrate);
}

#[test]
fn moves_over_a_socket_change_nothing() {
    moved(("link", "socket"), 4, Job::migrate);
}

#[test]
fn a_checkpoint_that_the_job_survives_changes_nothing() {
    for link in [("link", "device"), ("socket", "unix:/run/uart")] {
        moved(link, 3, |job| {
            for after in [After::Checkpoint, After::Failure] {
                job.save();
                assert_eq!(job.plugin.resume(after).unwrap(), []);
                job.plugin.running(after).unwrap();
            }
        });
    }
}

#[test]
fn what_the_job_has_not_read_is_saved_with_a_device_and_a_veto_with_a_socket() {
    for link in ["device", "socket"] {
        let mut job = Job::new(&[("link", link), ("patience", "0")]);
        let mut lines = Lines::new(1);
        job.send(&lines.next());
        job.await_reply();
        let presuspend = job.plugin.ask(Occasion::Presuspend);
        if link == "socket" {
            let fault = presuspend.unwrap_err();
            assert_eq!(fault.kind(), Some(Code::Veto));
            assert!(fault.message.contains("the job has not read all that the guest has sent"), "{fault}");
            job.plugin.resume(After::Failure).unwrap();
            job.plugin.running(After::Failure).unwrap();
        } else {
            presuspend.unwrap();
            job.migrate();
        }
        job.finish(&lines);
    }
}

#[test]
fn another_machine_or_guest_is_refused_before_there_is_one() {
    let mut job = Job::new(&[("memory", "24"), ("add", "virtio-rng-pci")]);
    let (folder, requirements) = job.save();
    let good = saved(&folder, &requirements, &job.bindings);
    let other = job.folder.path().join("other");
    fs::write(&other, [fs::read(guest()).unwrap(), b"x".to_vec()].concat()).unwrap();
    let other = other.display().to_string();
    let (memory, add) = (("memory", "24"), ("add", "virtio-rng-pci"));
    for (options, code, why) in [
        (
            vec![memory],
            Code::Mismatch,
            "devices: the image needs [\"isa-serial,chardev=link\",\"virtio-rng-pci\"]",
        ),
        (vec![add], Code::Mismatch, "memory: the image needs 24, and here is 32"),
        (
            vec![memory, add, ("machine", "pc-q35-7.2")],
            Code::Mismatch,
            "machine: the image needs \"pc-i440fx-7.2\"",
        ),
        (vec![memory, add, ("image", &other)], Code::Mismatch, "guest: the image needs \"xxh3:"),
        (
            vec![memory, add, ("device", "/dev/emu7")],
            Code::Mismatch,
            "as /dev/emu0, and the options give it /dev/emu7",
        ),
        (vec![memory, add, ("image", "/not/there")], Code::Unavailable, "the guest /not/there: No such file"),
        (
            vec![memory, add, ("qemu", "/not/there")],
            Code::Unavailable,
            "/not/there (Debian: qemu-system-x86)",
        ),
    ] {
        let machines = job.machines();
        let mut there = plugin(job.folder.path(), &options).unwrap();
        for event in [Occasion::Check(good.clone()), Occasion::Restart(good.clone())] {
            let fault = there.ask(event).unwrap_err();
            assert_eq!(fault.kind(), Some(code), "{fault}");
            assert!(fault.message.contains(why), "{fault}");
        }
        assert_eq!(job.machines(), machines);
    }
    let mut there = plugin(job.folder.path(), &[memory, add]).unwrap();
    there.ask(Occasion::Check(good)).unwrap();
}

#[test]
fn a_damaged_state_is_refused_by_name() {
    let mut job = Job::new(&[]);
    let (folder, mut requirements) = job.save();
    let path = folder.join("machine.state");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let mut there = plugin(job.folder.path(), &[]).unwrap();
    let damaged = saved(&folder, &requirements, &job.bindings);
    let fault = there.ask(Occasion::Check(damaged)).unwrap_err();
    assert_eq!(fault.kind(), Some(Code::Mismatch));
    assert!(fault.message.contains("machine.state has"), "{fault}");

    // What only QEMU can find.
    fs::write(&path, &whole[..5000]).unwrap();
    requirements.remove("bytes");
    let damaged = saved(&folder, &requirements, &job.bindings);
    let machines = job.machines();
    let fault = there.restart(&damaged).unwrap_err();
    assert_eq!(fault.kind(), Some(Code::Mismatch), "{fault}");
    assert!(fault.message.contains("machine.state can't be loaded: qemu has gone"), "{fault}");
    assert!(fault.message.contains("load of migration failed"), "{fault}");
    assert_eq!(job.machines(), machines);
    fs::remove_file(&path).unwrap();
    let fault = there.restart(&saved(&folder, &requirements, &job.bindings)).unwrap_err();
    assert!(fault.message.contains("machine.state: No such file"), "{fault}");
}

#[test]
fn what_can_not_be_meant_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for (option, why) in [
        (("machine", "q35"), "machine=q35: must name its version"),
        (("link", "ring"), "link=ring: must be device or socket"),
        (("memory", "much"), "memory=much: must be a number"),
        (("device", "emu"), "device=emu: must be an absolute path"),
        (("disk", "/x"), "there is no option \"disk\""),
    ] {
        let fault = plugin(folder.path(), &[option]).unwrap_err();
        assert_eq!(fault.kind(), Some(Code::InvalidParams));
        assert!(fault.message.contains(why), "{fault}");
    }
    // A device that keeps its state for itself; one, and a guest, that QEMU does not know.
    let text = folder.path().join("text");
    fs::write(&text, "no program").unwrap();
    for (option, why) in [
        (("add", "edu"), "option add=edu: QEMU would not save its state"),
        (("machine", "pc-i440fx-99.9"), "unsupported machine type"),
        (("image", &*text.display().to_string()), "qemu has gone"),
    ] {
        let fault = plugin(folder.path(), &[option]).unwrap().init().unwrap_err();
        assert_eq!(fault.kind(), Some(Code::Unavailable), "{fault}");
        assert!(fault.message.contains(why), "{fault}");
    }
    assert_eq!(fs::read_dir(folder.path().join("machines")).unwrap().count(), 0);
}

#[test]
fn a_machine_that_was_killed_is_lost() {
    let mut job = Job::new(&[]);
    let pid = job.folder.machine_pids()[0].to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    job.await_end_of_machine();
    for event in [Occasion::Presuspend, Occasion::Precheckpoint(common::precheckpoint(job.folder.path()))] {
        let fault = job.plugin.ask(event).unwrap_err();
        assert_eq!(fault.kind(), Some(Code::Lost), "{fault}");
    }
    assert_eq!(job.plugin.resume(After::Failure).unwrap_err().kind(), Some(Code::Lost));
    job.plugin.ask(Occasion::Exit(Exit { reason: Reason::Ended })).unwrap();
    assert_eq!(job.machines(), 0);
}

#[test]
fn a_machine_outlives_its_plugin_and_is_found_again() {
    for link in ["device", "socket"] {
        let mut job = Job::new(&[("link", link)]);
        let mut lines = Lines::new(3);
        job.send(&lines.next());
        // In the middle of a checkpoint.
        job.quiesce();
        let next = plugin(job.folder.path(), &[("link", link)]).unwrap();
        let before: Rehearsal = std::mem::replace(&mut job.plugin, next);
        job.plugin.area = before.area.clone();
        assert!(before.part().unwrap().success());
        let bindings: Vec<Binding> = job.bindings.clone();
        job.plugin.ask(Occasion::Recover(Recover { bindings })).unwrap();
        job.send(&lines.next());
        job.migrate();
        job.send(&lines.next());
        job.finish(&lines);
    }
}
