//! `ckrun resume`: the end of a pause.

use super::{Context, lock, require};
use crate::error::Result;
use crate::status::Status;

/// Let a frozen container run again
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ckrun pause web; ckrun resume web")]
pub struct Args {
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
}

/// Carries it out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let (_entry, state, status) = lock(context, &args.id)?;
    require("resume", &args.id, status, &[Status::Paused])?;
    state.cgroups.thaw()
}
