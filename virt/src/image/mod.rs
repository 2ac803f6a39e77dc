//! The image: a checkpoint on disk. `virt/IMAGE.md` draws its layouts.
//!
//! An image is a directory that is either complete or no image: [`Writer`] works in a folder that nobody takes for one,
//! and `manifest.json`, which names every other file with its size and digest, is the last thing to appear. [`Image`]
//! reads one, and trusts nothing in it: a name can't lead out of the directory, a size is looked at before anything is
//! read, a count before anything is reserved. The digests (XXH3) find accidents; they don't prove who wrote the image.
//!
//! - [`Writer`], [`FileWriter`], [`PagesWriter`]: make an image, and take it back unless it was committed;
//! - [`Image`]: checks and reads one; [`Stored`]: one of its files, for somebody who can't open it;
//! - [`archive`]: an image as one file, as podman exports it; [`stream`]: on its way to another host;
//! - [`Manifest`], [`Host`]: what it is, and where it was taken;
//! - [`Index`], [`PageRun`], [`Owner`]: which pages of memory it holds, and where;
//! - [`Bytes`], [`unique`]: for the JSON files of the kinds of resources.

pub mod archive;
mod bytes;
mod digest;
mod error;
mod folder;
mod host;
mod index;
mod manifest;
mod name;
mod pages;
mod partial;
mod reader;
mod sparse;
mod stored;
pub mod stream;
#[cfg(test)]
mod tests;
mod unique;
mod writer;

pub use bytes::Bytes;
pub use digest::Digest;
pub use error::Error;
pub use host::{Cpu, Host};
pub use index::{Index, Owner};
pub use manifest::{Entry, Manifest, Parent};
pub use name::{FILES, INDEX, INVENTORY, MANIFEST, PLUGINS};
pub use pages::{MAX_RUN_PAGES, PAGE, PageRun, PagesWriter};
pub use reader::Image;
pub(crate) use sparse::{is_zero, seek as next_data};
pub use stored::{Stored, StoredReader};
pub use unique::unique;
pub use writer::{Committed, FileWriter, Writer};

/// The result of anything in this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The version of the layout that is written, and the newest one that is read.
pub const FORMAT: u32 = 1;

/// The most bytes that a JSON file may have, written or read: 64 MiB. A thousand threads need about 25 MiB.
pub const MAX_JSON: u64 = 64 << 20;

/// The most bytes of a manifest: 16 MiB, about a hundred thousand files.
pub const MAX_MANIFEST: u64 = 16 << 20;

/// The most bytes of a page index: 1 GiB. In the worst case, no two pages side by side, it describes 128 GiB.
pub const MAX_INDEX: u64 = 1 << 30;

/// Files up to this many bytes have their digests checked when an image is opened; larger ones when they are read.
pub const SMALL: u64 = 1 << 20;
