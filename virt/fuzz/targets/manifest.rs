//! Manifests: as they are, and with the right digest put under them, or nothing would get past it.
#![no_main]

use ckrun_virt::image::{Digest, Manifest};
use std::path::Path;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let file = Path::new("manifest.json");
    let _ = Manifest::parse(file, body);
    let mut signed = body.to_owned();
    signed.extend_from_slice(format!(",\n  \"digest\": \"{}\"\n}}\n", Digest::of(body)).as_bytes());
    if let Ok((manifest, _)) = Manifest::parse(file, &signed) {
        for name in manifest.files.keys() {
            assert!(!name.starts_with('/') && !name.split('/').any(|part| part.is_empty() || part == ".."));
        }
        let (again, _) = manifest.to_bytes().unwrap();
        assert_eq!(Manifest::parse(file, &again).unwrap().0, manifest);
    }
});
