//! Boards on hosts: devices of FUSE, see guests/board.c.

use super::{Host, Site};
use crate::pipes::Lines;
use serde_json::Value;
use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};

/// The ways in which a board is asked without sessions.
pub const USUAL: [&str; 3] = ["scaled", "written", "polled"];

/// A board, which goes when this is dropped.
#[derive(Debug)]
pub struct Board {
    server: Child,
    /// The directory that its file system is mounted at, on its host.
    pub directory: String,
    root: std::path::PathBuf,
}

impl Board {
    /// The file that is the device.
    pub fn device(&self) -> String {
        format!("{}/board0", self.directory)
    }

    /// Fails unless it was asked in each of these ways.
    pub fn was_asked(&self, ways: &[&str]) {
        // Of a file of FUSE the size is not what there is to read.
        let text = fs::read_to_string(self.root.join("counts")).expect("read the counts of a board");
        let counts: Value = serde_json::from_str(&text).expect("counts are JSON");
        for count in ways {
            assert!(counts[count].as_u64().is_some_and(|count| count > 0), "{count} of {counts}");
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Site {
    /// A board at a directory of a host, which is made.
    pub fn board(&self, host: &Host, directory: &str) -> Board {
        if !self.shared("board").exists() {
            self.install("board", "board");
        }
        let mut command = host.command(&["/mnt/board", "serve", directory]);
        let mut server = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("start a board");
        let line = Lines::new(OwnedFd::from(server.stdout.take().expect("stdout is a pipe"))).line();
        assert_eq!(line, "serving");
        Board { server, directory: directory.into(), root: host.path(directory) }
    }
}
