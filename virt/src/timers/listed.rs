//! Timers as `/proc/PID/timers` shows them.

use super::Notify;
use crate::overruns::ask_clock;
use crate::program::{Place, Program};
use crate::signals::Queued;

/// A timer as `/proc/PID/timers` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub(crate) id: i32,
    pub(super) signal: i32,
    pub(super) value: u64,
    pub(super) notify: Notify,
    /// In ckrun's pid namespace.
    pub(super) thread: Option<i32>,
    pub(crate) clock: i32,
    /// When it went off whose signal waits, and its interval, in nanoseconds: [`crate::overruns`].
    pub(crate) went_off: Option<(i64, i64)>,
}

impl Listed {
    /// It has sent this signal.
    pub(crate) fn sends(&self, queued: &Queued) -> bool {
        sender(queued) == Some(self.id) && queued.signal == self.signal
    }

    /// Asks how it is set.
    pub(crate) fn ask(&self, program: &mut Program) -> Place {
        let place = program.room(32);
        program.call("get a timer", libc::SYS_timer_gettime, &[self.id.into(), place.into()]);
        place
    }

    /// Asks what time it is by its clock.
    pub(crate) fn ask_clock(&self, program: &mut Program) -> Place {
        ask_clock(program, self.clock)
    }
}

/// `si_timerid` of a signal that a timer has sent.
pub(super) fn sender(queued: &Queued) -> Option<i32> {
    (queued.code == libc::SI_TIMER).then_some(queued.fields[0].0 as i32)
}

/// Reads `/proc/PID/timers`: four lines a timer.
pub(super) fn parse(list: &[u8]) -> Option<Vec<Listed>> {
    let text = std::str::from_utf8(list).ok()?;
    let mut lines = text.lines();
    let mut timers = Vec::new();
    while let Some(first) = lines.next() {
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(": ");
        let id = first.strip_prefix("ID: ")?.parse().ok()?;
        let (signal, value) = field("signal")?.split_once('/')?;
        let (notify, target) = field("notify")?.split_once('/')?;
        let clock = field("ClockID")?.parse().ok()?;
        timers.push(Listed {
            id,
            signal: signal.parse().ok()?,
            value: u64::from_str_radix(value, 16).ok()?,
            notify: match notify {
                "signal" => Notify::Signal,
                "none" => Notify::None,
                "thread" => Notify::Thread,
                _ => return None,
            },
            thread: match target.split_once('.')? {
                ("tid", tid) => Some(tid.parse().ok()?),
                ("pid", _) => None,
                _ => return None,
            },
            clock,
            went_off: None,
        });
    }
    Some(timers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIST: &str = "ID: 10\nsignal: 60/0000000000000000\nnotify: thread/pid.15910\nClockID: -6\n\
                        ID: 2147483632\nsignal: 0/00007ffd1234abcd\nnotify: none/tid.7\nClockID: 1\n";

    #[test]
    fn the_kernels_list_is_understood() {
        let listed = parse(LIST.as_bytes()).unwrap();
        let first = Listed {
            id: 10,
            signal: 60,
            value: 0,
            notify: Notify::Thread,
            thread: None,
            clock: -6,
            went_off: None,
        };
        let second = Listed {
            id: i32::MAX - 15,
            signal: 0,
            value: 0x7ffd_1234_abcd,
            notify: Notify::None,
            thread: Some(7),
            clock: 1,
            went_off: None,
        };
        assert_eq!(listed, [first, second]);
        assert_eq!(parse(b""), Some(Vec::new()));
    }

    #[test]
    fn a_list_that_is_cut_or_strange_is_no_list() {
        for end in 1..LIST.len() - 1 {
            let cut = &LIST.as_bytes()[..end];
            // Numbers may be cut without a trace; whole lines and words may not.
            assert!(parse(cut).is_none_or(|timers| timers.len() <= 2), "{end}");
        }
        for (word, strange) in [("none", "maybe"), ("tid.", "job."), ("ID: 10", "ID: x"), ("60/", "60 ")] {
            assert_eq!(parse(LIST.replace(word, strange).as_bytes()), None, "{strange}");
        }
        assert_eq!(parse(b"\xff"), None);
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic(bytes: Vec<u8>, at in 0..LIST.len(), byte: u8) {
            let _ = parse(&bytes);
            let mut list = LIST.as_bytes().to_vec();
            list[at] = byte;
            let _ = parse(&list);
        }
    }
}
