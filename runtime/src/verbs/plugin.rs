//! `ckrun plugin check`: does a plugin keep to the protocol? `ckrun plugin list`: how are those of a job? `ckrun plugin
//! restart`: new processes for those that have ended.

use super::{Context, columns, lock, look, print_json, print_line, require};
use crate::error::{Error, Result};
use crate::plugin::Manifest;
use crate::plugin::asked::{GRANTS, named};
use crate::plugin::check::{Step, Verdict, check};
use crate::status::Status;
use crate::supervisor::record::{Plugin, in_table};
use crate::supervisor::{Record, launch};
use ckrun_plugin::event::LONGEST;
use ckrun_plugin::{Event, Reason};
use ckrun_virt::table::id::Printable;
use serde::Serialize;

/// Plugins, which speak for what a job is tied to outside its container
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Check(Check),
    List(List),
    Restart(Restart),
}

/// Show the plugins of a job
///
/// Their state, what they answer for, the event that they heard of last and how long it took.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ckrun plugin list tb1\n  \
        ckrun plugin list --json tb1 | jq '.plugins[] | select(.state != \"attached\")'")]
struct List {
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
}

/// Start those plugins of a job anew whose processes have ended
///
/// They hear of what they have bound, and take over (`recover`). Every verb that needs them does the same before anything
/// else. The exit status is 1 if one is still of no use; the job goes on in any case.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ckrun plugin restart tb1")]
struct Restart {
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
}

/// Play a whole life with a plugin and say what it does wrong
///
/// The plugin is started as for a job and hears of every event, for a job that does not exist: init, two checkpoints of
/// which one fails, a restart by a new process with the folder that was saved, and the end. It is also asked things that
/// it can't know, given a damaged state, and left alone. The exit status is 1 if anything was wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ckrun plugin check ./softemu:slot=3\n  \
        ckrun plugin check emu                       by its manifest, /etc/ckrun/plugins.d/emu.json\n  \
        ckrun plugin check --json --deadline 2 ./softemu | jq '.steps[] | select(.verdict == \"wrong\")'")]
struct Check {
    /// A program, or the name of a manifest, with options
    #[arg(value_name = "PROGRAM[:KEY=VALUE,...]")]
    plugin: String,
    /// The time that it has for each event, in place of the protocol's and its own
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<f64>,
    /// What it may do with the job, beside what its manifest grants: memory, registers, signals
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',')]
    grant: Vec<String>,
    /// Print the steps as JSON
    #[arg(long)]
    json: bool,
}

/// Carries it out.
pub fn run(args: Args, context: &Context) -> Result<i32> {
    match args.verb {
        Verb::Check(args) => try_out(&args, context),
        Verb::List(args) => list(&args, context).map(|()| 0),
        Verb::Restart(args) => restart(&args, context),
    }
}

fn restart(args: &Restart, context: &Context) -> Result<i32> {
    let (entry, state, status) = lock(context, &args.id)?;
    let alive = [Status::Created, Status::Running, Status::Paused];
    require("plugin restart", &args.id, status, &alive)?;
    if state.supervised {
        super::party::reach(&entry, &state)?;
    }
    let record = super::party::record(&entry, &state)?;
    let gone = record.is_some_and(|record| record.plugins.iter().any(|plugin| plugin.gone.is_some()));
    Ok(i32::from(gone))
}

fn list(args: &List, context: &Context) -> Result<()> {
    let (entry, state, _) = look(context, &args.id)?;
    let record = super::party::record(&entry, &state)?;
    let lives = record.is_some() && launch::lives(entry.dir());
    let killed = record.as_ref().map_or(0, |record| record.killed);
    let plugins = record.map_or_else(Vec::new, |record| rows(&record, lives));
    if args.json {
        let supervisor = if lives { "running" } else { "gone" };
        let all = serde_json::json!({ "supervisor": supervisor, "killed": killed, "plugins": plugins });
        return print_json(&all);
    }
    let head = ["NAME", "VERSION", "PID", "STATE", "LAST", "TOOK", "OWNS"].map(str::to_owned);
    let row = |row: &Row| {
        let took = row.seconds.map_or_else(String::new, |seconds| format!("{seconds:.3} s"));
        let pid = row.pid.map_or_else(String::new, |pid| pid.to_string());
        let names = [row.name.clone(), row.version.clone(), pid, row.state.clone()];
        let [name, version, pid, state] = names;
        [name, version, pid, state, row.last.map_or("", Event::name).into(), took, row.owns.join(" ")]
    };
    let all: Vec<_> = std::iter::once(head).chain(plugins.iter().map(row)).collect();
    columns(&all).iter().try_for_each(|line| print_line(&Printable(line.as_bytes()).to_string()))
}

