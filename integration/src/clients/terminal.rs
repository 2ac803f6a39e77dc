//! A user at a terminal: a program whose standard streams are a pseudoterminal that the test reads and types on.

use super::call::{readable, wait};
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command};

/// A terminal on which one program runs.
#[derive(Debug)]
pub struct Terminal {
    line: String,
    child: Child,
    master: File,
    seen: String,
}

impl Terminal {
    /// Starts `command` on a terminal of `rows` and `columns`. It must be the leader of a session with this
    /// controlling terminal, which `setsid --ctty` in front of it does.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let line = format!("{command:?}");
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let flags = OpenptFlags::from_bits_retain((OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC).bits());
        let slave = File::from(ioctl_tiocgptpeer(&master, flags).unwrap());
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        let mut terminal = {
            let master = File::from(master);
            tcsetwinsize(&master, size(rows, columns)).unwrap();
            Terminal { child: command.spawn().unwrap(), line, master, seen: String::new() }
        };
        // The command keeps the slave open; only without it does the master tell the end.
        drop(command);
        terminal.seen.reserve(1024);
        terminal
    }

    /// Waits until `text` has appeared, and forgets what was before and in it.
    #[track_caller]
    pub fn awaits(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            assert!(self.more(), "{}: {text:?} does not appear on the terminal: {:?}", self.line, self.seen);
        }
    }

    /// Types.
    pub fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Changes the size of the terminal's window; the kernel sends SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.master, size(rows, columns)).unwrap();
    }

    /// Waits for the end. The exit code, and what has been on the terminal since the last [`awaits`](Self::awaits).
    #[track_caller]
    pub fn ends(mut self) -> (i32, String) {
        while self.more() {}
        let code = wait(&mut self.child);
        (
            code.unwrap_or_else(|| panic!("{} hangs: {:?}", self.line, self.seen)),
            std::mem::take(&mut self.seen),
        )
    }

    /// Reads once; false at the end (EIO, when nobody has the other side open) and when nothing comes in time.
    fn more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        if !readable(self.master.as_fd()) {
            return false;
        }
        match self.master.read(&mut buffer) {
            Ok(n) if n > 0 => {
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
                true
            }
            _ => false,
        }
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
