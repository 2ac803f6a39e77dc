//! `ckrun run`: create, start, wait, delete.

use super::new::{NewArgs, bundle_and_id};
use super::{Context, write_pid_file};
use crate::error::Result;
use crate::foreground::Foreground;
use crate::sandbox::build::{Start, build};
use crate::sandbox::{console, destroy, hooks};
use crate::status::Status;

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
    let options = args.new.options(context)?;
    let (dir, id) = bundle_and_id(args.new.bundle.as_deref(), args.word.as_deref());
    let bundle = args.new.load(&dir)?;
    let terminal = args.new.wants_terminal(&bundle, args.detach)?;
    let mut foreground = if args.detach { None } else { Some(Foreground::prepare()?) };
    let console = match (&args.new.console_socket, &mut foreground) {
        (Some(path), _) => Some(console::connect_socket(path)?),
        (None, Some(foreground)) if terminal => Some(foreground.offer_terminal()?),
        _ => None,
    };
    let built = build(&context.store, &id, &bundle, &options, Start::AtOnce, console)?;
    if let Some(path) = &args.new.pid_file
        && let Err(e) = write_pid_file(path, built.init.pid().as_raw())
    {
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
