//! `ckrun events`: what a container uses, now and then.

use super::{Context, look, print_line, require};
use crate::error::{Error, Result};
use crate::state::State;
use crate::status::Status;
use ckrun_virt::{Doing, Process};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use std::os::fd::AsFd;
use std::time::Duration;

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
    while !ended_within(&init, interval)? {
        print(&state)?;
    }
    Ok(())
}

fn print(state: &State) -> Result<()> {
    print_line(&json!({ "type": "stats", "id": state.id, "data": state.cgroups.stats()? }).to_string())
}

fn ended_within(init: &Process, interval: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(init.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut fds, timeout).doing(|| "wait for the end of the container")? > 0)
}
