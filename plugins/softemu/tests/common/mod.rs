//! What the tests of whole programs stand on: a server, and testbenches with it.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_softemu::control::{Claim, Control};
use ckrun_softemu::link::{Kind, Name};
use ckrun_softemu::testbench::{self, Outcome};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The program under test.
pub const SOFTEMU: &str = env!("CARGO_BIN_EXE_ckrun-softemu");
/// A small design, so that a test takes a moment.
pub const SMALL: [&str; 6] = ["--ram", "1024", "--fifo", "16", "--boot", "100000"];

/// A server, killed at the end if it still lives.
#[derive(Debug)]
pub struct Server {
    pub folder: TempDir,
    child: Child,
}

impl Server {
    /// One with the small design and so many slots, that is ready for requests.
    pub fn start(slots: usize) -> Server {
        Server::with(slots, &SMALL)
    }

    /// One in the place of another that was killed.
    pub fn again(folder: &TempDir, slots: usize) -> Server {
        let link = tempfile::tempdir().unwrap();
        let place = link.path().join("server");
        std::os::unix::fs::symlink(folder.path(), &place).unwrap();
        Server { child: Server::spawn(&place, slots, &SMALL), folder: link }
    }

    pub fn with(slots: usize, options: &[&str]) -> Server {
        let folder = tempfile::tempdir().unwrap();
        Server { child: Server::spawn(folder.path(), slots, options), folder }
    }

    fn spawn(folder: &Path, slots: usize, options: &[&str]) -> Child {
        let mut child = Command::new(SOFTEMU)
            .args(["serve", "--slots", &slots.to_string(), "--directory"])
            .arg(folder)
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("serving at "), "{line}");
        child
    }

    pub fn control(&self, owner: &str) -> Control {
        Control::connect(&self.folder.path().join("control"), owner).unwrap()
    }

    /// Claims any slot with one link.
    pub fn claim(&self, owner: &str, kind: Kind, frozen: bool) -> (usize, Name) {
        let claim = Claim { links: vec![kind], frozen, ..Claim::default() };
        let claimed = self.control(owner).claim(&claim).unwrap();
        (claimed.slot, claimed.links[0].clone())
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and its end.
    pub fn stop(mut self) -> TempDir {
        // SAFETY: kill(2) touches no memory; the process is a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        assert!(self.child.wait().unwrap().success());
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What a killed server leaves in shared memory.
        for slot in 0..8 {
            if let Ok(ring) = std::fs::read_link(self.folder.path().join(format!("slot{slot}.ring"))) {
                let _ = std::fs::remove_file(ring);
            }
        }
    }
}

/// A testbench's options.
pub fn options(link: &Name, seed: u64, transactions: u64, folder: &Path) -> testbench::Options {
    let log = log_path(folder, seed);
    testbench::Options { link: link.clone(), seed, transactions, log, outstanding: 16, progress: 0 }
}

pub fn log_path(folder: &Path, seed: u64) -> PathBuf {
    folder.join(format!("log{seed}"))
}

/// The outcome of an uninterrupted run with the small design, over a Unix socket, in this process.
pub fn undisturbed(seed: u64, transactions: u64) -> Outcome {
    let server = Server::start(1);
    let (_, link) = server.claim("reference", Kind::Unix, false);
    testbench::run(
        &options(&link, seed, transactions, server.folder.path()),
        &mut std::io::sink(),
        &mut |_, _| Ok(()),
    )
    .unwrap()
}

/// A testbench as a process of its own.
pub fn testbench(link: &Name, seed: u64, transactions: u64, folder: &Path) -> Command {
    let mut command = Command::new(SOFTEMU);
    command
        .args(["testbench", "--link", &link.to_string(), "--seed", &seed.to_string()])
        .args(["--transactions", &transactions.to_string(), "--progress", "100", "--log"])
        .arg(log_path(folder, seed))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}
