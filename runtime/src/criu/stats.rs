//! `stats-dump` and `stats-restore`: figures of a checkpoint and a restart in CRIU's format, for `podman container
//! checkpoint --print-stats`, and because `--export` wants the file to be there.
//!
//! The format: two magic numbers (a service file; statistics), the length of the message, 32 bits each, and the message
//! (stats.proto of CRIU). Times are in microseconds. What ckrun does not measure apart is 0.

use super::wire::{number, text};
use crate::error::{Error, Result};
use crate::journal::create_anew;
use ckrun_virt::image::PAGE;
use ckrun_virt::{checkpoint, restore};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

const SERVICE: u32 = 0x5510_5940;
const STATS: u32 = 0x5709_3306;

/// Writes `stats-dump` to the directory `dir`.
///
/// # Errors
/// The file can't be written.
pub fn dumped(dir: &Path, report: &checkpoint::Report) -> Result<()> {
    let mut dump = Vec::new();
    for (field, value) in [
        // How long it took to stop the job; how long it stood still.
        (1, 0),
        (2, micros(report.frozen)),
        // Reading memory and writing it go on at the same time.
        (3, 0),
        (4, 0),
        (5, (report.memory + report.zeroes) / PAGE),
        // Pages that an earlier image has, or a later one will have: no image needs another.
        (6, 0),
        (7, report.memory / PAGE),
        (9, 0),
    ] {
        number(&mut dump, field, value);
    }
    write(dir, "stats-dump", 1, &dump)
}

/// Writes `stats-restore` to the directory `dir`.
///
/// # Errors
/// The file can't be written.
pub fn restored(dir: &Path, report: &restore::Report) -> Result<()> {
    let mut restore = Vec::new();
    // Pages compared with a parent's, and found to be shared; the time for making processes, and for all.
    for (field, value) in [(1, 0), (2, 0), (3, 0), (4, micros(report.total)), (5, report.bytes / PAGE)] {
        number(&mut restore, field, value);
    }
    write(dir, "stats-restore", 2, &restore)
}

fn micros(time: Duration) -> u64 {
    // The fields have 32 bits: 71 minutes.
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX).into()
}

fn write(dir: &Path, name: &str, field: u64, inner: &[u8]) -> Result<()> {
    let mut message = Vec::new();
    text(&mut message, field, inner);
    let mut bytes: Vec<u8> =
        [SERVICE, STATS, message.len() as u32].iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend_from_slice(&message);
    let path = dir.join(name);
    std::fs::create_dir_all(dir).map_err(|e| Error::file(dir, &e))?;
    create_anew(&path).and_then(|mut file| file.write_all(&bytes)).map_err(|e| Error::file(&path, &e))
}
