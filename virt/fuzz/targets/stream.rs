//! Images that come through a pipe: what is accepted is an image, and what is not leaves nothing.
#![no_main]

use ckrun_virt::image::{Image, stream};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let dir = std::path::PathBuf::from(format!("/dev/shm/ckrun-fuzz-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    match stream::receive(&mut &input[..], &dir, &mut |_, _| ()) {
        // Its digests may still be wrong, which is found when it is read.
        Ok(_) => drop(Image::open(&dir)),
        Err(_) => assert!(!dir.exists()),
    }
});
