//! `ckrun kill`: a signal for a container.

use super::{Context, look};
use crate::config::Ask;
use crate::error::{Error, Result};
use crate::status::Status;
use nix::sys::signal::Signal;
use oci_spec::runtime::LinuxNamespaceType as Kind;
use std::str::FromStr;

/// Send a signal to a container's init, or to all its processes
///
/// SIGNAL is a name with or without SIG, in any case, or a number; RTMIN+3 works too.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ckrun kill web          (SIGTERM)\n  ckrun kill web KILL\n  ckrun kill --all web 9"
)]
pub struct Args {
    /// Signal every process of the container
    #[arg(short, long)]
    all: bool,
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
    /// The signal
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM", allow_hyphen_values = true)]
    signal: String,
}

/// Carries it out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let signal = parse(&args.signal)?;
    let (entry, state, status) = look(context, &args.id)?;
    // Without a pid namespace of its own, the end of the init ends nobody else: to kill the container means all.
    let shares_pids = || entry.spec().map(|spec| spec.namespace(Kind::Pid).is_none());
    let all = args.all || (signal == libc::SIGKILL && shares_pids()?);
    let init = state.process();
    if all && !state.cgroups.is_empty() {
        state.cgroups.kill_all(signal)?;
    } else if let Some(init) = &init {
        init.signal_number(signal)?;
    }
    if init.is_none() && !args.all {
        return Err(Error::WrongState { verb: "kill", id: args.id.clone(), status: Status::Stopped });
    }
    // On cgroup v1 a frozen process does not even die of SIGKILL.
    if signal == libc::SIGKILL {
        if status == Status::Paused {
            state.cgroups.thaw()?;
        }
        state.cgroups.thaw_to_die();
    }
    Ok(())
}

fn parse(word: &str) -> Result<i32> {
    let unknown = || Error::Usage(format!("unknown signal {word:?}"));
    if let Ok(number) = word.parse::<i32>() {
        return if (0..=libc::SIGRTMAX()).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = word.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str, sign| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<i32>().ok(),
    };
    let realtime = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => offset(rest, '+').map(|n| libc::SIGRTMIN() + n),
        (_, Some(rest)) => offset(rest, '-').map(|n| libc::SIGRTMAX() - n),
        _ => None,
    };
    match realtime {
        Some(number) if (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number) => Ok(number),
        Some(_) => Err(unknown()),
        None => Signal::from_str(&format!("SIG{name}")).map(|s| s as i32).map_err(|_| unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (word, number) in
            [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("winch", 28), ("sigterm", 15), ("0", 0)]
        {
            assert_eq!(parse(word).unwrap(), number, "{word}");
        }
        assert_eq!(parse("RTMIN+3").unwrap(), libc::SIGRTMIN() + 3);
        for bad in ["", "NOPE", "-1", "65", "RTMIN+99", "SIGSIGKILL"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
