//! `ckrun list`: all containers.

use super::state::Shown;
use super::{Context, columns, print_json, print_line};
use crate::error::Result;
use clap::ValueEnum;

/// List the containers
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ckrun list\n  ckrun list --quiet\n  ckrun list --format json | jq '.[].id'"
)]
pub struct Args {
    /// How
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Only the names
    #[arg(short, long)]
    quiet: bool,
}

/// A way to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Carries it out. A container that vanishes or comes up meanwhile is left out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let mut found = Vec::new();
    for entry in context.store.all()? {
        if let Ok(Some(state)) = entry.load()
            && let Ok(status) = entry.status(&state)
        {
            found.push((state, status));
        }
    }
    if args.quiet {
        return found.iter().try_for_each(|(state, _)| print_line(&state.id));
    }
    let shown: Vec<Shown<'_>> = found.iter().map(|(state, status)| Shown::of(state, *status)).collect();
    match args.format {
        Format::Json => print_json(&shown),
        Format::Table => table(&shown).iter().try_for_each(|line| print_line(line)),
    }
}

fn table(shown: &[Shown<'_>]) -> Vec<String> {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(shown.iter().map(Shown::columns)).collect();
    columns(&rows)
}
