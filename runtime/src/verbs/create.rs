//! `ckrun create`: build the sandbox and let its init wait.

use super::new::NewArgs;
use super::{Context, write_pid_file};
use crate::error::Result;
use crate::sandbox::build::{Start, build};
use crate::sandbox::console;
use std::path::Path;

/// Build a container's sandbox; `ckrun start` runs the job in it
///
/// Namespaces, mounts, devices, cgroups and identity are made and checked, and so is the command. The standard streams
/// of create are the job's. On failure nothing of the container is left behind.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ckrun create --bundle bundle/ --pid-file web.pid web && ckrun start web")]
pub struct Args {
    #[command(flatten)]
    new: NewArgs,
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
}

/// Carries it out.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let options = args.new.options(context)?;
    let bundle = args.new.load(args.new.bundle.as_deref().unwrap_or(Path::new(".")))?;
    args.new.wants_terminal(&bundle, true)?;
    let console = args.new.console_socket.as_deref().map(console::connect_socket).transpose()?;
    let built = build(&context.store, &args.id, &bundle, &options, Start::OnDemand, console)?;
    if let Some(path) = &args.new.pid_file
        && let Err(e) = write_pid_file(path, built.init.pid().as_raw())
    {
        built.abandon();
        return Err(e);
    }
    Ok(())
}
