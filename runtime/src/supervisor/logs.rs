//! What plugins write to their standard output and error, and what they say by `log`: kept in the container's directory,
//! line by line, as much as a person will read.

use super::names;
use ckrun_plugin::Level;
use ckrun_virt::{Doing, Failure};
use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::unistd::{pipe2, read};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

/// The most bytes of a file; then there is a new one, and the one before it is kept.
const SIZE: u64 = 256 << 10;

/// The most bytes of a line; what is longer goes on on the next.
const LINE: usize = 4096;

/// All of them.
#[derive(Debug)]
pub struct Logs {
    home: PathBuf,
    file: Option<(File, u64)>,
    pipes: Vec<Pipe>,
}

/// The standard output and error of one plugin.
#[derive(Debug)]
struct Pipe {
    plugin: String,
    from: OwnedFd,
    /// The beginning of a line.
    line: Vec<u8>,
}

impl Logs {
    /// For the container in `home`.
    pub fn new(home: PathBuf) -> Logs {
        Logs { home, file: None, pipes: Vec::new() }
    }

    /// What a plugin is to write to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(&mut self, plugin: &str) -> Result<OwnedFd, Failure> {
        let (from, to) = pipe2(OFlag::O_CLOEXEC).doing(|| "make a pipe for a plugin's log")?;
        // Only ours: a plugin may expect that its writes wait.
        rustix::fs::fcntl_setfl(&from, rustix::fs::OFlags::NONBLOCK).doing(|| "set up a pipe")?;
        self.pipes.push(Pipe { plugin: plugin.into(), from, line: Vec::new() });
        Ok(to)
    }

    /// What is to be waited for.
    pub fn polled(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.pipes.iter().map(|pipe| (pipe.from.as_fd(), PollFlags::POLLIN))
    }

    /// Reads what has come, without waiting for more.
    pub fn attend(&mut self) {
        let mut lines = Vec::new();
        self.pipes.retain_mut(|pipe| {
            let open = pipe.fill();
            lines.extend(pipe.lines(!open).into_iter().map(|line| (pipe.plugin.clone(), line)));
            open
        });
        for (plugin, line) in lines {
            self.write(&plugin, "", &line);
        }
    }

    /// What a plugin says by `log`.
    pub fn say(&mut self, plugin: &str, level: Level, message: &str) {
        let level = match level {
            Level::Error => "error: ",
            Level::Warn => "warn: ",
            Level::Info => "info: ",
            Level::Debug => "debug: ",
        };
        let text: String = message.chars().take(LINE).collect();
        self.write(plugin, level, &text);
    }

    fn write(&mut self, plugin: &str, level: &str, text: &str) {
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        // A terminal must not obey it, and a line must not look like two.
        let text: String = text.chars().map(|c| if c.is_control() && c != '\t' { '?' } else { c }).collect();
        let line = format!("{time} {plugin}: {level}{text}\n");
        // It is for a person who looks for a reason later; that it can't be kept is no reason to fail.
        if let Err(e) = self.append(line.as_bytes()) {
            log::debug!("{e}");
        }
    }

    fn append(&mut self, line: &[u8]) -> std::io::Result<()> {
        if self.file.as_ref().is_some_and(|(_, size)| *size > SIZE) {
            self.file = None;
            std::fs::rename(self.home.join(names::PLUGINS_LOG), self.home.join(names::PLUGINS_LOG_BEFORE))?;
        }
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            let file =
                options.create(true).append(true).mode(0o600).open(self.home.join(names::PLUGINS_LOG))?;
            let size = file.metadata()?.len();
            self.file = Some((file, size));
        }
        if let Some((file, size)) = &mut self.file {
            file.write_all(line)?;
            *size += line.len() as u64;
        }
        Ok(())
    }
}

impl Pipe {
    /// Reads once; whether there may be more some time.
    fn fill(&mut self) -> bool {
        let mut bytes = [0; 16 << 10];
        match read(&self.from, &mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.line.extend_from_slice(&bytes[..count]);
                true
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => true,
            Err(_) => false,
        }
    }

    /// The lines that are whole, or so long that they are cut.
    fn lines(&mut self, all: bool) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let end = self.line.iter().take(LINE).position(|byte| *byte == b'\n');
            let (length, skip) = match end {
                Some(end) => (end, 1),
                None if self.line.len() >= LINE => (LINE, 0),
                None if all && !self.line.is_empty() => (self.line.len(), 0),
                None => return lines,
            };
            lines.push(String::from_utf8_lossy(&self.line[..length]).into_owned());
            self.line.drain(..length + skip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::names::{PLUGINS_LOG, PLUGINS_LOG_BEFORE};

    #[test]
    fn lines_are_kept_and_a_flood_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut logs = Logs::new(dir.path().into());
        let to = logs.open("emu").unwrap();
        let mut to = File::from(to);
        to.write_all(b"one\ntwo\x1b[m\nhalf").unwrap();
        logs.attend();
        let text = || std::fs::read_to_string(dir.path().join(PLUGINS_LOG)).unwrap();
        assert!(
            text().contains(" emu: one\n") && text().contains(" emu: two?[m\n") && !text().contains("half")
        );
        logs.say("emu", Level::Warn, "slow");
        assert!(text().contains(" emu: warn: slow\n"));
        for _ in 0..200 {
            to.write_all(&[b'x'; 9000]).unwrap();
            logs.attend();
        }
        drop(to);
        logs.attend();
        assert_eq!(logs.polled().count(), 0);
        for name in [PLUGINS_LOG, PLUGINS_LOG_BEFORE] {
            assert!(std::fs::metadata(dir.path().join(name)).unwrap().len() < SIZE + 2 * LINE as u64);
        }
    }
}
