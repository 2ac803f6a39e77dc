//! Processes are made, related as they were.

use super::{Making, blame};
use crate::events::Events;
use crate::nursery::{self, Birth};
use crate::program::Program;
use crate::tree::{self, Step};
use crate::{Error, endings, fd};

/// So many processes are made at a time: each makes the others wait for less than it costs to stop their maker once more,
/// and their pages begin to be put in place early.
const BROOD: usize = 16;

impl Making<'_> {
    /// Makes all processes with their memory, related as they were. Pages that nobody inherits may still be on their way
    /// afterwards.
    ///
    /// # Errors
    /// The kernel's, the image's.
    pub fn tree(&mut self, events: &mut dyn Events) -> Result<(), Error> {
        let bad = |why| Error::Damaged(format!("tasks.json: {why}"));
        if let Some(first) = self.job.members.first() {
            self.memory(&[first.pid], None)?;
        }
        let plan = tree::plan(&self.job.members).map_err(bad)?;
        let maker = |step: &Step| if let Step::Make { maker, .. } = step { Some(*maker) } else { None };
        for steps in plan.chunk_by(|a, b| maker(a).is_some() && maker(a) == maker(b)) {
            // Not so many that their pages would begin late to be put in place.
            for steps in steps.chunks(BROOD) {
                self.steps(steps)?;
                events.progress(self.bytes, 0);
            }
        }
        Ok(())
    }

    /// Does one step, or makes some processes that have one maker.
    fn steps(&mut self, steps: &[Step]) -> Result<(), Error> {
        let (mut births, mut jobs, mut by) = (Vec::new(), Vec::new(), None);
        for step in steps {
            let Step::Make { pid, maker, sibling, signal, helper } = *step else { return self.step(*step) };
            let shared = match helper {
                true => 0,
                false => self
                    .job
                    .files
                    .shared_from_birth(pid, maker)
                    .map_err(|why| Error::Damaged(format!("{}: {why}", fd::FILE)))?,
            };
            births.push(Birth { pid, signal, sibling, shared });
            if self.job.layouts.contains_key(&pid) && !helper {
                jobs.push(pid);
            }
            by = Some(maker);
        }
        let Some(maker) = by else { return Ok(()) };
        // It hands on what it has.
        if self.unfilled.contains_key(&maker) {
            self.filled()?;
        }
        let made = self.leader(maker, |worker| nursery::beget(worker, &births))?;
        self.leaders.extend(births.iter().map(|birth| birth.pid).zip(made));
        for Birth { pid, .. } in births {
            let (host, ends) = (self.host(pid)?, !jobs.contains(&pid));
            self.cgroups.enter(pid, Some(maker), ends, host).map_err(|e| blame(self.job, pid, e))?;
        }
        self.memory(&jobs, Some(maker))
    }

    fn step(&mut self, step: Step) -> Result<(), Error> {
        match step {
            Step::Make { .. } => self.steps(&[step]),
            Step::Lead(pid) => {
                let mut program = Program::new();
                program.call("begin a session", libc::SYS_setsid, &[]);
                self.job.files.begin_session(&self.made, pid, &mut program);
                self.leader(pid, |worker| worker.run(&program).map(drop))
            }
            Step::Join { pid, group } => {
                self.call(pid, "join a process group", libc::SYS_setpgid, &[0, group])
            }
            Step::Dismiss { pid, parent } => {
                if let Some(helper) = self.leaders.remove(&pid) {
                    endings::end(helper, 0)?;
                }
                self.leader(parent, |worker| endings::reap(worker, pid))
            }
        }
    }
}
