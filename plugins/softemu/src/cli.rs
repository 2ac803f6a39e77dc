//! The command line: the server, the testbench, the plugin, and the control socket by hand. It is the same for every design
//! that there is a server for.

use crate::control::{Claim, Control, Fault, When};
use crate::design::element::Element;
use crate::error::{Doing, Error, Result};
use crate::hardware::Hardware;
use crate::link::Kind;
use crate::plugin::Softemu;
use crate::server::{self, Server};
use crate::testbench;
use ckrun_plugin::serve::SOCKET;
use clap::{Parser, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// A small deterministic hardware design behind sockets, ptys and shared memory
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve slots of the design until SIGTERM
    Serve(server::Options),
    /// Run a testbench against a link
    Testbench(testbench::Options),
    /// Be the plugin by which ckrun ties a job to a slot; ckrun starts it
    Plugin,
    /// Ask a server something, and print the answer as JSON
    Control {
        /// The server's control socket
        #[arg(value_name = "SOCKET")]
        socket: PathBuf,
        /// In whose name
        #[arg(long, value_name = "NAME", default_value = "me")]
        owner: String,
        #[command(subcommand)]
        verb: Verb,
    },
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Take a slot
    Claim {
        /// Which one; any if not given
        #[arg(long, value_name = "N")]
        slot: Option<usize>,
        /// With which links
        #[arg(long, value_delimiter = ',', default_values_t = Kind::ALL)]
        links: Vec<Kind>,
        /// A job may close a link and open it again
        #[arg(long)]
        reconnect: bool,
        /// Frozen, to be loaded
        #[arg(long)]
        frozen: bool,
    },
    /// Give a slot back
    Release { slot: usize },
    /// Finish the transaction under way, take no further one
    Freeze { slot: usize },
    /// Go on
    Thaw { slot: usize },
    /// Save a frozen slot to a file
    Save { slot: usize, file: PathBuf },
    /// Load a frozen slot from a file
    Load { slot: usize, file: PathBuf },
    /// Whether a file could be loaded here
    Check { file: PathBuf },
    /// Digest of a slot's state
    Digest { slot: usize },
    /// A slot's cycle
    Cycle { slot: usize },
    /// Bytes on a slot's links
    Drain { slot: usize },
    /// Flip a bit of a state element, now or later
    Fault {
        slot: usize,
        /// ram:N, scratch:N, in:N, out:N, accumulator, stage, …
        element: Element,
        /// From 0
        bit: u32,
        /// At this cycle
        #[arg(long, value_name = "CYCLE", conflicts_with = "after")]
        at: Option<u64>,
        /// After so many transactions
        #[arg(long, value_name = "TRANSACTIONS", default_value_t = 0)]
        after: u64,
    },
    /// The server and its slots
    List,
}

/// The whole program, for a design.
pub fn main<H: Hardware>() -> ExitCode {
    // `--plugin ./ckrun-softemu:server=…` gives a program no words.
    if std::env::args_os().len() == 1 && std::env::var_os(SOCKET).is_some() {
        return plugin();
    }
    let done = match Cli::parse().command {
        Command::Serve(options) => serve::<H>(options),
        Command::Testbench(options) => run(&options),
        Command::Plugin => return plugin(),
        Command::Control { socket, owner, verb } => ask(&socket, &owner, verb),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            // What a fault campaign must tell apart: a wrong reply, and no reply.
            ExitCode::from(match error {
                Error::Mismatch { .. } => 2,
                Error::Gone { .. } => 3,
                _ => 1,
            })
        }
    }
}

fn complain(error: &dyn std::error::Error) {
    let name = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    eprintln!("{}: {error}", name.file_name().unwrap_or_default().display());
}

fn plugin() -> ExitCode {
    match ckrun_plugin::serve(Softemu::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve<H: Hardware>(options: server::Options) -> Result<()> {
    let control = options.directory.join("control");
    let mut server = Server::<H>::start(options)?;
    say(&format!("serving at {}", control.display()))?;
    server.run()
}

fn run(options: &testbench::Options) -> Result<()> {
    let outcome = testbench::run(options, &mut std::io::stdout(), &mut |_, _| Ok(()))?;
    say(&outcome.to_string())
}

fn ask(socket: &std::path::Path, owner: &str, verb: Verb) -> Result<()> {
    let mut control = Control::connect(socket, owner)?;
    let answer = match verb {
        Verb::Claim { slot, links, reconnect, frozen } => {
            json(control.claim(&Claim { slot, links, reconnect, frozen })?)
        }
        Verb::Release { slot } => json(control.release(slot)?),
        Verb::Freeze { slot } => json(control.freeze(slot)?),
        Verb::Thaw { slot } => json(control.thaw(slot)?),
        Verb::Save { slot, file } => json(control.save(slot, &file)?),
        Verb::Load { slot, file } => json(control.load(slot, &file)?),
        Verb::Check { file } => json(control.check(&file)?),
        Verb::Digest { slot } => json(control.digest(slot)?),
        Verb::Cycle { slot } => json(control.cycle(slot)?),
        Verb::Drain { slot } => json(control.drain(slot)?),
        Verb::Fault { slot, element, bit, at, after } => {
            let at = at.map_or(When::Transactions(after), When::Cycle);
            json(control.fault(slot, &Fault { element, bit, at })?)
        }
        Verb::List => json(control.list()?),
    };
    answer.map_or(Ok(()), |answer| say(&answer))
}

/// An answer as a person reads it; none if there is nothing to say.
fn json(answer: impl serde::Serialize) -> Option<String> {
    serde_json::to_string_pretty(&answer).ok().filter(|text| text != "null")
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").doing(|| "print")
}
