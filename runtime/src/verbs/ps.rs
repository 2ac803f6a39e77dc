//! `ckrun ps`: the processes of a container.

use super::{Context, look, print_json, print_line};
use crate::error::{Error, Result};
use clap::ValueEnum;
use std::process::Command;

/// Show the processes of a container, with the host's process ids
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ckrun ps web\n  ckrun ps --format json web\n  ckrun ps web -o pid,comm,rss"
)]
pub struct Args {
    /// How: a table by the host's ps, or a JSON array of ids
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
    /// Options for ps, which must show the PID column [default: -ef]
    #[arg(value_name = "PS-OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// A way to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// What ps prints.
    Table,
    /// The ids.
    Json,
}

/// Carries it out.
pub fn run(args: &Args, context: &Context) -> Result<i32> {
    let (_, state, _) = look(context, &args.id)?;
    let mut pids: Vec<i32> = state.cgroups.pids()?.iter().map(|pid| pid.as_raw()).collect();
    if state.cgroups.is_empty() {
        pids.extend(state.process().map(|init| init.pid().as_raw()));
    }
    pids.sort_unstable();
    if args.format == Format::Json {
        print_json(&pids)?;
        return Ok(0);
    }
    let default = ["-ef".to_owned()];
    let options = if args.options.is_empty() { &default[..] } else { &args.options };
    let output = Command::new("ps").args(options).output().map_err(|e| Error::file("ps", &e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Usage(format!("ps {}: {said}", options.join(" "))));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head
        .split_whitespace()
        .position(|title| title == "PID")
        .ok_or_else(|| Error::Usage(format!("ps {} shows no PID column", options.join(" "))))?;
    print_line(head)?;
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse().ok());
        if pid.is_some_and(|pid| pids.binary_search(&pid).is_ok()) {
            print_line(line)?;
        }
    }
    Ok(0)
}
