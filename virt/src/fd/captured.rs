//! What a job has open, as it goes into an image.

use super::socket::inet::Connections;
use super::{FILE, Files};
use crate::Error;
use crate::image::Writer;
use crate::mounts::Hidden;
use std::os::fd::OwnedFd;

/// What a job has open, and the contents that have to go with it.
#[derive(Debug)]
pub struct Captured {
    /// The graph.
    pub files: Files,
    pub(super) contents: Vec<Content>,
    /// The TCP connections, which have to be told how they end.
    pub connections: Connections,
    /// The directories that it needs, and that mounts hide.
    pub(crate) nooks: Vec<Hidden>,
}

/// Bytes for a file of the image.
#[derive(Debug)]
pub(super) struct Content {
    pub name: String,
    pub source: Source,
}

#[derive(Debug)]
pub(super) enum Source {
    File(OwnedFd),
    Bytes(Vec<u8>),
}

impl Captured {
    /// Writes [`FILE`] and the contents. Deleted files and memfds are read only now: nobody may have changed them since.
    ///
    /// # Errors
    /// Those of the image.
    pub fn write(&self, image: &mut Writer) -> Result<(), Error> {
        image.json(FILE, &self.files)?;
        for content in &self.contents {
            match &content.source {
                Source::File(fd) => image.copy(&content.name, fd).map(drop)?,
                Source::Bytes(bytes) => image.bytes(&content.name, bytes)?,
            }
        }
        Ok(())
    }
}
