//! `ckrun pause`: freeze all processes of a container.

use super::{Context, lock, require};
use crate::error::Result;
use crate::status::Status;

/// Freeze a container: its processes get no processor time until `ckrun resume`
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
    require("pause", &args.id, status, &[Status::Running, Status::Created])?;
    state.cgroups.freeze()
}
