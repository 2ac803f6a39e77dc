//! The `ckrun` command.

fn main() {}
