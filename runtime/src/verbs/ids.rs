//! `ckrun ids`: what a job's names stand for on this host.

use super::{Context, columns, look, party, print_json, print_line};
use crate::error::{Error, Result};
use crate::state::{Entry, State};
use crate::status::Status;
use crate::supervisor::Record;
use crate::supervisor::record::{in_table, of_image};
use ckrun_plugin::Binding;
use ckrun_virt::image::{Bytes, Image};
use ckrun_virt::table::file::NAME;
use ckrun_virt::table::id::Printable;
use ckrun_virt::table::{Generation, Id, Row, Table, Time, live};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Show what a job's process ids, descriptors, devices and sockets stand for on this host
///
/// Of a running container the table is made by a look at it, which does not stop it; with what earlier generations of the
/// job were bound to, if it was restored. Of an image it is what was true at the checkpoint.
#[derive(Debug, clap::Args)]
#[command(after_help = "Names, on both sides:\n  \
        pid:7 or 7      a process\n  \
        tid:8           a thread\n  \
        sid:1, pgid:7   a session, a process group\n  \
        fd:7:5          descriptor 5 of process 7\n  \
        dev:/dev/emu0   a device\n  \
        sock:emu:4000   a socket's address\n  \
        handle:NAME:3   a vendor's handle, in the name space of plugin NAME\n\n\
        Examples:\n  \
        ckrun ids web\n  \
        gdb -p $(ckrun ids web --to-real 7)\n  \
        ckrun ids web --to-virtual pid:48211\n  \
        ckrun ids --image checkpoint --json | jq '.former[] | select(.virtual == \"dev:/dev/emu0\")'")]
pub struct Args {
    /// The container's name
    #[arg(value_name = "ID", required_unless_present = "image")]
    id: Option<String>,
    /// A checkpoint, in place of a container
    #[arg(long, value_name = "DIR", conflicts_with = "id")]
    image: Option<PathBuf>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Print only what this name of the job's stands for on the host
    #[arg(long, value_name = "VIRTUAL", conflicts_with = "to_virtual")]
    to_real: Option<String>,
    /// Print only what stands for this name of the host's in the job
    #[arg(long, value_name = "REAL")]
    to_virtual: Option<String>,
}

/// The whole table in one object.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown<'a> {
    observed: Time,
    generations: &'a [Generation],
    forgotten_generations: u64,
    bound: Vec<Row<'a>>,
    /// Which plugin answers for which of them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    owners: BTreeMap<String, String>,
    /// By which vendor's name (CDI) devices are there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    vendors: BTreeMap<String, &'a str>,
    former: Vec<Row<'a>>,
    forgotten: u64,
}

impl<'a> Shown<'a> {
    /// All of it.
    pub(super) fn of(table: &'a Table) -> Self {
        Shown {
            observed: table.observed(),
            generations: table.generations(),
            forgotten_generations: table.forgotten_generations(),
            bound: table.rows(),
            owners: BTreeMap::new(),
            vendors: table.vendors().iter().map(|(path, name)| (device(path), name.as_str())).collect(),
            former: table.former(),
            forgotten: table.forgotten(),
        }
    }
}

/// Carries it out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let (table, owners, whose) = match (&args.image, &args.id) {
        (Some(dir), _) => {
            let image = Image::open(dir)?;
            let saved = of_image(&image)?;
            let plugins = saved.iter().map(|saved| (saved.plugin.name.as_str(), &saved.bindings[..]));
            (image.json(NAME)?, owners(plugins), dir.display().to_string())
        }
        (None, id) => {
            let id = id.as_deref().unwrap_or_default();
            let (entry, state, status) = look(context, id)?;
            let record = party::record(&entry, &state)?;
            let plugins = record.iter().flat_map(|record| &record.plugins);
            let owners = owners(plugins.map(|plugin| (plugin.name(), &plugin.bindings[..])));
            (current(&entry, &state, status, record.as_ref())?, owners, format!("container {id:?}"))
        }
    };
    let question = args.to_real.as_ref().map(|name| (name, true));
    let question = question.or_else(|| args.to_virtual.as_ref().map(|name| (name, false)));
    match question {
        Some((name, to_real)) => answer(args, &table, name, to_real, &whose),
        None if args.json => print_json(&Shown { owners, ..Shown::of(&table) }),
        None => lines(&table, &owners, args.image.is_none()).iter().try_for_each(|line| print_line(line)),
    }
}

fn device(path: &Bytes) -> String {
    Id::Device(path.clone()).to_string()
}

/// Which plugin answers for what.
fn owners<'a>(plugins: impl Iterator<Item = (&'a str, &'a [Binding])>) -> BTreeMap<String, String> {
    let of = |(name, bindings): (&'a str, &'a [Binding])| {
        bindings.iter().filter_map(in_table).map(move |(id, _)| (id.to_string(), name.to_owned()))
    };
    plugins.flat_map(of).collect()
}

