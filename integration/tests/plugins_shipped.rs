//! The plugins that ship with ckrun keep to the protocol. What they do to jobs and emulators their own tests say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::run::{binary, finish};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A program of the workspace; `cargo test --workspace` builds all of them.
fn program(name: &str) -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let path = deps.with_file_name(name);
    assert!(path.exists(), "{} is missing: `cargo build -p {name}` makes it", path.display());
    path
}

fn check(name: &str, options: &str, words: &[&str]) -> String {
    let mut command = Command::new(binary());
    command.args(["plugin", "check"]).args(words).arg(format!("{}:{options}", program(name).display()));
    let said = finish(command).ok();
    assert!(said.ends_with(&format!("plugin {name} keeps to the protocol")), "{said}");
    said
}

/// A server of softemu with one slot.
struct Server {
    folder: tempfile::TempDir,
    child: Child,
}

impl Server {
    fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(program("ckrun-softemu"));
        command.args(["serve", "--ram", "1024", "--boot", "1000", "--directory"]).arg(folder.path());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("serving at "), "{line}");
        Server { folder, child }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ring = fs::read_link(self.folder.path().join("slot0.ring"));
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = ring.map(fs::remove_file);
    }
}

#[test]
fn softemu() {
    let server = Server::start();
    let folder = server.folder.path().display();
    for links in ["link=all", "socket=unix:/run/emu", "link=memory", "slot=0"] {
        let said = check("ckrun-softemu", &format!("server={folder},{links}"), &[]);
        assert!(said.contains("slot.state: truncated: "), "{said}");
    }
}

#[test]
fn fault() {
    let faults = "register=rax@1:xor=1,memory=1:1000:xor=ff";
    for at in ["restart", "checkpoint"] {
        check("ckrun-fault", &format!("{faults},at={at}"), &["--grant", "registers,memory"]);
    }
}

#[test]
fn remap() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules");
    fs::write(&file, "/dev/emu0 = /dev/null\ntcp:emu:4000 = tcp:127.0.0.1:9\n").unwrap();
    let said = check("ckrun-remap", &format!("file={}", file.display()), &[]);
    assert!(said.contains("/dev/emu0, tcp:emu:4000"), "{said}");
}
