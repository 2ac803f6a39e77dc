//! `ckrun exec`: a further process in a running container.

use super::{Context, look, require, write_pid_file};
use crate::config::{Ask, read_json};
use crate::error::{Error, Result};
use crate::foreground::Foreground;
use crate::sandbox::console;
use crate::sandbox::job::Inherited;
use crate::sandbox::visit::Visit;
use crate::status::Status;
use nix::sys::signal::Signal;
use oci_spec::runtime::{Capability, LinuxCapabilities, Process, Spec};
use std::path::PathBuf;

/// Run a command in a running container
///
/// The new process gets the environment, rights and limits of the container's own, changed by the options; or all of
/// it from a process.json. The exit status is the command's, or 255 when it could not be run.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ckrun exec -t web /bin/sh\n  ckrun exec --user 1000:1000 --env DEBUG=1 web id\n  \
    ckrun exec --detach --pid-file p --process process.json web"
)]
pub struct Args {
    /// File with the process object of the runtime-spec
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Do not wait for its end
    #[arg(short, long)]
    detach: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Socket that receives the master of its terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File that receives its id on the host
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Environment variable (repeatable)
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// User and group, as numbers
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Supplementary group (repeatable)
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Capability to add (repeatable)
    #[arg(short, long, value_name = "CAP")]
    cap: Vec<String>,
    /// Deny gaining privileges by an exec
    #[arg(long)]
    no_new_privs: bool,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// Pass this many descriptors, from 3 up
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Exec in a paused container too: the command starts when it is resumed
    #[arg(long)]
    ignore_paused: bool,
    /// Run in this cgroup below the container's own (repeatable for v1's controllers)
    #[arg(long, value_name = "[CONTROLLER:]PATH")]
    cgroup: Vec<String>,
    /// Taken for compatibility
    #[arg(long, hide = true)]
    no_subreaper: bool,
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Carries it out.
pub fn run(args: Args, context: &Context) -> Result<i32> {
    let inherited = Inherited::find(args.preserve_fds, false);
    let (entry, state, status) = look(context, &args.id)?;
    let allowed: &[Status] = match args.ignore_paused {
        true => &[Status::Running, Status::Created, Status::Paused],
        false => &[Status::Running, Status::Created],
    };
    require("exec in", &args.id, status, allowed)?;
    let init = state.process().ok_or(Error::WrongState {
        verb: "exec in",
        id: args.id.clone(),
        status: Status::Stopped,
    })?;
    let spec = entry.spec()?;
    let process = match &args.process {
        Some(path) => {
            let mut process: Process = read_json(path)?;
            if args.tty {
                process.set_terminal(Some(true));
            }
            process
        }
        None => process_of(&args, &spec)?,
    };
    let terminal = process.terminal().unwrap_or(false);
    let mut foreground = if args.detach { None } else { Some(Foreground::prepare()?) };
    let console = match (&args.console_socket, &mut foreground) {
        (Some(path), _) => Some(console::connect_socket(path)?),
        (None, Some(foreground)) if terminal => Some(foreground.offer_terminal()?),
        (None, None) if terminal => {
            return Err(Error::Usage("--detach with a terminal needs --console-socket".into()));
        }
        _ => None,
    };
    let visit = Visit {
        spec: &spec,
        state: &state,
        init: &init,
        process: &process,
        console,
        inherited,
        cgroups: &args.cgroup,
    };
    let child = visit.start()?;
    if let Some(path) = &args.pid_file
        && let Err(e) = write_pid_file(path, child.pid().as_raw())
    {
        // Nobody would know of it.
        child.signal(Signal::SIGKILL)?;
        return Err(e);
    }
    foreground.map_or(Ok(0), |f| f.wait(&child))
}

/// The container's own process with what the options change.
fn process_of(args: &Args, spec: &Spec) -> Result<Process> {
    let mut process = spec.job()?.clone();
    if args.command.is_empty() {
        return Err(Error::Usage("exec: no command given".into()));
    }
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    if !args.env.is_empty() {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(args.env.iter().cloned());
        process.set_env(Some(env));
    }
    if let Some(user) = &args.user {
        let number = |word: &str| {
            word.parse::<u32>().map_err(|_| Error::Usage(format!("--user {user}: {word:?} is not a number")))
        };
        let (uid, gid) = user.split_once(':').map_or((user.as_str(), None), |(u, g)| (u, Some(g)));
        process.user_mut().set_uid(number(uid)?);
        if let Some(gid) = gid {
            process.user_mut().set_gid(number(gid)?);
        }
    }
    if !args.additional_gids.is_empty() {
        let mut gids = process.user().additional_gids().clone().unwrap_or_default();
        gids.extend(&args.additional_gids);
        process.user_mut().set_additional_gids(Some(gids));
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if args.apparmor.is_some() {
        process.set_apparmor_profile(args.apparmor.clone());
    }
    if args.process_label.is_some() {
        process.set_selinux_label(args.process_label.clone());
    }
    add_capabilities(&mut process, &args.cap)?;
    Ok(process)
}

/// Like runc, into all sets but the inheritable one: a program that the command executes later must not get it from
/// there. It is ambient only if the configuration makes it inheritable.
fn add_capabilities(process: &mut Process, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut sets = process.capabilities().clone().unwrap_or_else(no_capabilities);
    for name in names {
        let capability: Capability = serde_json::from_value(name.as_str().into())
            .map_err(|_| Error::Usage(format!("--cap {name}: is not a capability")))?;
        let add = |set: &Option<std::collections::HashSet<Capability>>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(capability);
            Some(set)
        };
        sets.set_bounding(add(sets.bounding()));
        sets.set_effective(add(sets.effective()));
        sets.set_permitted(add(sets.permitted()));
        sets.set_ambient(add(sets.ambient()));
    }
    process.set_capabilities(Some(sets));
    Ok(())
}

/// oci-spec's default is not empty.
fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_bounding(None).set_effective(None).set_permitted(None).set_inheritable(None).set_ambient(None);
    none
}
