//! Processes get their memory.

use super::{Making, blame};
use crate::crew;
use crate::image::Owner;
use crate::memory::{self, Blueprint, Plan, Underway, Ways};
use crate::program::{Call, Program};
use crate::{Error, Failure};

/// A process whose pages are under way.
#[derive(Debug)]
pub(super) struct Unfilled {
    plan: Plan<'static>,
    pages: Underway,
}

/// The last calls that make a process's mappings.
struct Drawn<'a> {
    pid: i32,
    plan: Plan<'a>,
    program: Program,
    ways: Ways,
    asked: Option<Call>,
}

impl Making<'_> {
    /// Gives new processes their memory; what they have in common with `maker`, which has just made them, stays.
    pub(super) fn memory(&mut self, pids: &[i32], maker: Option<i32>) -> Result<(), Error> {
        let Making { job, index, leaders, handles, made, filler, unfilled, bytes, .. } = self;
        let job = *job;
        let of = |failure: Failure, pid| blame(job, pid, failure);
        let mut drawn = Vec::with_capacity(pids.len());
        for &pid in pids {
            let (Some(layout), Some(state)) = (job.layouts.get(&pid), job.memory.get(&pid)) else { continue };
            let runs = index.of(Owner::Process(pid));
            let elder = maker.and_then(|maker| Some((maker, job.layouts.get(&maker)?)));
            let plan = match elder {
                Some((maker, theirs)) => Plan::inherit(theirs, index.of(Owner::Process(maker)), layout, runs),
                None => Plan::fresh(runs),
            };
            let inherited = maker.and_then(|maker| job.memory.get(&maker));
            let Some(worker) = leaders.get_mut(&pid) else { continue };
            let objects = &job.objects;
            let blueprint = Blueprint { layout, state, objects, handles, plan: &plan, inherited };
            let mut program = memory::draw(worker, &blueprint).map_err(|e| of(e, pid))?;
            let ways = Ways::choose(layout, &plan)?;
            let asked = ways.ask(&mut program);
            drawn.push(Drawn { pid, plan, program, ways, asked });
            *bytes += runs.iter().map(|run| u64::from(run.pages) * memory::PAGE).sum::<u64>();
        }
        let tasks: Vec<_> = drawn
            .iter_mut()
            .filter_map(|drawn| {
                let worker = leaders.get(&drawn.pid)?;
                Some((drawn.pid, worker, std::mem::take(&mut drawn.program)))
            })
            .collect();
        let answers = crew::run(&tasks).map_err(|(pid, failure)| of(failure, pid))?;
        for (Drawn { pid, plan, ways, asked, .. }, answers) in drawn.into_iter().zip(answers) {
            let (Some(layout), Some(worker)) = (job.layouts.get(&pid), leaders.get_mut(&pid)) else {
                continue;
            };
            let load = ways.load(worker, &plan, asked, &answers).map_err(|e| of(e, pid))?;
            memory::aio::make(worker, &layout.rings).map_err(|e| of(e, pid))?;
            let socket = |inode| job.files.packet_socket(inode).map(|id| made.at(id));
            memory::frames::map(worker, &layout.frames, &socket).map_err(|e| of(e, pid))?;
            let Plan { kept, forgotten, .. } = plan;
            let plan = Plan { kept, forgotten, ..Plan::default() };
            unfilled.insert(pid, Unfilled { plan, pages: load.watch() });
            filler.add(load);
        }
        Ok(())
    }

    /// Waits for the pages of all processes, and makes what must not be there before.
    pub(super) fn filled(&mut self) -> Result<(), Error> {
        self.filler.finish()?;
        let job = self.job;
        for (pid, Unfilled { plan, .. }) in std::mem::take(&mut self.unfilled) {
            self.bridged(pid)?;
            let Some(layout) = job.layouts.get(&pid) else { continue };
            self.leader(pid, |worker| memory::finish(worker, layout, &plan))?;
        }
        Ok(())
    }

    /// Waits for the pages of one process, which makes no others any more. The answer is the last calls for its memory.
    pub(super) fn closed(&mut self, pid: i32) -> Result<Program, Error> {
        let job = self.job;
        let Some(layout) = job.layouts.get(&pid) else { return Ok(Program::new()) };
        let unfilled = self.unfilled.remove(&pid);
        if let Some(Unfilled { pages, .. }) = &unfilled {
            self.filler.await_load(pages)?;
            self.bridged(pid)?;
        }
        let plan = unfilled.as_ref().map(|unfilled| &unfilled.plan);
        self.leader(pid, |worker| memory::seal(worker, layout, plan))
    }

    fn bridged(&mut self, pid: i32) -> Result<(), Error> {
        let Making { job, bridge, leaders, .. } = self;
        let laid = bridge.as_ref().zip(leaders.get_mut(&pid)).map(|(bridge, worker)| bridge.lay(worker, pid));
        laid.unwrap_or(Ok(())).map_err(|e| blame(job, pid, e))
    }
}
