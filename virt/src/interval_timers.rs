//! Timers that send signals, of setitimer(2).
//!
//! They are per process, restored in the leader as one of the last acts: from then on time runs. A timer goes on with the
//! time that it had left.

use crate::Failure;
use crate::program::{Answers, Place, Program};
use crate::resource::{Resource, Stopped};
use crate::signals::Queued;
use serde::{Deserialize, Serialize};

/// The three timers of setitimer(2): real time, the process's user time, its CPU time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct IntervalTimers {
    /// SIGALRM.
    pub real: Interval,
    /// SIGVTALRM.
    pub r#virtual: Interval,
    /// SIGPROF.
    pub profiling: Interval,
}

/// How long a timer has left and how long it takes again, in seconds and a smaller unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Interval {
    /// To the next signal; zero when the timer is not armed.
    pub left: [i64; 2],
    /// From then on; zero for once.
    pub interval: [i64; 2],
}

impl Interval {
    pub(crate) fn read(answers: &Answers, place: Place) -> Interval {
        let word = |k: usize| answers.u64(place, k * 8).cast_signed();
        Interval { interval: [word(0), word(1)], left: [word(2), word(3)] }
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        [self.interval, self.left].concat().into_iter().flat_map(i64::to_ne_bytes).collect()
    }

    pub(crate) fn is_armed(&self) -> bool {
        self.left != [0, 0]
    }
}

impl IntervalTimers {
    /// It has sent this signal since it was asked, and will do so when it is made again. The others run only when the process
    /// does.
    pub(crate) fn will_send(&self, queued: &Queued) -> bool {
        queued.is_of_alarm() && self.real.is_armed()
    }
}

impl Resource for IntervalTimers {
    type Asked = [Place; 3];

    fn ask(program: &mut Program) -> [Place; 3] {
        [0, 1, 2].map(|which| {
            let place = program.room(32);
            program.call("get an interval timer", libc::SYS_getitimer, &[which.into(), place.into()]);
            place
        })
    }

    fn capture(_: &Stopped, asked: &[Place; 3], answers: &Answers) -> Result<Self, Failure> {
        let [real, r#virtual, profiling] = asked.map(|place| Interval::read(answers, place));
        Ok(IntervalTimers { real, r#virtual, profiling })
    }

    fn restore(&self, program: &mut Program) {
        let mut real = self.real;
        if real.interval != [0, 0] && !real.is_armed() {
            // Its signal waits, and the kernel arms it when that is taken. To get there it has to go off once more, at
            // once; a second SIGALRM is not queued.
            real.left = [0, 1];
        }
        for (which, timer) in [real, self.r#virtual, self.profiling].into_iter().enumerate() {
            if timer.is_armed() || timer.interval != [0, 0] {
                let place = program.put(&timer.to_bytes());
                let args = [which.into(), place.into(), 0.into()];
                program.call("set an interval timer", libc::SYS_setitimer, &args);
            }
        }
    }
}
