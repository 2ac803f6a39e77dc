//! `ckrun-softemu`: everything is in the library.

use ckrun_softemu::design::Design;

fn main() -> std::process::ExitCode {
    ckrun_softemu::cli::main::<Design>()
}
