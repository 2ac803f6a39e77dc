//! Processes get their memory.

use super::{Making, blame};
use crate::Error;
use crate::image::Owner;
use crate::memory::{self, Blueprint, Plan};

impl Making<'_> {
    /// Gives a new process its memory; what it has in common with `maker`, which has just been forked, stays.
    pub(super) fn memory(&mut self, pid: i32, maker: Option<i32>) -> Result<(), Error> {
        let job = self.job;
        let (Some(layout), Some(state)) = (job.layouts.get(&pid), job.memory.get(&pid)) else {
            return Ok(());
        };
        let runs = self.index.of(Owner::Process(pid));
        let elder = maker.and_then(|maker| Some((maker, job.layouts.get(&maker)?)));
        let plan = match elder {
            Some((maker, theirs)) => {
                Plan::inherit(theirs, self.index.of(Owner::Process(maker)), layout, runs)
            }
            None => Plan::fresh(runs),
        };
        let inherited = maker.and_then(|maker| job.memory.get(&maker));
        let handles = &self.handles;
        let Some(worker) = self.leaders.get_mut(&pid) else { return Ok(()) };
        let objects = &job.objects;
        let blueprint = Blueprint { layout, state, objects, handles, plan: &plan, inherited };
        let blamed = |failure| blame(job, pid, failure);
        memory::build(worker, &blueprint).map_err(blamed)?;
        let made = &self.made;
        let socket = |inode| job.files.packet_socket(inode).map(|id| made.at(id));
        memory::frames::map(worker, &layout.frames, &socket).map_err(blamed)?;
        self.filler.add(memory::prepare(worker, layout, &plan)?);
        let Plan { kept, forgotten, .. } = plan;
        self.unfilled.insert(pid, Plan { kept, forgotten, ..Plan::default() });
        self.bytes += runs.iter().map(|run| u64::from(run.pages) * memory::PAGE).sum::<u64>();
        Ok(())
    }

    /// Waits for the pages of all processes, and makes what must not be there before.
    pub(super) fn filled(&mut self) -> Result<(), Error> {
        self.filler.finish()?;
        let job = self.job;
        for (pid, plan) in std::mem::take(&mut self.unfilled) {
            let (Some(layout), Some(worker)) = (job.layouts.get(&pid), self.leaders.get_mut(&pid)) else {
                continue;
            };
            let laid = self.bridge.as_ref().map_or(Ok(()), |bridge| bridge.lay(worker, pid));
            laid.and_then(|()| memory::finish(worker, layout, &plan)).map_err(|e| blame(job, pid, e))?;
        }
        Ok(())
    }
}
