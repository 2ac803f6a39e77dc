//! Images on their way through a pipe.

use super::*;
use crate::image::stream::{receive, send};

fn sent(image: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let told = send(&Image::open(image).unwrap(), &mut bytes, &mut |_| ()).unwrap();
    assert_eq!(told, bytes.len() as u64);
    bytes
}

/// A small one: [`write_all_kinds`] has a gigabyte of nothing.
fn small(dir: &Path) -> Committed {
    let mut writer = Writer::create(dir).unwrap();
    writer.bytes("files/0", b"what a pipe held").unwrap();
    let mut pages = writer.pages(0).unwrap();
    let offset = pages.write(&page(3)).unwrap();
    let digest = PageRun::digest_of(&page(3));
    let run = PageRun { vaddr: 0x40_0000, pages: 1, file: 0, flags: 0, offset, digest };
    writer.index(&[(Owner::Process(1), vec![run])]).unwrap();
    writer.commit(manifest()).unwrap()
}

#[test]
fn all_kinds_of_files_arrive() {
    let (_dir, from) = place();
    let (_other, to) = place();
    let committed = write_image(&from);
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let image = Image::open(&from).unwrap();
    let sender = std::thread::spawn(move || send(&image, &mut writer, &mut |_| ()));
    let mut last = (0, 0);
    let received = receive(&mut reader, &to, &mut |come, all| last = (come, all)).unwrap();
    sender.join().unwrap().unwrap();
    assert_eq!(received.digest, committed.digest);
    assert_eq!(last, (committed.manifest.size(), committed.manifest.size()));
    Image::open(&to).unwrap().verify().unwrap();
    assert_eq!(listing(&from), listing(&to));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(to.join("files/2")).unwrap());
    assert!(blocks * 512 < 64 << 20, "{blocks}");
}

#[test]
fn a_stream_that_ends_early_leaves_nothing() {
    let (dir, from) = place();
    small(&from);
    let bytes = sent(&from);
    for length in (0..bytes.len()).step_by(97) {
        let to = dir.path().join("to");
        let said = receive(&mut &bytes[..length], &to, &mut |_, _| ()).unwrap_err().to_string();
        assert!(said.contains("has ended"), "{length}: {said}");
        assert_eq!(listing(dir.path()), ["checkpoint"]);
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let (dir, from) = place();
    let to = dir.path().join("to");
    small(&from);
    let good = sent(&from);
    let refused = |bytes: &[u8], word: &str| {
        let said = receive(&mut &bytes[..], &to, &mut |_, _| ()).unwrap_err().to_string();
        assert!(said.contains(word), "{said}");
        assert_eq!(listing(dir.path()), ["checkpoint"]);
    };
    let mut bad = good.clone();
    bad[0] ^= 1;
    refused(&bad, "does not begin like an image");
    bad = good.clone();
    bad[15] = 1;
    refused(&bad, "manifest.json");
    bad = good.clone();
    bad[40] ^= 1;
    refused(&bad, "manifest.json");
    // What is there already stays.
    let said = receive(&mut &good[..], &from, &mut |_, _| ()).unwrap_err().to_string();
    assert!(said.contains("checkpoint"), "{said}");
    Image::open(&from).unwrap().verify().unwrap();
}
