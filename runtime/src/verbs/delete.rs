//! `ckrun delete`: forget a container.

use super::Context;
use crate::error::{Error, Result};
use crate::sandbox::destroy;
use crate::status::Status;
use std::time::Duration;

/// Delete a container that has stopped or was never started
///
/// With --force a running one is killed first, one that does not exist is no error, and what a killed `ckrun create`
/// left behind is cleared away.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ckrun delete web\n  ckrun delete --force web")]
pub struct Args {
    /// Kill it if it still runs; succeed if there is none
    #[arg(short, long)]
    force: bool,
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
}

/// A job that has just been killed, or has nothing left to do, is gone in a moment: `ckrun kill X KILL; ckrun delete X`
/// is to work without a wait in between.
const GRACE: Duration = Duration::from_millis(100);

/// Carries it out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let locked = context.store.find(&args.id).and_then(|mut entry| entry.lock().map(|()| entry));
    let entry = match locked {
        Err(Error::NoSuchContainer(_)) if args.force => return Ok(()),
        found => found?,
    };
    let Some(state) = entry.load()? else {
        // Its maker was killed before it made anything but the directory.
        return if args.force {
            destroy::forget_claim(entry)
        } else {
            Err(Error::NoSuchContainer(args.id.clone()))
        };
    };
    let mut status = entry.status(&state)?;
    if status == Status::Running && !args.force && destroy::ends_within(&state, GRACE)? {
        status = Status::Stopped;
    }
    if matches!(status, Status::Running | Status::Paused) && !args.force {
        return Err(Error::WrongState { verb: "delete", id: args.id.clone(), status });
    }
    destroy::kill(&state)?;
    destroy::forget(entry, &state)
}
