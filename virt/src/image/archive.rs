//! An image as one file: a tar archive, compressed or not, laid out as podman's `container checkpoint --export` lays it out.
//!
//! ```text
//! checkpoint/manifest.json, checkpoint/*      the image
//! config.dump, rootfs-diff.tar, …             what podman needs besides
//! ```
//!
//! Unpacked, the image is a directory as any other, and what else there was is in its folder [`CLIENT`], which is no part
//! of the image; packed again, it is where it was. containerd's archives, which have nothing but the image's files, are
//! unpacked too.
//!
//! Nothing in an archive is believed: its manifest is looked for first, and then nothing is taken for the image but the
//! files that it lists, with the sizes that it gives. All digests are right before the image is there.

mod pack;
mod read;
mod unpack;

pub use pack::pack;
pub use unpack::unpack;

use super::{Error, error};
use crate::Failure;
use std::path::Path;

/// The folder in an image's directory that holds what a client put into the archive besides.
pub const CLIENT: &str = "client";

/// Where the image is in the archive.
const IMAGE: &str = "checkpoint/";

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// By gzip.
    Gzip,
    /// By zstd: podman's own choice.
    Zstd,
}

impl Compression {
    /// What the ending of a file's name stands for; zstd for one that says nothing.
    pub fn of_name(file: &Path) -> Compression {
        match file.extension().and_then(|ending| ending.to_str()) {
            Some("gz" | "tgz") => Compression::Gzip,
            Some("tar") => Compression::None,
            _ => Compression::Zstd,
        }
    }
}

/// A failure while the archive `file` was read. What the kernel has no number for was found in its bytes.
fn unreadable(file: &Path, e: &std::io::Error) -> Error {
    match e.raw_os_error() {
        None => Error::damaged(file, e.to_string()),
        Some(_) => Failure::new(format!("read {}", file.display()), error::errno(e)).into(),
    }
}
