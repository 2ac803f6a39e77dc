//! Images as one file.

use super::*;
use crate::image::archive::{CLIENT, Compression, pack, unpack};
use std::os::unix::fs::{PermissionsExt, symlink};
use tar::{Builder, EntryType, Header};

fn quiet(_: u64, _: u64) {}

/// A small image, and its archive without compression.
fn packed() -> (TempDir, PathBuf, PathBuf) {
    let (dir, image) = place();
    let mut writer = Writer::create(&image).unwrap();
    writer.bytes("files/0", b"what a pipe held").unwrap();
    let mut pages = writer.pages(0).unwrap();
    let offset = pages.write(&page(3)).unwrap();
    let digest = PageRun::digest_of(&page(3));
    let run = PageRun { vaddr: 0x40_0000, pages: 1, file: 0, flags: 0, offset, digest };
    writer.index(&[(Owner::Process(1), vec![run])]).unwrap();
    writer.commit(manifest()).unwrap();
    let file = dir.path().join("image.tar");
    pack(&image, &file, Compression::None, &mut quiet).unwrap();
    (dir, image, file)
}

/// The members of an archive: names and contents.
fn members(file: &Path) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(fs::File::open(file).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        (String::from_utf8(entry.path_bytes().into_owned()).unwrap(), content)
    });
    entries.collect()
}

fn header(kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header
}

/// An archive of these members. Names are written as they are, whatever they are.
fn archive(members: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, content) in members {
        let mut header = header(*kind, content.len());
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn all_kinds_of_files_arrive_by_all_methods() {
    let (dir, from) = place();
    let committed = write_image(&from);
    let client = from.join(CLIENT);
    fs::create_dir_all(client.join("empty")).unwrap();
    fs::create_dir(client.join("full")).unwrap();
    fs::write(client.join("full/config.dump"), "podman's").unwrap();
    // Beside the image, but neither its nor a client's.
    fs::write(from.join("dump.log"), "a log").unwrap();
    for (method, name) in
        [(Compression::Zstd, "i.tar.zst"), (Compression::Gzip, "i.tar.gz"), (Compression::None, "i.tar")]
    {
        let (file, to) = (dir.path().join(name), dir.path().join("to"));
        assert_eq!(Compression::of_name(&file), method);
        let mut told = (0, 0);
        let size = pack(&from, &file, method, &mut |done, all| told = (done, all)).unwrap();
        assert_eq!(told, (committed.manifest.size(), committed.manifest.size()));
        let meta = fs::metadata(&file).unwrap();
        assert_eq!((meta.len(), meta.permissions().mode() & 0o7777), (size, 0o600), "{name}");
        let unpacked = unpack(&file, &to, &mut |done, all| told = (done, all)).unwrap();
        assert_eq!(unpacked.digest, committed.digest);
        assert_eq!(told, (committed.manifest.size(), committed.manifest.size()));
        Image::open(&to).unwrap().verify().unwrap();
        assert_eq!(fs::read(to.join("client/full/config.dump")).unwrap(), b"podman's");
        assert!(to.join("client/empty").is_dir() && !to.join("dump.log").exists());
        let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(to.join("files/2")).unwrap());
        assert!(blocks * 512 < 64 << 20, "{blocks}");
        fs::remove_dir_all(&to).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(listing(dir.path()), ["checkpoint"]);
    }
}

#[test]
fn nothing_is_written_over() {
    let (dir, image, file) = packed();
    let before = fs::read(&file).unwrap();
    assert!(matches!(pack(&image, &file, Compression::None, &mut quiet), Err(Error::Exists { .. })));
    assert!(matches!(unpack(&file, &image, &mut quiet), Err(Error::Exists { .. })));
    let link = dir.path().join("link");
    symlink(dir.path().join("nowhere"), &link).unwrap();
    assert!(matches!(pack(&image, &link, Compression::None, &mut quiet), Err(Error::Exists { .. })));
    assert!(matches!(unpack(&file, &link, &mut quiet), Err(Error::Exists { .. })));
    assert_eq!(fs::read(&file).unwrap(), before);
    assert_eq!(listing(dir.path()), ["checkpoint", "image.tar", "link"]);
    // What a killed writer has left is taken over; what a link of this name leads to is not written to.
    let other = dir.path().join("other.tar");
    fs::write(dir.path().join("other.tar.partial"), vec![7; 1 << 20]).unwrap();
    pack(&image, &other, Compression::None, &mut quiet).unwrap();
    assert_eq!(fs::read(&other).unwrap(), before);
    symlink(&file, dir.path().join("third.tar.partial")).unwrap();
    pack(&image, &dir.path().join("third.tar"), Compression::None, &mut quiet).unwrap_err();
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn a_damaged_image_is_not_packed() {
    let (dir, image, _) = packed();
    let mut bytes = fs::read(image.join("pages-0.img")).unwrap();
    bytes[17] ^= 1;
    fs::write(image.join("pages-0.img"), bytes).unwrap();
    let file = dir.path().join("other.tar");
    assert!(matches!(pack(&image, &file, Compression::None, &mut quiet), Err(Error::Damaged { .. })));
    assert_eq!(listing(dir.path()), ["checkpoint", "image.tar"]);
}

#[test]
fn every_flipped_byte_and_every_cut_is_seen_and_leaves_nothing() {
    let (dir, image, file) = packed();
    let whole = fs::read(&file).unwrap();
    let to = dir.path().join("to");
    let spoilt = dir.path().join("spoilt");
    let check = |bytes: &[u8], what: &str| {
        fs::write(&spoilt, bytes).unwrap();
        match unpack(&spoilt, &to, &mut quiet) {
            Ok(committed) => {
                // Times, owners and the like are nobody's business, and what is behind the end neither.
                assert_eq!(committed.digest, Image::open(&image).unwrap().digest(), "{what}");
                fs::remove_dir_all(&to).unwrap();
            }
            Err(_) => assert_eq!(listing(dir.path()), ["checkpoint", "image.tar", "spoilt"], "{what}"),
        }
    };
    for at in (0..whole.len()).step_by(61) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        check(&flipped, &format!("byte {at}"));
        check(&whole[..at], &format!("first {at} bytes"));
    }
    let mut image = fs::read(&file).unwrap();
    let at = image.windows(16).position(|bytes| bytes == b"what a pipe held").unwrap();
    image[at] = b'W';
    fs::write(&spoilt, &image).unwrap();
    assert!(matches!(unpack(&spoilt, &to, &mut quiet), Err(Error::Damaged { .. })));
}

