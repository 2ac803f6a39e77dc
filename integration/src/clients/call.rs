//! One call of a program: its arguments, and what came of it.

use super::PATIENCE;
use crate::pipes::try_pidfd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

/// How a call ended.
#[derive(Debug)]
pub struct Done {
    /// The command line.
    pub line: String,
    /// The exit code; 128 and the signal if a signal ended it.
    pub code: i32,
    /// What it wrote to its standard output.
    pub out: String,
    /// What it wrote to its standard error output.
    pub err: String,
}

impl Done {
    /// Checks the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code of {}\nstdout: {}\nstderr: {}", self.line, self.out, self.err);
        self
    }

    /// Checks that it went well; its standard output without the blanks around it.
    #[track_caller]
    pub fn ok(self) -> String {
        self.exits(0).out.trim().to_owned()
    }

    /// Checks that it failed.
    #[track_caller]
    pub fn fails(self) -> Self {
        assert_ne!(self.code, 0, "{} should fail\nstdout: {}\nstderr: {}", self.line, self.out, self.err);
        self
    }

    /// Checks that `text` is in what it wrote to its standard error output.
    #[track_caller]
    pub fn complains(self, text: &str) -> Self {
        assert!(self.err.contains(text), "{} should say {text:?}\nstderr: {}", self.line, self.err);
        self
    }
}

/// Runs a command to its end.
///
/// Its output goes to files, not to pipes: a process that stays in the background and keeps the output open must not
/// hold up the test.
#[track_caller]
pub fn call(mut command: Command, input: &str) -> Done {
    let line = format!("{command:?}");
    let mut stdin = tempfile::tempfile().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    stdin.seek(SeekFrom::Start(0)).unwrap();
    let out = tempfile::tempfile().unwrap();
    let err = tempfile::tempfile().unwrap();
    command.stdin(stdin).stdout(out.try_clone().unwrap()).stderr(Stdio::from(err.try_clone().unwrap()));
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{line}: {e}"));
    let in_time = wait(&mut child);
    let (out, err) = (content(out), content(err));
    match in_time {
        Some(code) => Done { line, code, out, err },
        None => panic!("{line} hangs\nstdout: {out}\nstderr: {err}"),
    }
}

/// Waits for a child's end; nothing if it is not in time, then the child is killed.
pub fn wait(child: &mut Child) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    if !ended(child.id()) {
        let _ = child.kill();
        let _ = child.wait();
        return None;
    }
    let status = child.wait().unwrap();
    Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Waits until the process has ended, as a zombie too. Whether it did so in time.
pub fn ended(pid: u32) -> bool {
    // Without a process of this id it has ended.
    let Some(pidfd) = try_pidfd(pid.cast_signed()) else { return true };
    let timeout = PollTimeout::try_from(PATIENCE).unwrap();
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout).is_ok_and(|n| n > 0)
}

fn content(mut file: File) -> String {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
