//! A job that is tied to a device moves to another one. The devices are pseudoterminals, whose other ends the tests hold,
//! and files of shared memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::emulator::Emulator;
use ckrun_integration::job::{Job, path};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_device_is_another_one_after_each_restart() {
    let job = Job::new("link", "device");
    let mut emulator = Emulator::at_work();
    job.start_with(&["--map", &emulator.map()]);
    for generation in 1..4 {
        let image = job.image(&format!("image-{generation}"));
        job.checkpoint(&image);
        assert!(emulator.end() > 0);

        emulator = Emulator::at_work();
        let restore = ["restore", "--detach", "--image-path", path(&image), "ID"];
        let refused = job.container.ckrun(&restore).fails(1, &["/dev/emu0", "--map /dev/emu0="]);
        assert_eq!(refused.stdout, "");
        job.container.no_trace();
        job.restore_with(&image, &["--map", &emulator.map()]);

        let real = |name: &str| job.container.ckrun(&["ids", "ID", "--to-real", name]).ok();
        assert_eq!(real("dev:/dev/emu0").trim_end(), format!("dev:{}", emulator.device.display()));
        let all = job.container.ckrun(&["ids", "--json", "ID"]).ok();
        let all: serde_json::Value = serde_json::from_str(&all).unwrap();
        let former = all["former"].as_array().unwrap();
        let devices = former.iter().filter(|row| row["virtual"] == "dev:/dev/emu0").count();
        assert_eq!(devices, generation, "{all:#}");
    }
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    assert!(emulator.end() > 0);
}

/// An emulator with a ring of shared memory in a directory of its own.
struct Ring {
    dir: tempfile::TempDir,
    end: Arc<AtomicBool>,
    answers: std::thread::JoinHandle<u64>,
}

impl Ring {
    fn new(size: u64) -> Ring {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = File::options().read(true).write(true).create_new(true).open(dir.path().join("ring0"));
        let file = file.unwrap();
        file.set_len(size).unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let answers = std::thread::spawn(move || {
            let (mut count, mut last) = (0, 0);
            while !ended.load(Ordering::Relaxed) {
                let mut word = [0; 8];
                file.read_exact_at(&mut word, 0).unwrap();
                let question = u64::from_ne_bytes(word);
                if question != last {
                    file.write_all_at(&(3 * question + 1).to_ne_bytes(), 8).unwrap();
                    (count, last) = (count + 1, question);
                }
                std::thread::yield_now();
            }
            count
        });
        Ring { dir, end, answers }
    }

    fn map(&self) -> String {
        format!("/dev/emu={}", self.dir.path().display())
    }

    fn end(self) -> u64 {
        self.end.store(true, Ordering::Relaxed);
        self.answers.join().unwrap()
    }
}

#[test]
fn a_ring_of_shared_memory_is_another_one_after_each_restart() {
    let job = Job::new("link", "ring");
    let mut ring = Ring::new(8192);
    job.start_with(&["--map", &ring.map()]);
    for generation in 1..4 {
        let image = job.image(&format!("image-{generation}"));
        job.checkpoint(&image);
        assert!(ring.end() > 0);
        // It need not even be as long.
        ring = Ring::new(8192 << generation);
        job.restore_with(&image, &["--map", &ring.map()]);
    }
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    assert!(ring.end() > 0);
}

/// Who has not said that he answers for the device is told how to say it.
#[test]
fn a_device_for_which_nobody_answers() {
    let emulator = Emulator::at_work();
    let job = Job::new("link", "device");
    job.container.change(|config| {
        let mount = json!({"destination": "/dev/emu0", "source": emulator.device, "options": ["bind"]});
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    job.start();
    let look = job.container.ckrun(&["checkpoint", "--dry-run", "ID"]);
    assert_eq!(look.code, 1);
    assert!(look.stdout.contains("/dev/emu0") && look.stdout.contains("--map"), "{}", look.stdout);
    job.is_refused(&["/dev/emu0", "--map /dev/emu0="]);
}

#[test]
fn what_is_mapped_must_be_there() {
    let job = Job::new("link", "device");
    for (map, word) in [
        ("/dev/emu0=/dev/none", "/dev/none"),
        ("dev/emu0=/dev/null", "does not begin with /"),
        ("/dev/emu0", "/VIRTUAL=/REAL"),
        ("/=/dev", "root"),
    ] {
        job.container.ckrun(&["run", "--detach", "--map", map, "ID"]).fails(1, &["--map", word]);
        job.container.no_trace();
    }
}
