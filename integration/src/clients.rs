//! ckrun under its real clients: podman, buildah, containerd and Docker.
//!
//! Every test works in an [`Enclosure`], so that it meets no other test and leaves nothing behind, whatever the client
//! has hard-coded. The container images are made of the host's static busybox; nothing is downloaded.

pub mod call;
pub mod containerd;
pub mod enclosure;
pub mod image;
pub mod podman;
pub mod terminal;

pub use crate::run::binary as ckrun;
pub use call::Done;
pub use containerd::Containerd;
pub use enclosure::{Daemon, Enclosure};
pub use podman::Podman;
pub use terminal::Terminal;

use std::path::Path;
use std::time::Duration;

/// After this long a program that has not answered is taken for hanging. It is generous because the tests share their
/// processors; no test waits this long when everything works.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The path of a client's program, or a failure that names the Debian package it comes from.
pub fn program(path: &str, package: &str) -> String {
    assert!(Path::new(path).is_file(), "{path} is missing: apt-get install {package}");
    path.into()
}
