//! `ckrun events`: what a container uses, now and then.

use super::{Context, look, print_line, require};
use crate::error::{Error, Result};
use crate::state::State;
use crate::status::Status;
use serde_json::json;

/// Print a container's resource usage as JSON, one object a line
///
/// Without --stats a line is printed at every interval until the container ends.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ckrun events --stats web | jq .data.memory.usage.usage\n  ckrun events --interval 1s web"
)]
pub struct Args {
    /// Print once
    #[arg(long)]
    stats: bool,
    /// Time between two lines: 500ms, 5s, 1m
    #[arg(long, value_name = "TIME", default_value = "5s")]
    interval: String,
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
}

/// Carries it out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let (_, state, status) = look(context, &args.id)?;
    require("watch", &args.id, status, &[Status::Created, Status::Running, Status::Paused])?;
    let interval = humantime::parse_duration(&args.interval)
        .map_err(|e| Error::Usage(format!("--interval {}: {e}", args.interval)))?;
    print(&state)?;
    if args.stats {
        return Ok(());
    }
    let Some(init) = state.process() else { return Ok(()) };
    while !init.wait(interval)? {
        print(&state)?;
    }
    Ok(())
}

fn print(state: &State) -> Result<()> {
    print_line(&json!({ "type": "stats", "id": state.id, "data": state.cgroups.stats()? }).to_string())
}
