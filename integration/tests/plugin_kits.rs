//! The kits to write plugins with, in C and in Python: plugins/python/test_kits.py speaks the protocol with both.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::run::{finish, needs};
use std::path::Path;
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
