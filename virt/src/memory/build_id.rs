//! The name that a linker gives to what it made: programs and libraries whose content differs have different ones, whatever
//! their sizes and times say.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// The headers of nearly all files and their notes are in their first page.
const PAGE: usize = 4096;
/// More than the notes of any program.
const MOST: usize = 1 << 16;
/// `PT_NOTE`, elf(5).
const SEGMENT: u32 = 4;
/// `NT_GNU_BUILD_ID`, elf(5).
const BUILD_ID: u32 = 3;

/// The build id of an ELF file in hexadecimal digits: `None` for all other files, and for one that has none.
pub(super) fn of(file: &File) -> Option<String> {
    let mut page = [0; PAGE];
    let length = file.read_at(&mut page, 0).ok()?;
    let page = &page[..length];
    // The class of 64 bits, the byte order of all that ckrun runs on.
    if page.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (headers, size, count) = (u64_at(page, 32)?, u16_at(page, 54)?, u16_at(page, 56)?);
    (0..count).find_map(|n| {
        let at = headers.checked_add(usize::from(n) * usize::from(size))?;
        if u32_at(page, at)? != SEGMENT {
            return None;
        }
        let (offset, size) =
            (u64_at(page, at.checked_add(8)?)?, u64_at(page, at.checked_add(32)?)?.min(MOST));
        match page.get(offset..offset.checked_add(size)?) {
            Some(notes) => find(notes),
            None => {
                let mut notes = vec![0; size];
                file.read_exact_at(&mut notes, offset as u64).ok()?;
                find(&notes)
            }
        }
    })
}

/// Notes: sizes of a name and of a value, a type, and the two, each filled up to four bytes.
fn find(mut notes: &[u8]) -> Option<String> {
    loop {
        let (name, value, kind) = (u32_at(notes, 0)? as usize, u32_at(notes, 4)? as usize, u32_at(notes, 8)?);
        let start = 12_usize.checked_add(name.checked_next_multiple_of(4)?)?;
        let end = start.checked_add(value)?;
        if kind == BUILD_ID && notes.get(12..16)? == b"GNU\0" {
            return Some(notes.get(start..end)?.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = notes.get(end.checked_next_multiple_of(4)?..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(8)?)?.try_into().ok()?;
    usize::try_from(u64::from_le_bytes(bytes)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::process::Command;

    /// A shared object with the code `text`, linked with `options`.
    fn linked(text: &str, options: &[&str]) -> File {
        let directory = tempfile::tempdir().unwrap();
        let (source, object) = (directory.path().join("a.c"), directory.path().join("a.so"));
        std::fs::write(&source, text).unwrap();
        let compiled = Command::new("gcc")
            .args(["-shared", "-nostdlib", "-o"])
            .args([&object, &source])
            .args(options)
            .status()
            .unwrap();
        assert!(compiled.success());
        File::open(object).unwrap()
    }

    #[test]
    fn what_was_built_otherwise_has_another() {
        let one = of(&linked("int f(void) { return 1; }", &["-Wl,--build-id=sha1"])).unwrap();
        assert_eq!(one.len(), 40);
        assert_eq!(of(&linked("int f(void) { return 1; }", &["-Wl,--build-id=sha1"])), Some(one.clone()));
        assert_ne!(of(&linked("int f(void) { return 2; }", &["-Wl,--build-id=sha1"])), Some(one));
        let chosen = linked("int f(void) { return 1; }", &["-Wl,--build-id=0x0123456789abcdef"]);
        assert_eq!(of(&chosen).as_deref(), Some("0123456789abcdef"));
    }

    #[test]
    fn some_have_none() {
        assert_eq!(of(&linked("int f(void) { return 1; }", &["-Wl,--build-id=none"])), None);
        let mut text = tempfile::tempfile().unwrap();
        text.write_all(b"no program").unwrap();
        assert_eq!(of(&text), None);
    }

    proptest! {
        /// Whatever a file of the container holds, looking at it ends.
        #[test]
        fn any_bytes_are_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_u8..64) {
            let mut elf = vec![0; 256];
            elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
            elf[32] = at;
            elf[54] = 56;
            elf[56] = 3;
            elf[64..64 + bytes.len().min(192)].copy_from_slice(&bytes[..bytes.len().min(192)]);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&elf).unwrap();
            let _ = of(&file);
            let _ = find(&bytes);
        }
    }
}
