//! `ckrun completions`: what makes a shell complete ckrun's words.

use crate::cli::Cli;
use crate::error::Result;
use clap::CommandFactory;
use clap_complete::Shell;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ckrun completions bash > /etc/bash_completion.d/ckrun")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Carries it out.
pub fn run(args: &Args) -> Result<()> {
    clap_complete::generate(args.shell, &mut Cli::command(), "ckrun", &mut std::io::stdout());
    Ok(())
}
