//! Whole images on the real file system.

mod archive;
mod read;
mod stream;
mod write;

use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A directory for one test, and where its image will be.
fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("checkpoint");
    (dir, image)
}

fn manifest() -> Manifest {
    Manifest::new(2).unwrap()
}

fn page(n: u8) -> Vec<u8> {
    vec![n; PAGE as usize]
}

/// Puts one file of each kind into an image.
fn write_all_kinds(writer: &mut Writer) {
    writer.json("tasks.json", &BTreeMap::from([(1, "init"), (7, "sh")])).unwrap();
    writer.bytes("files/0", b"what a pipe held").unwrap();
    let mut file = writer.file("files/1").unwrap();
    file.append(b"piece ").unwrap();
    file.append(b"by piece").unwrap();
    assert_eq!(file.finish(), 14);
    let source = tempfile::tempfile().unwrap();
    source.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&source, b"far out", 1 << 29).unwrap();
    assert_eq!(writer.copy("files/2", &source).unwrap(), 1 << 30);
    let mut pages = writer.pages(0).unwrap();
    let bytes = [page(1), page(2)].concat();
    let digest = PageRun::digest_of(&bytes);
    pages.write(&page(0)).unwrap();
    let offset = pages.write(&bytes).unwrap();
    let run = PageRun { vaddr: 0x40_0000, pages: 2, file: pages.number(), flags: 0, offset, digest };
    let shared = PageRun { vaddr: 0, ..run };
    writer.index(&[(Owner::Shared(0), vec![shared]), (Owner::Process(1), vec![run])]).unwrap();
    let folder = writer.folder("plugins/emu").unwrap();
    fs::create_dir(folder.join("state")).unwrap();
    fs::write(folder.join("state/.design"), b"registers").unwrap();
    writer.adopt("plugins/emu").unwrap();
}

fn write_image(dir: &Path) -> Committed {
    let mut writer = Writer::create(dir).unwrap();
    writer.bytes(INVENTORY, b"{}").unwrap();
    write_all_kinds(&mut writer);
    writer.commit(manifest()).unwrap()
}

/// What is in a directory, sorted.
fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
