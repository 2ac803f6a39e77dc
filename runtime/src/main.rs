//! The `ckrun` command: parse, carry out, and say what went wrong.

mod entry;

use ckrun::cli::{Cli, Verb};
use ckrun::criu;
use ckrun::error::Error;
use ckrun::report::Report;
use ckrun::sandbox::shield;
use clap::error::{ContextKind, ContextValue};
use nix::sys::signal::{SigHandler, Signal, signal};
use std::process::ExitCode;

/// runc's answer to a verb it does not know.
const UNKNOWN_VERB: u8 = 3;

fn main() -> ExitCode {
    if criu::is_meant(std::env::args_os().next().as_deref()) {
        return criu::main(std::env::args_os().skip(1));
    }
    if let Err(e) = shield::raise(std::env::args_os().skip(1)) {
        eprintln!("error: {e}");
        return ExitCode::FAILURE;
    }
    keep_children();
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    let report = Report::start(&cli.global, cli.journal());
    // A failed exec must not look like the exit status of the command: runc answers 255.
    let failure = if matches!(cli.verb, Verb::Exec(_)) { 255 } else { 1 };
    match cli.run(&report) {
        Ok(code) => {
            report.finish();
            ExitCode::from(u8::try_from(code).unwrap_or(failure))
        }
        Err(e) => fail(&report, &e, failure),
    }
}

/// A caller that ignores SIGCHLD hands that on through the exec (execve(2)): the kernel would reap our children before
/// we could ask how they ended.
fn keep_children() {
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

fn fail(report: &Report, e: &Error, code: u8) -> ExitCode {
    report.error(e);
    ExitCode::from(code)
}

fn is_empty(value: &ContextValue) -> bool {
    matches!(value, ContextValue::String(text) if text.is_empty())
}

fn usage(e: &clap::Error) -> ExitCode {
    // Help and version go to stdout, a wrong line to stderr.
    let _ = e.print();
    match e.kind() {
        clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        clap::error::ErrorKind::InvalidSubcommand => ExitCode::from(UNKNOWN_VERB),
        // podman finds out by these words of runc's whether there is such an option.
        clap::error::ErrorKind::InvalidValue if e.get(ContextKind::InvalidValue).is_none_or(is_empty) => {
            if let Some(option) = e.get(ContextKind::InvalidArg) {
                eprintln!("flag needs an argument: {option}");
            }
            ExitCode::FAILURE
        }
        _ => ExitCode::FAILURE,
    }
}
