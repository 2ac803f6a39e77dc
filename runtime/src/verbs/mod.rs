//! The verbs of the command line, one file each. A verb parses its words, finds its container and calls the rooms that
//! do the work; its answer is ckrun's exit status.

mod answers;
mod carry;
mod changed;
pub mod checkpoint;
pub mod clear_away;
pub mod completions;
pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod features;
pub mod ids;
pub mod image;
pub mod inspect;
pub mod kill;
pub mod list;
pub mod migrate;
mod new;
mod party;
pub mod pause;
pub mod plugin;
pub mod ps;
pub mod restore;
pub mod resume;
pub mod run;
pub mod spec;
pub mod start;
pub mod state;
mod subject;
pub mod supervise;
pub mod update;

use crate::error::{Error, Result};
use crate::global::Global;
use crate::report::Report;
use crate::state::{Entry, State, Store};
use crate::status::Status;
use std::path::Path;

/// What every verb is given.
#[derive(Debug)]
pub struct Context {
    /// The global options.
    pub global: Global,
    /// The containers.
    pub store: Store,
    /// Where log lines go.
    pub report: Report,
}

/// A container that a verb will change: found, locked, and with its state read under the lock.
fn lock(context: &Context, id: &str) -> Result<(Entry, State, Status)> {
    let mut entry = context.store.find(id)?;
    entry.lock()?;
    let state = entry.state()?;
    let status = entry.status(&state)?;
    Ok((entry, state, status))
}

/// A container that a verb will only look at.
fn look(context: &Context, id: &str) -> Result<(Entry, State, Status)> {
    let entry = context.store.find(id)?;
    let state = entry.state()?;
    let status = entry.status(&state)?;
    Ok((entry, state, status))
}

/// Refuses a verb in a state that is not among `allowed`.
fn require(verb: &'static str, id: &str, status: Status, allowed: &[Status]) -> Result<()> {
    if allowed.contains(&status) { Ok(()) } else { Err(Error::WrongState { verb, id: id.into(), status }) }
}

/// Writes a process id for a client: in decimal, without a newline, and whole or not at all.
fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::Usage(format!("--pid-file {}: is not a file", path.display())))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let new = path.with_file_name(hidden);
    std::fs::write(&new, pid.to_string()).map_err(|e| Error::file(&new, &e))?;
    std::fs::rename(&new, path).map_err(|e| Error::file(path, &e))
}

/// Prints JSON as clients and people like it: indented by two.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Json { path: "stdout".into(), why: e.to_string() })?;
    print_line(&text)
}

/// Prints a line; a reader that has gone (`ckrun list | head`) is no error of ours.
fn print_line(text: &str) -> Result<()> {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::file("stdout", &e)),
        _ => Ok(()),
    }
}

/// Lines whose columns are aligned, three spaces apart.
fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}
