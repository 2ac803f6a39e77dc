//! Assembles the guest. Elsewhere than on x86, Debian's binutils-x86-64-linux-gnu can.

use std::env::{consts::ARCH, var};
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=guest.s");
    let Ok(out) = var("OUT_DIR") else { return };
    let out = Path::new(&out);
    let (object, guest) = (out.join("guest.o"), out.join("guest"));
    let prefix = if ARCH == "x86_64" { "" } else { "x86_64-linux-gnu-" };
    let run = |tool: &str, words: &[&str], files: [&Path; 2]| {
        let program = format!("{prefix}{tool}");
        match Command::new(&program).args(words).arg("-o").args(files).status() {
            Ok(status) if status.success() => {}
            Ok(status) => println!("cargo::error={program} of the guest: {status}"),
            Err(e) => println!("cargo::error={program} of the guest: {e}; Debian's package binutils has it"),
        }
    };
    run("as", &["--32"], [&object, Path::new("guest.s")]);
    run("ld", &["-m", "elf_i386", "-Ttext", "0x100000", "-s"], [&guest, &object]);
}
