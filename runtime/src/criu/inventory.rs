//! `inventory.img`: the file by whose name clients tell a checkpoint from another directory. In ckrun's it says whose it is.

use crate::error::Result;
use ckrun_virt::image::{self, Image};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Its name.
pub const FILE: &str = image::INVENTORY;

/// What is in it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inventory {
    /// For people who look for CRIU's.
    note: String,
    /// The container whose job it was.
    container: String,
}

/// Its content for the image of a container.
pub fn of(container: &str) -> Result<Vec<u8>> {
    let note = format!(
        "This is an image of ckrun {}, not of CRIU: manifest.json says what is in it.",
        env!("CARGO_PKG_VERSION")
    );
    let inventory = Inventory { note, container: container.to_owned() };
    let mut bytes = serde_json::to_vec_pretty(&inventory)
        .map_err(|e| crate::error::Error::Json { path: FILE.into(), why: e.to_string() })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Whether `dir` holds an older image of this container. A new one takes its place, as with runc: podman and people
/// write checkpoint after checkpoint to one directory. Another container's is never written over.
pub fn is_of(dir: &Path, container: &str) -> bool {
    let Ok(image) = Image::open(dir) else { return false };
    image.json::<Inventory>(FILE).is_ok_and(|inventory| inventory.container == container)
}
