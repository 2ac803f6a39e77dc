//! The kits to write plugins with, in C and in Python: plugins/python/test_kits.py speaks the protocol with both, and so
//! does ckrun.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::run::{binary, finish, needs};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the C kit, and runs the tests of that name.
fn passes(tests: &str) {
    needs("gcc", "gcc");
    needs("g++", "g++");
    needs("make", "make");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/python/test_kits.py");
    let mut python = Command::new(needs("python3", "python3"));
    python.arg("-B").arg(script).arg(tests);
    let ended = finish(python);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
}

#[test]
fn plugins_in_c() {
    passes("CLanguage");
}

#[test]
fn plugins_in_python() {
    passes("Python");
}

#[test]
fn json_in_c() {
    passes("Json");
}

fn plugins() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins")
}

/// The example of a kit lives through a whole life with ckrun.
fn is_good(program: &Path) {
    let mut check = Command::new(binary());
    check.args(["plugin", "check"]).arg(format!("{}:device=/dev/null", program.display()));
    let said = finish(check).ok();
    assert!(said.contains("keeps to the protocol"), "{said}");
}

#[test]
fn ckrun_and_the_example_in_python() {
    needs("python3", "python3");
    is_good(&plugins().join("python/example.py"));
}

#[test]
fn ckrun_and_the_example_in_c() {
    needs("gcc", "gcc");
    let dir = tempfile::tempdir().unwrap();
    let mut make = Command::new(needs("make", "make"));
    make.arg("-C").arg(plugins().join("c")).arg(format!("BUILD={}", dir.path().display()));
    finish(make).ok();
    is_good(&dir.path().join("example"));
}
