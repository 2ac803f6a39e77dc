//! `ckrun create`: build the sandbox and let its init wait.

use super::new::NewArgs;
use super::party::{self, Party};
use super::{Context, write_pid_file};
use crate::error::Result;
use crate::sandbox::build::{Built, Start, build};
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
    let mut options = args.new.options(context)?;
    let mut bundle = args.new.load(args.new.bundle.as_deref().unwrap_or(Path::new(".")), &mut options)?;
    args.new.wants_terminal(&bundle, true)?;
    let asked = args.new.new_plugins(&bundle)?;
    let mut party = party::begin(context, &args.id, &mut bundle, &mut options, asked)?;
    let console = args.new.console_socket.as_deref().map(console::connect_socket).transpose()?;
    let place = party::place(&mut party, context, &args.id);
    let mut built = build(place, &bundle, &options, Start::OnDemand, console)?;
    let settled = match &args.new.pid_file {
        Some(path) => write_pid_file(path, built.init.pid().as_raw()),
        None => Ok(()),
    };
    let settled = settled.and_then(|()| party.as_mut().map_or(Ok(()), |party| settle(party, &mut built)));
    if let Err(e) = settled {
        built.abandon();
        return Err(e);
    }
    Ok(())
}

/// From now on the plugins are the container's, and not ours.
fn settle(party: &mut Party, built: &mut Built) -> Result<()> {
    party.made(built)?;
    party.client.stay()?;
    party.client.done()
}
