//! Real services with real clients at work, all in one container: checkpointed under load, killed and restored, three
//! times. Each driver (`programs/services`) verifies what the clients are told, and nothing may be missing or come twice.
//! `make test-all` runs them, since they are heavy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::programs::{program, source, survives};
use ckrun_integration::run::needs;

/// Runs a driver, for which the `programs` of these packages must be there.
fn service(driver: &str, programs: &[(&str, &str)]) {
    needs("python3", "python3");
    for (program, package) in programs {
        needs(program, package);
    }
    let files = ["service.py", driver].map(|file| source("services").join(file));
    survives(&program(&["python3", &format!("/work/{driver}")], &files));
}

#[test]
#[ignore = "heavy: make test-all"]
fn redis() {
    service("redis.py", &[("redis-server", "redis-server")]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn asyncio() {
    service("echo.py", &[]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn nginx() {
    service("nginx.py", &[("nginx", "nginx-light")]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn postgresql() {
    service("postgres.py", &[("pgbench", "postgresql")]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn tmux() {
    service("tmux.py", &[("tmux", "tmux")]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn a_supervisor() {
    service("supervisor.py", &[("supervisord", "supervisor")]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn stress_ng() {
    service("stress.py", &[("stress-ng", "stress-ng")]);
}