/// The table of a container as it is now.
fn current(entry: &Entry, state: &State, status: Status, record: Option<&Record>) -> Result<Table> {
    let kept = Table::read(entry.dir())?;
    let Some(process) = state.process() else {
        // What it was when it was last looked at.
        let verb = "show the ids of";
        return kept.ok_or_else(|| Error::WrongState { verb, id: state.id.clone(), status });
    };
    let init = process.pid();
    let mut table = kept.map_or_else(|| first(state), Ok)?;
    record.map_or(Ok(()), |record| record.show(&mut table))?;
    let processes = if state.cgroups.is_empty() { live::processes(init)? } else { state.cgroups.pids()? };
    let seen = live::look(&processes, live::depth(init)?)?;
    table.observe(&seen, Time::now())?;
    Ok(table)
}

/// The table of a container of which nothing was kept: its job began with it.
pub(super) fn first(state: &State) -> Result<Table> {
    let since = Time::parse(&state.created).unwrap_or_else(Time::now);
    let mut table = Table::new(Generation::here(0, since)?);
    for (path, real) in &state.maps {
        table.bind(&Id::Device(path.clone().into()), &Id::Device(real.clone().into()), since)?;
    }
    table.describe(state.vendors.clone());
    for (name, real) in &state.sockets {
        table.bind(&Id::Socket(name.clone()), &Id::Socket(real.clone()), since)?;
    }
    Ok(table)
}

/// One line of the table, or only the other name of it.
fn answer(args: &Args, table: &Table, name: &str, to_real: bool, whose: &str) -> Result<()> {
    let id: Id = name
        .parse()
        .map_err(|e| Error::Usage(format!("{} {e}", if to_real { "--to-real" } else { "--to-virtual" })))?;
    let row = if to_real { table.to_real(&id) } else { table.to_virtual(&id) };
    let side = if to_real { "" } else { "the host's " };
    let row = row.ok_or_else(|| Error::Usage(format!("{whose} has no binding of {side}{id}")))?;
    if args.json {
        return print_json(&row);
    }
    // Who asks with a bare number is answered with one.
    match if to_real { &row.real } else { &row.id } {
        Id::Process(pid) if !name.contains(':') => print_line(&pid.to_string()),
        other => print_line(&other.to_string()),
    }
}

/// The table for people.
fn lines(table: &Table, owners: &BTreeMap<String, String>, live: bool) -> Vec<String> {
    let mut lines = generations(table);
    let mut rows = vec![["VIRTUAL", "REAL", "SINCE", "WHAT"].map(str::to_owned)];
    // Descriptors that share a description say so: an offset moved through one of them moves for all.
    let mut sharers: BTreeMap<u32, usize> = BTreeMap::new();
    let bound = table.rows();
    let vendors: BTreeMap<_, _> = table.vendors().iter().map(|(path, name)| (device(path), name)).collect();
    for (description, _) in bound.iter().filter_map(|row| row.description) {
        *sharers.entry(description).or_default() += 1;
    }
    for row in &bound {
        let what = match (&row.real, row.description) {
            (_, Some((number, what))) if sharers.get(&number).is_some_and(|n| *n > 1) => {
                format!("{} (description {number}, shared)", Printable(what))
            }
            (_, Some((_, what))) => Printable(what).to_string(),
            (Id::Process(task) | Id::Thread(task), None) if live => comm(*task),
            _ => {
                let id = row.id.to_string();
                let plugin = owners.get(&id).map(|name| format!("plugin {name}"));
                plugin.or_else(|| vendors.get(&id).map(|name| name.to_string())).unwrap_or_default()
            }
        };
        rows.push([row.id.to_string(), row.real.to_string(), row.since.to_string(), what]);
    }
    lines.push(String::new());
    lines.extend(columns(&rows));
    lines.extend(history(table));
    lines
}

/// Where the job has lived.
pub(super) fn generations(table: &Table) -> Vec<String> {
    let line = |generation: &Generation| {
        let Generation { number, host, boot, since, until } = generation;
        let (host, boot) = (Printable(host.as_bytes()), Printable(boot.as_bytes()));
        let until = until.map_or_else(String::new, |until| format!(" until {until}"));
        format!("generation {number}: host {host}, boot {boot}, since {since}{until}")
    };
    table.generations().iter().map(line).collect()
}

/// What was bound before, after an empty line; nothing when there was nothing.
pub(super) fn history(table: &Table) -> Vec<String> {
    let former = table.former();
    if former.is_empty() {
        return Vec::new();
    }
    let head = ["BEFORE", "REAL", "GENERATION", "HOST", "SINCE", "UNTIL"].map(str::to_owned);
    let rows = former.iter().map(|row| {
        let host = row.place.map_or_else(String::new, |place| Printable(place.host.as_bytes()).to_string());
        let until = row.until.map_or_else(String::new, |until| until.to_string());
        let since = row.since.to_string();
        [row.id.to_string(), row.real.to_string(), row.generation.to_string(), host, since, until]
    });
    let mut lines = vec![String::new()];
    lines.extend(columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
    if table.forgotten() > 0 {
        lines.push(format!("and {} older ones, which are no longer kept", table.forgotten()));
    }
    lines
}

/// A task's name, which is its own choice: a terminal must not obey it.
fn comm(task: i32) -> String {
    let name = std::fs::read(format!("/proc/{task}/comm")).unwrap_or_default();
    Printable(name.trim_ascii_end()).to_string()
}
