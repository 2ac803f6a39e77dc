//! ckrun under its real clients: podman, buildah, containerd and Docker.
//!
//! Every test works in an [`Enclosure`], so that it meets no other test and leaves nothing behind, whatever the client
//! has hard-coded. The container images are made of the host's static busybox; nothing is downloaded.

// A harness reports by panicking: the test that uses it fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod call;
pub mod enclosure;
pub mod image;
pub mod terminal;

pub use call::Done;
pub use enclosure::{Daemon, Enclosure};
pub use terminal::Terminal;

use std::path::{Path, PathBuf};
use std::time::Duration;

/// After this long a program that has not answered is taken for hanging. It is generous because the tests share their
/// processors; no test waits this long when everything works.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The ckrun under test: `$CKRUN`, else the one that cargo has built beside the test.
pub fn ckrun() -> PathBuf {
    let path = std::env::var_os("CKRUN").map_or_else(
        || {
            let test = std::env::current_exe().unwrap();
            test.parent().and_then(Path::parent).unwrap().join("ckrun")
        },
        PathBuf::from,
    );
    assert!(path.is_file(), "{}: no ckrun here: cargo build -p ckrun, or set CKRUN", path.display());
    path
}

/// The path of a client's program, or a failure that names the Debian package it comes from.
pub fn program(path: &str, package: &str) -> String {
    assert!(Path::new(path).is_file(), "{path} is missing: apt-get install {package}");
    path.into()
}
