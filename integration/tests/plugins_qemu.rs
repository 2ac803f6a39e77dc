//! A job that talks to a virtual machine, which its plugin takes along.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::hosts::program;
use ckrun_integration::job::{Job, path};
use ckrun_integration::run::{binary, finish, needs};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A job with a machine, none of which runs yet.
struct Tied {
    job: Job,
    image: PathBuf,
}

impl Tied {
    fn new() -> Tied {
        Tied::by("line")
    }

    /// By a mode of guests/uart.c.
    fn by(mode: &str) -> Tied {
        needs("qemu-system-x86_64", "qemu-system-x86");
        let job = Job::new("uart", mode);
        let image = job.container.file("machine");
        let mut write = Command::new(program("ckrun-qemu"));
        write.arg("guest").arg(&image);
        finish(write).ok();
        Tied { job, image }
    }

    /// `--plugin` with more options.
    fn plugin(&self, image: &str, more: &str) -> String {
        let directory = self.job.container.file("machines");
        let program = program("ckrun-qemu");
        format!("{}:image={image},directory={}{more}", program.display(), directory.display())
    }

    fn start(&self) {
        self.job.start_with(&["--plugin", &self.plugin(path(&self.image), "")]);
    }

    /// The machines that there are.
    fn machines(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.job.container.file("machines")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

#[test]
fn qemu_keeps_to_the_protocol() {
    let tied = Tied::new();
    for more in ["", ",link=socket", ",add=rtl8139,memory=16"] {
        let mut command = Command::new(binary());
        command.args(["plugin", "check"]).arg(tied.plugin(path(&tied.image), more));
        let said = finish(command).ok();
        assert!(said.ends_with("plugin ckrun-qemu keeps to the protocol"), "{said}");
        assert!(said.contains("machine.state has"), "{said}");
    }
    assert_eq!(tied.machines(), [] as [PathBuf; 0]);
}

#[test]
fn a_machine_goes_with_its_job() {
    goes_along("line", "", 3);
}

#[test]
fn a_machine_goes_with_its_job_over_a_socket() {
    goes_along("socket", ",link=socket", 3);
}

#[test]
#[ignore = "heavy: make test-all"]
fn fifty_moves_of_a_machine_change_nothing() {
    goes_along("line", "", 25);
    goes_along("socket", ",link=socket", 25);
}

/// So many moves, after one checkpoint that leaves the job running. The job is always ahead of the answers that it has read,
/// and each of them has a digest of all that the guest has been sent.
fn goes_along(mode: &str, link: &str, moves: usize) {
    let tied = Tied::by(mode);
    let Tied { job, image } = &tied;
    let plugin = tied.plugin(path(image), link);
    job.start_with(&["--plugin", &plugin]);
    job.is_well();
    job.leave_running(&job.image("left"));
    job.is_well();
    let mut before = tied.machines();
    for n in 0..moves {
        let saved = job.image(&n.to_string());
        job.checkpoint(&saved);
        assert_eq!(tied.machines(), [] as [PathBuf; 0]);
        job.restore_with(&saved, &["--plugin", &plugin]);
        let now = tied.machines();
        fs::remove_dir_all(&saved).unwrap();
        assert_eq!(now.len(), 1);
        assert_ne!(now, before);
        before = now;
    }
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
    assert_eq!(tied.machines(), [] as [PathBuf; 0]);
}

#[test]
fn a_restart_with_another_guest_or_machine_is_refused_and_a_later_one_succeeds() {
    let tied = Tied::new();
    let Tied { job, image } = &tied;
    tied.start();
    let saved = job.image("image");
    job.checkpoint(&saved);
    let other = job.container.file("other");
    fs::write(&other, [fs::read(image).unwrap(), b"x".to_vec()].concat()).unwrap();
    let restore = |plugin: &str| {
        let words = ["restore", "--detach", "--image-path", path(&saved), "--plugin", plugin, "ID"];
        job.container.ckrun(&words)
    };
    let refused = "plugin ckrun-qemu: check: mismatch: ";
    restore(&tied.plugin(path(&other), "")).fails(1, &[&format!("{refused}guest: the image needs")]);
    restore(&tied.plugin(path(image), ",memory=64"))
        .fails(1, &[&format!("{refused}memory: the image needs 32, and here is 64")]);
    job.container.no_trace();
    assert_eq!(tied.machines(), [] as [PathBuf; 0]);
    job.restore_with(&saved, &["--plugin", &tied.plugin(path(image), "")]);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
    assert_eq!(tied.machines(), [] as [PathBuf; 0]);
}
