//! `ckrun start`: let a created container's job run.

use super::{Context, lock, party, require};
use crate::error::{Error, Result};
use crate::sandbox::build::answer_listener;
use crate::sandbox::channel::Note;
use crate::sandbox::{hooks, knock};
use crate::state::{Entry, State};
use crate::status::Status;
use ckrun_plugin::After;

/// Start the job of a created container
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ckrun start web")]
pub struct Args {
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
}

/// Carries it out. It returns when the job's program has been executed, or with the reason why it could not be.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let (entry, state, status) = lock(context, &args.id)?;
    require("start", &args.id, status, &[Status::Created])?;
    let spec = entry.spec()?;
    if state.supervised {
        party::reach(&entry, &state)?.running(After::Init, None)?;
    }
    release(&entry, &state)?;
    hooks::run_leniently(&spec, "poststart", || state.for_hooks(Status::Running));
    Ok(())
}

/// Lets the init go on that waits for it.
///
/// # Errors
/// Why the job's program can't be executed.
pub(super) fn release(entry: &Entry, state: &State) -> Result<()> {
    let spec = entry.spec()?;
    let channel = knock::knock(entry)?;
    // From here on the init does not wait any more, whatever comes of it.
    let socket = entry.start_socket();
    std::fs::remove_file(&socket).map_err(|e| Error::file(&socket, &e))?;
    loop {
        match channel.receive()? {
            None => return Ok(()),
            Some(Note::Failed(why)) => return Err(Error::Init(why)),
            Some(Note::Listener(number)) => {
                let init =
                    state.process().ok_or(Error::InitEnded { during: "start", how: "early".into() })?;
                answer_listener(&spec, state, &init, number)?;
                channel.send(&Note::Continue)?;
            }
            Some(other) => return Err(Error::Init(format!("the init said {other:?} out of turn"))),
        }
    }
}
