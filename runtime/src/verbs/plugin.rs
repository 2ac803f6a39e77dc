//! `ckrun plugin check`: does a plugin keep to the protocol?

use super::{Context, columns, print_json, print_line};
use crate::error::{Error, Result};
use crate::plugin::Manifest;
use crate::plugin::check::{Step, Verdict, check};
use ckrun_plugin::event::LONGEST;
use ckrun_plugin::{Event, Grant};

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
    let Verb::Check(args) = args.verb;
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
        let grant = Grant::ALL.into_iter().find(|grant| grant.name() == name);
        let unknown = || Error::Usage(format!("--grant {name}: there are memory, registers and signals"));
        manifest.grants.push(grant.ok_or_else(unknown)?);
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
