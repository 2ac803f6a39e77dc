//! Paths of the container behind which somebody else's device is: a rule of the command line, later a plugin, says on each
//! host what that is. ckrun opens it again by its path and leaves its state to the owner.

use crate::image::Bytes;
use crate::table::{Id, Table};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The owned paths of a job. What is below one belongs to it.
#[derive(Debug, Clone, Default)]
pub struct Owned(Vec<Bytes>);

impl Owned {
    /// Those that the table knows.
    pub fn of(table: &Table) -> Owned {
        let device = |row: crate::table::Row<'_>| match row.id {
            Id::Device(path) => Some(path),
            _ => None,
        };
        Owned(table.rows().into_iter().filter_map(device).collect())
    }

    /// Somebody answers for what is at `path`. Only whole components count.
    pub fn covers(&self, path: &[u8]) -> bool {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        self.0.iter().any(|owned| path.starts_with(owned.as_path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_components_count() {
        let owned = Owned(vec![b"/dev/emu0"[..].into(), b"/dev/boards"[..].into()]);
        for (path, covered) in [
            ("/dev/emu0", true),
            ("/dev/emu0/in", true),
            ("/dev/emu01", false),
            ("/dev/boards/7", true),
            ("/dev", false),
        ] {
            assert_eq!(owned.covers(path.as_bytes()), covered, "{path}");
        }
    }
}
