//! Page indexes: whatever is accepted lies inside its files and in order.
#![no_main]

use ckrun_virt::image::Index;
use std::path::Path;

const SIZE: u64 = 1 << 20;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(index) = Index::parse(Path::new("pages.idx"), bytes, |file| (file < 4).then_some(SIZE)) else { return };
    assert!(index.runs().iter().all(|run| run.file < 4 && run.offset + run.len() <= SIZE));
    for (owner, runs) in index.sections() {
        assert_eq!(index.of(owner), runs);
        assert!(runs.windows(2).all(|pair| pair[0].vaddr + pair[0].len() <= pair[1].vaddr));
    }
});
