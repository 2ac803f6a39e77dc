//! A user at a terminal: a program whose standard streams are a pseudoterminal that the test reads and types on.

use super::call::wait;
use crate::pipes::Lines;
use crate::terminal::{listen_to, resize, terminal};
use std::fs::File;
use std::io::Write;
use std::process::{Child, Command};

/// A terminal on which one program runs.
#[derive(Debug)]
pub struct Terminal {
    line: String,
    child: Child,
    keyboard: File,
    screen: Lines,
}

impl Terminal {
    /// Starts `command` on a terminal of `rows` and `columns`. It must be the leader of a session with this
    /// controlling terminal, which `setsid --ctty` in front of it does.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let line = format!("{command:?}");
        let (master, slave) = terminal(rows, columns);
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        // The command is dropped with its handles on the other side: only then does the screen show its end.
        let child = command.spawn().unwrap();
        Terminal { line, child, screen: listen_to(&master), keyboard: master.into() }
    }

    /// Waits until `text` has appeared, and returns what came up to there.
    pub fn awaits(&mut self, text: &str) -> String {
        self.screen.until(text)
    }

    /// Types.
    pub fn types(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Changes the size of the terminal's window; the kernel sends SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) {
        resize(&self.keyboard, rows, columns);
    }

    /// Waits for the end. The exit code, and what has been on the screen since the last [`awaits`](Self::awaits).
    #[track_caller]
    pub fn ends(mut self) -> (i32, String) {
        let seen = self.screen.rest();
        let code = wait(&mut self.child).unwrap_or_else(|| panic!("{} hangs: {seen:?}", self.line));
        (code, seen)
    }
}
