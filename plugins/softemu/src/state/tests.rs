//! State files that are right, and such as lie.

use super::*;
use crate::transaction::{Request, execute};
use proptest::prelude::*;

type Snapshot = super::Snapshot<Design>;

const SMALL: Parameters = Parameters { ram: 1024, fifo: 8, boot: 500 };

fn snapshot() -> Snapshot {
    let mut design = Design::new(SMALL);
    design.step(700);
    let link = LinkState {
        kind: Kind::Tcp,
        next: Some(7),
        requests: vec![1, 2, 3],
        replies: vec![4],
        ring: Vec::new(),
    };
    Snapshot { design, links: vec![link] }
}

/// The file with a checksum that fits again: a lie rather than an accident.
fn sealed(mut file: Vec<u8>) -> Vec<u8> {
    file.truncate(file.len() - CHECKSUM);
    let checksum = xxh3_128(&file);
    file.extend(checksum.to_le_bytes());
    file
}

#[test]
fn a_file_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slot.state");
    let file = snapshot().save();
    Snapshot::write(&file, &path).unwrap();
    assert_eq!(file, std::fs::read(&path).unwrap());
    assert_eq!(Snapshot::read(&path, SMALL).unwrap(), snapshot());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn every_truncation_is_refused() {
    let file = snapshot().save();
    for length in 0..file.len() {
        let refused = Snapshot::load(&file[..length], SMALL).unwrap_err();
        assert!(matches!(refused, Unfit::Truncated { .. }), "{length} bytes: {refused}");
    }
}

#[test]
fn every_altered_byte_is_refused() {
    let file = snapshot().save();
    for at in 0..file.len() {
        let mut altered = file.clone();
        altered[at] ^= 0x40;
        Snapshot::load(&altered, SMALL).unwrap_err();
    }
    let mut longer = file;
    longer.push(0);
    assert!(matches!(Snapshot::load(&longer, SMALL), Err(Unfit::Altered(_))));
}

#[test]
fn other_designs_and_newer_files_are_named() {
    let file = snapshot().save();
    let refused = Snapshot::load(&file, Parameters { ram: 2048, ..SMALL }).unwrap_err().to_string();
    assert!(refused.contains("another design: 1024 words of RAM"), "{refused}");
    let mut newer = file.clone();
    newer[8] = 9;
    assert_eq!(Snapshot::load(&sealed(newer), SMALL).unwrap_err(), Unfit::Newer(9));
    assert_eq!(Snapshot::load(b"\x7fELF and more", SMALL).unwrap_err(), Unfit::Foreign);
}

#[test]
fn a_lie_with_a_checksum_that_fits_is_refused() {
    let file = snapshot().save();
    let fifo = HEADER + 8 + 24 + 9 * 4 + 16 * 4;
    for (at, what) in [(fifo, "FIFO"), (fifo + 4, "FIFO"), (file.len() - CHECKSUM - 8, "parts")] {
        let mut lie = file.clone();
        lie[at] = 0xff;
        let refused = Snapshot::load(&sealed(lie), SMALL).unwrap_err().to_string();
        assert!(refused.contains(what), "byte {at}: {refused}");
    }
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (0..40u32).prop_map(Request::ReadRegister),
        (0..40u32, any::<u32>()).prop_map(|(number, value)| Request::WriteRegister(number, value)),
        (0..1100u32, 0..20u32).prop_map(|(at, count)| Request::ReadRam(at, count)),
        (0..1100u32, proptest::collection::vec(any::<u32>(), 0..20))
            .prop_map(|(at, words)| Request::WriteRam(at, words)),
        proptest::collection::vec(any::<u32>(), 0..12).prop_map(Request::Push),
        (0..12u32).prop_map(Request::Pop),
        (0..900u64).prop_map(Request::Step),
        (0..900u64).prop_map(Request::WaitInterrupt),
        Just(Request::Cycle),
        Just(Request::Digest),
    ]
}

proptest! {
    #[test]
    fn a_saved_design_continues_identically(
        before in proptest::collection::vec(request(), 0..40),
        after in proptest::collection::vec(request(), 1..40),
    ) {
        let mut stays = Design::new(SMALL);
        for request in &before {
            execute(&mut stays, request);
        }
        let file = Snapshot { design: stays.clone(), links: Vec::new() }.save();
        let mut moved = Snapshot::load(&file, SMALL).unwrap().design;
        for request in &after {
            prop_assert_eq!(execute(&mut stays, request), execute(&mut moved, request));
            prop_assert_eq!(stays.digest(), moved.digest());
        }
    }

    #[test]
    fn no_file_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 52usize..8000) {
        let mut file = snapshot().save();
        let end = (at + bytes.len()).min(file.len());
        if at < end {
            file[at..end].copy_from_slice(&bytes[..end - at]);
        }
        let _ = Snapshot::load(&sealed(file), SMALL);
        let _ = Snapshot::load(&bytes, SMALL);
    }
}
