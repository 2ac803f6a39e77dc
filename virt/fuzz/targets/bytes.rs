//! Paths and names: what is read is written as something that reads the same.
#![no_main]

use ckrun_virt::image::Bytes;

libfuzzer_sys::fuzz_target!(|json: &[u8]| {
    if let Ok(bytes) = serde_json::from_slice::<Bytes>(json) {
        let again = serde_json::to_vec(&bytes).unwrap();
        assert_eq!(serde_json::from_slice::<Bytes>(&again).unwrap(), bytes);
    }
});
