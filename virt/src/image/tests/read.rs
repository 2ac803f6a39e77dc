//! Damaged and hostile images are refused, and the file is named.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::{FileExt, symlink};

fn said(path: &Path) -> String {
    let error = Image::open(path).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    error.to_string()
}

/// Rewrites the manifest with a right digest, as somebody would who means harm.
fn forge(path: &Path, change: impl FnOnce(&mut Manifest)) {
    let file = path.join("manifest.json");
    let (mut manifest, _) = Manifest::parse(&file, &fs::read(&file).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(&file, manifest.to_bytes().unwrap().0).unwrap();
}

#[test]
fn a_directory_without_a_manifest_is_no_image() {
    let (dir, path) = place();
    let said = Image::open(dir.path()).unwrap_err();
    assert!(matches!(said, Error::NoImage { .. }), "{said}");
    assert!(said.to_string().contains("no checkpoint image"), "{said}");
    let said = Image::open(&path).unwrap_err().to_string();
    assert!(said.contains("checkpoint: no such file or directory"), "{said}");
}

#[test]
fn each_file_is_named_when_it_is_cut_longer_missing_or_changed() {
    let (_dir, path) = place();
    write_image(&path);
    let names: Vec<String> = Image::open(&path).unwrap().manifest().files.keys().cloned().collect();
    for name in &names {
        let file = path.join(name);
        let aside = path.join("aside");
        fs::rename(&file, &aside).unwrap();
        assert!(said(&path).contains(&format!("{name}: it is missing")), "{name}");
        fs::rename(&aside, &file).unwrap();

        let size = fs::metadata(&file).unwrap().len();
        let handle = fs::File::options().read(true).write(true).open(&file).unwrap();
        handle.set_len(size + 1).unwrap();
        assert!(said(&path).contains(&format!("{name}: {} bytes, and the manifest says {size}", size + 1)));
        handle.set_len(size).unwrap();
        if size > 0 {
            let mut last = [0];
            handle.read_exact_at(&mut last, size - 1).unwrap();
            handle.set_len(size - 1).unwrap();
            assert!(said(&path).contains(&format!("{name}: {} bytes", size - 1)));
            handle.write_all_at(&last, size - 1).unwrap();
        }
    }
    Image::open(&path).unwrap().verify().unwrap();
}

#[test]
fn a_flipped_bit_is_found_in_small_files_at_once_and_in_large_ones_when_read() {
    let (_dir, path) = place();
    write_image(&path);
    let flip = |name: &str, at: u64| {
        let file = fs::File::options().read(true).write(true).open(path.join(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    };
    for name in ["tasks.json", "files/0", "files/1", "pages.idx", "plugins/emu/state/.design"] {
        flip(name, 3);
        let said = said(&path);
        assert!(said.contains(&format!("{name}: its digest is ")), "{said}");
        flip(name, 3);
    }
    flip("manifest.json", 100);
    assert!(said(&path).contains("manifest.json: it does not have the digest"));
    flip("manifest.json", 100);

    let image = Image::open(&path).unwrap();
    flip("files/2", 77);
    for error in [
        image.file("files/2").err(),
        image.copy("files/2", &tempfile::tempfile().unwrap()).err(),
        image.bytes("files/2", 1 << 30).err(),
        image.verify().err(),
    ] {
        assert!(matches!(error, Some(Error::Damaged { .. })), "{error:?}");
    }
    flip("files/2", 77);

    flip("pages-0.img", 2 * PAGE);
    let said = image.verify().unwrap_err().to_string();
    assert!(said.contains("pages-0.img: the 2 pages at offset 0x1000, for address 0x400000"), "{said}");
}

#[test]
fn nothing_but_a_plain_file_below_the_directory_is_opened() {
    let (dir, path) = place();
    write_image(&path);
    let secret = dir.path().join("secret");
    fs::copy(path.join("tasks.json"), &secret).unwrap();
    let file = path.join("tasks.json");
    let replace = |make: &dyn Fn()| {
        fs::remove_file(&file).unwrap();
        make();
        said(&path)
    };
    assert!(replace(&|| symlink(&secret, &file).unwrap()).contains("tasks.json: a symlink"));
    assert!(replace(&|| symlink("files/0", &file).unwrap()).contains("tasks.json: a symlink"));
    let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
    // Opening a FIFO without a writer must not wait for one.
    assert!(replace(&|| nix::unistd::mkfifo(&file, mode).unwrap()).contains("not a plain file"));
    assert!(
        replace(&|| drop(std::os::unix::net::UnixListener::bind(&file).unwrap()))
            .contains("not a plain file")
    );
    assert!(replace(&|| fs::create_dir(&file).unwrap()).contains("not a plain file"));
    // A folder that leads out.
    fs::remove_dir(&file).unwrap();
    fs::copy(&secret, &file).unwrap();
    fs::rename(path.join("files"), dir.path().join("files")).unwrap();
    symlink(dir.path().join("files"), path.join("files")).unwrap();
    assert!(said(&path).contains("files/0: a symlink"));
}

#[test]
fn a_forged_manifest_does_not_lead_out() {
    for name in ["../secret", "/etc/passwd", "files/../../secret", "a//b", ".partial/x"] {
        let (dir, path) = place();
        write_image(&path);
        fs::write(dir.path().join("secret"), b"").unwrap();
        forge(&path, |manifest| {
            manifest.files.insert(name.into(), Entry { size: 0, digest: Some(Digest::of(b"")) });
        });
        let said = said(&path);
        assert!(said.contains("manifest.json: ") && said.contains(name), "{said}");
    }
}

#[test]
fn sizes_are_looked_at_before_anything_is_read() {
    let (_dir, path) = place();
    write_image(&path);
    // A sparse petabyte costs nothing to make, and would be the end of whoever reads it.
    let huge = 1 << 43;
    fs::File::options().write(true).open(path.join("tasks.json")).unwrap().set_len(huge).unwrap();
    forge(&path, |manifest| {
        let digest = Some(Digest::of(b""));
        manifest.files.insert("tasks.json".into(), Entry { size: huge, digest });
    });
    let image = Image::open(&path).unwrap();
    let error = image.json::<u8>("tasks.json").unwrap_err();
    assert!(matches!(error, Error::TooBig { most: MAX_JSON, .. }), "{error}");

    fs::File::options().write(true).open(path.join("manifest.json")).unwrap().set_len(huge).unwrap();
    let error = Image::open(&path).unwrap_err();
    assert!(matches!(error, Error::TooBig { most: MAX_MANIFEST, .. }), "{error}");
}

#[test]
fn json_that_does_not_fit_is_damage_with_a_place() {
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Small {
        #[allow(dead_code)]
        pid: i32,
    }
    let (_dir, path) = place();
    let mut writer = Writer::create(&path).unwrap();
    for (name, json) in [
        ("unknown.json", r#"{"pid":1,"extra":2}"#),
        ("twice.json", r#"{"pid":1,"pid":2}"#),
        ("cut.json", r#"{"pid":"#),
        ("more.json", r#"{"pid":1}{"pid":2}"#),
        ("range.json", r#"{"pid":99999999999}"#),
        ("binary.json", "\u{0}\u{1}"),
    ] {
        writer.bytes(name, json.as_bytes()).unwrap();
    }
    writer.bytes("deep.json", "[".repeat(100_000).as_bytes()).unwrap();
    writer.commit(manifest()).unwrap();
    let image = Image::open(&path).unwrap();
    for name in image.names("").filter(|name| name.ends_with(".json")) {
        let error = image.json::<Small>(name).unwrap_err();
        assert!(matches!(&error, Error::Damaged { file, .. } if file.ends_with(name)), "{error}");
    }
    assert!(image.json::<u8>("absent.json").unwrap_err().to_string().contains("does not list it"));
    // Files that the manifest does not list don't exist.
    fs::write(path.join("dump.log"), b"7").unwrap();
    assert!(Image::open(&path).unwrap().bytes("dump.log", 10).is_err());
}

#[test]
fn an_image_without_pages_has_an_empty_index() {
    let (_dir, path) = place();
    Writer::create(&path).unwrap().commit(manifest()).unwrap();
    assert_eq!(Image::open(&path).unwrap().index().unwrap().runs(), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any byte of any file changed: either somebody says so, or nothing that is read differs.
    #[test]
    fn no_changed_byte_goes_unseen(file: prop::sample::Index, at: prop::sample::Index, byte in 1u8..) {
        let (_dir, path) = place();
        let mut writer = Writer::create(&path).unwrap();
        writer.json("tasks.json", &[1, 2, 3]).unwrap();
        writer.bytes("files/0", b"content").unwrap();
        let mut pages = writer.pages(0).unwrap();
        pages.write(&page(9)).unwrap();
        let run = PageRun {
            vaddr: 0, pages: 1, file: 0, flags: 0, offset: 0, digest: PageRun::digest_of(&page(9)),
        };
        writer.index(&[(Owner::Process(1), vec![run])]).unwrap();
        writer.commit(manifest()).unwrap();
        let names = ["tasks.json", "files/0", "pages-0.img", "pages.idx", "manifest.json"];
        let handle = fs::File::options().read(true).write(true).open(path.join(file.get(&names))).unwrap();
        let at = at.index(handle.metadata().unwrap().len() as usize) as u64;
        let mut old = [0];
        handle.read_exact_at(&mut old, at).unwrap();
        handle.write_all_at(&[old[0] ^ byte], at).unwrap();
        prop_assert!(Image::open(&path).and_then(|image| image.verify()).is_err());
    }
}
