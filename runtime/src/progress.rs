//! How far a long checkpoint or restart is, on the terminal of a person who waits for it.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// What takes less needs no patience.
const PATIENCE: Duration = Duration::from_secs(1);
/// The eye follows no faster.
const PAUSE: Duration = Duration::from_millis(100);

/// One line on the terminal, rewritten until it is dropped. Where standard error is no terminal there is none.
#[derive(Debug)]
pub struct Progress {
    doing: &'static str,
    terminal: bool,
    started: Instant,
    shown: Option<Instant>,
}

impl Progress {
    /// Begins; nothing is shown yet.
    pub fn new(doing: &'static str) -> Progress {
        Progress { doing, terminal: stderr().is_terminal(), started: Instant::now(), shown: None }
    }

    /// So many of so many bytes are done; 0 of the latter when it is not known how many there are.
    pub fn update(&mut self, done: u64, total: u64) {
        let now = Instant::now();
        let due = match self.shown {
            None => self.started + PATIENCE,
            Some(last) => last + PAUSE,
        };
        if !self.terminal || now < due {
            return;
        }
        self.shown = Some(now);
        // Nobody misses a line that can't be shown.
        let _ = write!(stderr(), "\r{}\x1b[K", line(self.doing, done, total, now - self.started));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

fn line(doing: &str, done: u64, total: u64, spent: Duration) -> String {
    let speed = size((done as f64 / spent.as_secs_f64()) as u64);
    match done.saturating_mul(100).checked_div(total) {
        Some(percent) => format!("{doing}: {} % of {}, {speed}/s", percent.min(100), size(total)),
        None => format!("{doing}: {}, {speed}/s", size(done)),
    }
}

/// A size as a person reads it.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_of_what() {
        let said = line("checkpoint", 512 << 20, 2 << 30, Duration::from_secs(2));
        assert_eq!(said, "checkpoint: 25 % of 2.00 GiB, 256.0 MiB/s");
        assert_eq!(line("restore", 2048, 0, Duration::from_secs(1)), "restore: 2.0 KiB, 2.0 KiB/s");
    }

    #[test]
    fn sizes() {
        assert_eq!([size(7), size(1536), size(3 << 20)], ["7 B", "1.5 KiB", "3.0 MiB"]);
    }
}
