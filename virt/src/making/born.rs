//! What every task of a job in the making is born with: it need not be given that again.

use crate::Failure;
use crate::creds::Creds;
use crate::job::Job;
use crate::mempolicy::MemPolicy;
use crate::program::Program;
use crate::resource::{Resource, Stopped};
use crate::rooms::{OutsideProcess, OutsideThread};
use crate::switches::ThreadSwitches;
use crate::worker::Worker;

/// State of the first process before it has made others. Nobody gets its own before all of them are made.
#[derive(Debug)]
pub(super) struct Born {
    pub creds: Creds,
    pub switches: ThreadSwitches,
    pub memory_policy: MemPolicy,
    pub outside_process: OutsideProcess,
    pub outside_thread: OutsideThread,
}

impl Born {
    /// Gives `first`, which is `task`, what many are to have: no capabilities but those that somebody needs, since each call
    /// that changes credentials copies them, and the name of its own.
    ///
    /// # Errors
    /// The kernel's.
    pub fn prepare(first: &mut Worker, mut task: Stopped, job: &Job) -> Result<Born, Failure> {
        let (mut outside_process, mut outside_thread) = <(OutsideProcess, OutsideThread)>::default();
        outside_process.capture(&task)?;
        outside_thread.capture(&task)?;
        let mut program = Program::new();
        Creds::limit(job.threads.creds.values(), &mut task, &mut program);
        if let Some(own) = job.threads.switches.get(&task.tid) {
            own.restore_name(&mut program);
        }
        let creds = Creds::ask(&mut program);
        let switches = ThreadSwitches::ask(&mut program);
        let memory_policy = MemPolicy::ask(&mut program);
        let answers = first.run(&program)?;
        Ok(Born {
            creds: Creds::capture(&task, &creds, &answers)?,
            switches: ThreadSwitches::capture(&task, &switches, &answers)?,
            memory_policy: MemPolicy::capture(&task, &memory_policy, &answers)?,
            outside_process,
            outside_thread,
        })
    }
}
