//! The JSON files of an image, each with the right digest: whatever is in them, a restart reads and checks it without a panic.
//! The input is lines `=== NAME`, each followed by the content of that file.
#![no_main]

use ckrun_virt::image::{Image, Manifest, Writer};
use ckrun_virt::restore::{Baggage, Draft, Options};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    // Only this process has this path, and it is in memory.
    let dir = std::path::PathBuf::from(format!("/dev/shm/ckrun-fuzz-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let mut writer = Writer::create(&dir).unwrap();
    for part in text.split("=== ").skip(1) {
        let Some((name, content)) = part.split_once('\n') else { continue };
        // A name twice, or one that an image can't have.
        let _ = writer.bytes(name, content.as_bytes());
    }
    if writer.commit(Manifest::new(0).unwrap()).is_err() {
        return;
    }
    let image = Image::open(&dir).unwrap();
    let _ = Draft::read(&image).and_then(|draft| draft.check(&Options::default()));
    let _ = Baggage::open(&image);
});