#[test]
fn hostile_members_are_refused_by_name() {
    let (dir, _, file) = packed();
    let good = members(&file);
    let (to, spoilt) = (dir.path().join("to"), dir.path().join("spoilt"));
    let regular = EntryType::Regular;
    for (name, kind, content, why) in [
        ("../escaped", regular, &b"x"[..], "a dot at its beginning"),
        ("/etc/escaped", regular, b"x", "an empty component"),
        ("checkpoint/../../escaped", regular, b"x", "not in its manifest"),
        ("checkpoint/unlisted", regular, b"x", "not in its manifest"),
        ("checkpoint/files/0", regular, b"what a pipe held", "comes twice"),
        ("a/../../escaped", regular, b"x", "no name of its own"),
        (".partial", regular, b"x", "a dot at its beginning"),
        ("co\u{7}nfig", regular, b"x", "a control character"),
        ("config.dump", EntryType::Symlink, b"", "a link"),
        ("config.dump", EntryType::Link, b"", "a link"),
        ("checkpoint/files/1", EntryType::Symlink, b"", "a link"),
        ("null", EntryType::Char, b"", "neither a file nor a folder"),
        ("fifo", EntryType::Fifo, b"", "neither a file nor a folder"),
        ("holes", EntryType::GNUSparse, b"", ""),
    ] {
        let mut members: Vec<(&str, EntryType, &[u8])> = good
            .iter()
            .filter(|(name, _)| !name.ends_with('/'))
            .map(|(name, content)| (name.as_str(), regular, content.as_slice()))
            .collect();
        members.push((name, kind, content));
        fs::write(&spoilt, archive(&members)).unwrap();
        let said = unpack(&spoilt, &to, &mut quiet).unwrap_err().to_string();
        assert!(said.contains(why), "{name}: {said}");
        assert_eq!(listing(dir.path()), ["checkpoint", "image.tar", "spoilt"], "{name}");
    }
}

#[test]
fn sizes_are_those_of_the_manifest_and_headers_are_short() {
    let (dir, _, file) = packed();
    let (to, spoilt) = (dir.path().join("to"), dir.path().join("spoilt"));
    let regular = EntryType::Regular;
    let good = members(&file);
    let manifest = &good.iter().find(|(name, _)| name == "checkpoint/manifest.json").unwrap().1;
    let said = |bytes: &[u8]| {
        fs::write(&spoilt, bytes).unwrap();
        let said = unpack(&spoilt, &to, &mut quiet).unwrap_err().to_string();
        assert_eq!(listing(dir.path()), ["checkpoint", "image.tar", "spoilt"]);
        said
    };
    let manifest = ("checkpoint/manifest.json", regular, manifest.as_slice());
    assert!(said(&archive(&[manifest])).contains("is missing in it"));
    let long = said(&archive(&[manifest, ("checkpoint/files/0", regular, &[7; 17])]));
    assert!(long.contains("17 bytes, and the manifest says 16"), "{long}");
    assert!(said(&archive(&[])).contains("no checkpoint of ckrun's"));
    assert!(said(b"neither").contains("spoilt"));
    // A name that would fill the memory: 2 GiB of zeroes, which are some kilobytes when they are compressed.
    let mut bomb = zstd::Encoder::new(Vec::new(), 3).unwrap();
    let mut header = header(EntryType::GNULongName, 2 << 30);
    header.set_cksum();
    std::io::Write::write_all(&mut bomb, header.as_bytes()).unwrap();
    for _ in 0..8 {
        std::io::Write::write_all(&mut bomb, &vec![0; 1 << 20]).unwrap();
    }
    let bomb = said(&bomb.finish().unwrap());
    assert!(bomb.contains("too long"), "{bomb}");
    let unreadable = said(&[0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4]);
    assert!(unreadable.contains("spoilt"), "{unreadable}");
}

#[test]
fn an_archive_of_the_image_alone_is_unpacked_too() {
    let (dir, image, file) = packed();
    let members = members(&file);
    let bare: Vec<(&str, EntryType, &[u8])> = members
        .iter()
        .filter_map(|(name, content)| Some((name.strip_prefix("checkpoint/")?, content)))
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, content)| (name, EntryType::Regular, content.as_slice()))
        .collect();
    let (file, to) = (dir.path().join("bare.tar"), dir.path().join("to"));
    fs::write(&file, archive(&bare)).unwrap();
    assert_eq!(unpack(&file, &to, &mut quiet).unwrap().digest, Image::open(&image).unwrap().digest());
}
