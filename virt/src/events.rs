//! The moments of a checkpoint and of a restart at which others have something to do.

use crate::Error;
use crate::fd::Renewed;
use crate::image::Writer;
use crate::still::Still;
use crate::table::Table;
use std::path::Path;

/// Called by the stories at their places; nothing happens by default. An error before the commit of an image ends the
/// checkpoint and leaves the job running; one before `running` ends the restart and leaves nothing.
#[allow(unused_variables, reason = "the default of every moment is to do nothing")]
pub trait Events {
    /// The job runs. Last moment to finish what is under way with the outside, or to say no.
    fn presuspend(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Every task of the job is seized and asked to stop, but none has been waited for: a frozen cgroup must be thawed
    /// now, since on cgroup v1 a frozen task does not reach its stop, and on cgroup2 it runs nothing for us.
    fn seized(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// The job stands still; `image` is being written. What is changed in the job now would be in it, and not in its image.
    fn precheckpoint(&mut self, image: &mut Writer, job: &mut dyn Still) -> Result<(), Error> {
        Ok(())
    }

    /// The image is complete. If this fails the job goes on, and the image stays. `job` is there if it still stands still.
    fn committed(&mut self, dir: &Path, job: Option<&mut dyn Still>) -> Result<(), Error> {
        Ok(())
    }

    /// The job is about to be killed after its checkpoint, and is beyond return: from now on ckrun's death is its death.
    fn doomed(&mut self) {}

    /// The job is about to go on where it is, after a checkpoint or after a failed one. Every task is still stopped: who
    /// found the job frozen freezes it again now.
    fn resume(&mut self, job: &mut dyn Still) -> Result<(), Error> {
        Ok(())
    }

    /// The restored job exists but does not run. It has these connections to those who answer for their ends.
    fn restart(&mut self, connections: &[Renewed]) -> Result<(), Error> {
        Ok(())
    }

    /// The restored job is about to run, and what its ids stand for from now on is in `table`. Whatever may still fail has
    /// to be done now: once the job runs it changes files, and its image may not fit to them any more.
    fn running(&mut self, table: &Table, job: &mut dyn Still) -> Result<(), Error> {
        Ok(())
    }

    /// The job has been killed after its checkpoint.
    fn exit(&mut self) {}

    /// So many bytes of memory have been written or read.
    fn progress(&mut self, done: u64, total: u64) {}
}