/// A plugin, as it is shown.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    state: String,
    owns: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Event>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
}

fn rows(record: &Record, lives: bool) -> Vec<Row> {
    let row = |plugin: &Plugin| {
        let state = match (&plugin.gone, &record.over, record.event) {
            (_, Some(Reason::Ended), _) => "released: the job has ended".into(),
            (_, Some(Reason::Checkpointed), _) => "released: the job is in an image".into(),
            (_, Some(Reason::Failed), _) => "released: the job was not made".into(),
            (Some(why), ..) => format!("failed: {why}"),
            _ if !lives => {
                "gone: the supervisor was killed; the next verb that needs it starts another".into()
            }
            (None, None, Some(event)) => format!("at {event}"),
            (None, None, None) if record.killed > 0 => {
                "attached: a supervisor was killed, another has taken over".into()
            }
            (None, None, None) => "attached".into(),
        };
        let here = lives && plugin.gone.is_none();
        let owns = plugin.bindings.iter().filter_map(in_table).map(|(id, _)| id.to_string());
        Row {
            name: plugin.name().into(),
            version: plugin.version.clone(),
            pid: plugin.process.map(|process| process.pid).filter(|_| here),
            state,
            owns: owns.collect(),
            last: plugin.last.map(|(event, _)| event),
            seconds: plugin.last.map(|(_, seconds)| seconds),
        }
    };
    record.plugins.iter().map(row).collect()
}

fn try_out(args: &Check, context: &Context) -> Result<i32> {
    let mut manifest = Manifest::of(&args.plugin, &context.global.plugin_dir)?;
    if let Some(seconds) = args.deadline {
        if !(seconds > 0.0 && seconds <= LONGEST) {
            return Err(Error::Usage(format!(
                "--deadline {seconds}: must be above 0 and at most {LONGEST} seconds"
            )));
        }
        manifest.deadlines = Event::ALL.into_iter().map(|event| (event, seconds)).collect();
    }
    for name in &args.grant {
        let unknown = || Error::Usage(format!("--grant {name}: {GRANTS}"));
        manifest.grants.push(named(name).ok_or_else(unknown)?);
    }
    let steps = check(&manifest)?;
    let wrong = steps.iter().filter(|step| step.verdict == Verdict::Wrong).count();
    if args.json {
        let all = serde_json::json!({"plugin": manifest.name, "ok": wrong == 0, "steps": steps});
        print_json(&all)?;
    } else {
        for line in lines(&steps) {
            print_line(&line)?;
        }
        print_line("")?;
        print_line(&match wrong {
            0 => format!("plugin {} keeps to the protocol", manifest.name),
            _ => format!(
                "plugin {} does not keep to the protocol: {wrong} of {} steps wrong",
                manifest.name,
                steps.len()
            ),
        })?;
    }
    Ok(i32::from(wrong > 0))
}

fn lines(steps: &[Step]) -> Vec<String> {
    let row = |step: &Step| {
        let seconds = format!("{:.3} s", step.seconds);
        [
            step.verdict.word().to_owned(),
            step.process.to_string(),
            step.step.clone(),
            seconds,
            step.said.clone(),
        ]
    };
    let head = ["", "PROCESS", "STEP", "TOOK", ""].map(str::to_owned);
    columns(&std::iter::once(head).chain(steps.iter().map(row)).collect::<Vec<_>>())
}
