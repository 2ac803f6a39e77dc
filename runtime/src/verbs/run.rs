//! `ckrun run`: create, start, wait, delete.

use super::new::{NewArgs, bundle_and_id};
use super::party::{self, Party};
use super::{Context, start, write_pid_file};
use crate::error::Result;
use crate::foreground::Foreground;
use crate::sandbox::build::{Built, Start, build};
use crate::sandbox::{console, destroy, hooks};
use crate::status::Status;
use ckrun_plugin::After;

/// Run a bundle: create, start, wait for its end, delete
///
/// The exit status is the job's, or 128 + N when signal N killed it. Signals that ckrun gets are passed on to the job. With
/// process.terminal in config.json, the caller's terminal becomes the job's.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ckrun run oci-bundles/hello\n  ckrun run --bundle bundle/ --detach web")]
pub struct Args {
    #[command(flatten)]
    new: NewArgs,
    /// Do not wait: the container lives on until `ckrun delete`
    #[arg(short, long)]
    detach: bool,
    /// Do not delete the container when its job has ended
    #[arg(long)]
    keep: bool,
    /// The container's name, or (when it holds a slash) the bundle; a name is made up where none is given
    #[arg(value_name = "ID|BUNDLE")]
    word: Option<String>,
}

/// Carries it out.
pub fn run(args: Args, context: &Context) -> Result<i32> {
    let mut options = args.new.options(context)?;
    let (dir, id) = bundle_and_id(args.new.bundle.as_deref(), args.word.as_deref());
    let mut bundle = args.new.load(&dir, &mut options)?;
    let terminal = args.new.wants_terminal(&bundle, args.detach)?;
    let asked = args.new.new_plugins(&bundle)?;
    let mut party = party::begin(context, &id, &mut bundle, &mut options, asked)?;
    let mut foreground = if args.detach { None } else { Some(Foreground::prepare()?) };
    let console = match (&args.new.console_socket, &mut foreground) {
        (Some(path), _) => Some(console::connect_socket(path)?),
        (None, Some(foreground)) if terminal => Some(foreground.offer_terminal()?),
        _ => None,
    };
    // Plugins hear that the job is about to run when the sandbox stands.
    let start = if party.is_some() { Start::OnDemand } else { Start::AtOnce };
    let mut built = build(party::place(&mut party, context, &id), &bundle, &options, start, console)?;
    let settled = match &args.new.pid_file {
        Some(path) => write_pid_file(path, built.init.pid().as_raw()),
        None => Ok(()),
    };
    let settled = settled.and_then(|()| party.map_or(Ok(()), |party| release(party, &mut built)));
    if let Err(e) = settled {
        built.abandon();
        return Err(e);
    }
    hooks::run_leniently(&bundle.spec, "poststart", || built.state.for_hooks(Status::Running));
    let Some(foreground) = foreground else { return Ok(0) };
    log::debug!("the job runs");
    let mut built = built.unlock();
    let status = foreground.wait(&built.init)?;
    log::debug!("the job has ended with {status}");
    // Somebody may have deleted it in the meantime.
    if !args.keep && built.entry.lock().is_ok() {
        destroy::forget(built.entry, &built.state)?;
    }
    Ok(status)
}

/// Lets a job with plugins run, which need us no longer then.
fn release(mut party: Party, built: &mut Built) -> Result<()> {
    party.made(built)?;
    party.client.running(After::Init, None)?;
    party.client.stay()?;
    start::release(&built.entry, &built.state)?;
    party.client.done()
}
