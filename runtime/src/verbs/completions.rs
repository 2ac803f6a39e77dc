//! `ckrun completions`: what makes a shell complete ckrun's words.

use crate::error::Result;
use clap_complete::Shell;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ckrun completions bash > /etc/bash_completion.d/ckrun")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Carries it out for the command line that `command` defines.
pub fn run(args: &Args, mut command: clap::Command) -> Result<()> {
    clap_complete::generate(args.shell, &mut command, "ckrun", &mut std::io::stdout());
    Ok(())
}
