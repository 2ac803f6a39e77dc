//! `/proc/PID/smaps`, read as the kernel writes it.

use super::vma::{Flags, Prot, Span};

/// One mapping of smaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub range: Span,
    pub prot: Prot,
    pub shared: bool,
    pub offset: u64,
    pub device: (u32, u32),
    pub inode: u64,
    /// As shown: a newline in a path is written `\012`, which a path may also contain as such.
    pub path: &'a [u8],
    pub flags: Flags,
    /// A property with which the mapping can't be kept, by its name in smaps.
    pub refused: Option<&'static str>,
    /// The protection key (pkeys(7)), 0 if there is none.
    pub key: u32,
    /// Bytes of one page.
    pub page: u64,
}

/// Names of smaps that can't be kept, and what they mean.
pub(super) const REFUSED: [(&str, &str); 6] = [
    ("io", "it is device memory"),
    ("pf", "it is memory that a driver has mapped"),
    ("um", "its page faults go to a userfaultfd"),
    ("uw", "its writes go to a userfaultfd"),
    ("ui", "its minor faults go to a userfaultfd"),
    ("ss", "it is a shadow stack of the CPU"),
];

/// Reads all mappings. A line that no kernel writes is an error with the line.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Entry<'_>>, String> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for line in text.split(|&b| b == b'\n') {
        // Only the first line of a mapping begins with a digit or a small letter: its address.
        if line.first().is_some_and(|b| b.is_ascii_digit() || b.is_ascii_lowercase()) {
            entries.push(header(line).ok_or_else(|| strange(line))?);
            continue;
        }
        let Some(entry) = entries.last_mut() else {
            if line.is_empty() {
                continue;
            }
            return Err(strange(line));
        };
        if let Some(flags) = value(line, b"VmFlags:") {
            for name in flags.split_ascii_whitespace() {
                entry.flags = entry.flags.and(Flags::named(name).unwrap_or_default());
                if let Some((refused, _)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
                    entry.refused = Some(refused);
                }
            }
        } else if let Some(key) = value(line, b"ProtectionKey:") {
            entry.key = key.parse().map_err(|_| strange(line))?;
        } else if let Some(size) = value(line, b"KernelPageSize:") {
            let kib: u64 = size.trim_end_matches("kB").trim_end().parse().map_err(|_| strange(line))?;
            entry.page = kib.checked_mul(1024).ok_or_else(|| strange(line))?;
        }
    }
    Ok(entries)
}

fn strange(line: &[u8]) -> String {
    format!("strange line in smaps: {}", String::from_utf8_lossy(line))
}

fn value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a str> {
    std::str::from_utf8(line.strip_prefix(name)?).ok().map(str::trim)
}

/// `7f00-7f01 r-xp 00002000 fe:00 247282      /usr/bin/head`: one space between the fields, more before the path.
fn header(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(6, |&b| b == b' ');
    let mut next = || fields.next().and_then(|field| std::str::from_utf8(field).ok());
    let range = next()?;
    let (start, end) = range.split_once('-')?;
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    // Not Span's own parser: [vsyscall] lies where no mapping of a process can be.
    let range = Span::new(hex(start)?, hex(end)?);
    let (prot, sharing) = next()?.split_at_checked(3)?;
    let offset = hex(next()?)?;
    let (major, minor) = next()?.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = next()?.parse().ok()?;
    let path = fields.next().unwrap_or_default().trim_ascii_start();
    let shared = match sharing {
        "s" => true,
        "p" => false,
        _ => return None,
    };
    let flags = Flags::default();
    let prot = prot.parse().ok()?;
    (!range.is_empty()).then_some(Entry {
        range,
        prot,
        shared,
        offset,
        device,
        inode,
        path,
        flags,
        refused: None,
        key: 0,
        page: super::vma::PAGE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mapping_is_read_with_its_flags() {
        let text = b"7ffe1000-7ffe2000 rw-p 00000000 00:00 0                          [stack]\n\
            Size:                132 kB\nKernelPageSize:        4 kB\nVmFlags: rd wr mr mw me gd ac \n\
            2000000-2200000 r-xs 00200000 fe:01 99  /a b\\012c (deleted)\nKernelPageSize:  2048 kB\n\
            ProtectionKey:         3\nVmFlags: rd ex sh mr ms io ht zz \n";
        let entries = parse(text).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].path, b"[stack]");
        assert_eq!(entries[0].flags.to_string(), "gd mw ac");
        let second = &entries[1];
        assert_eq!(
            (second.path, second.shared, second.device),
            (&b"/a b\\012c (deleted)"[..], true, (0xfe, 1))
        );
        assert_eq!((second.offset, second.inode, second.key, second.page), (0x20_0000, 99, 3, 2 << 20));
        assert_eq!((second.refused, second.flags), (Some("io"), Flags::HUGETLB));
    }

    #[test]
    fn a_hostile_path_forges_nothing() {
        // Every byte but a newline can be in a path.
        let path = b"/\xff VmFlags: io 1000-2000 rwxp [heap]\t";
        let mut text = b"1000-2000 r--p 00000000 fe:00 7       ".to_vec();
        text.extend(path);
        text.extend(b"\nVmFlags: rd mr\n");
        let entries = parse(&text).unwrap();
        assert_eq!((entries.len(), entries[0].path, entries[0].refused), (1, &path[..], None));
    }

    #[test]
    fn strange_lines_are_errors_and_no_panic() {
        for line in [
            "1000",
            "1000-2000",
            "2000-1000 r--p 0 0:0 0",
            "x-y r--p 0 0:0 0",
            "1000-2000 r--q 0 0:0 0",
            "1000-2000 r- 0 0:0 0",
            "1000-2000 r\u{e9}-p 0 0:0 0",
            "1000-2000 r--p 0 00 0",
            "1000-2000 r--p 0 0:0 -1",
            "99999999999999999-2000 r--p 0 0:0 1",
            "Size: 1 kB",
            "1000-2000 r--p 0 0:0 0\nProtectionKey: x",
            "1000-2000 r--p 0 0:0 0\nKernelPageSize: 99999999999999999 kB",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
        assert_eq!(parse(b""), Ok(Vec::new()));
    }

    #[test]
    fn this_process_can_be_read() {
        let text = std::fs::read("/proc/self/smaps").unwrap();
        let entries = parse(&text).unwrap();
        assert!(entries.iter().any(|e| e.path == b"[stack]" && e.flags.has(Flags::GROWS_DOWN)));
        assert!(entries.iter().any(|e| e.path == b"[vdso]" && e.prot.allows(Prot::EXEC)));
        assert!(entries.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
    }

    proptest! {
        #[test]
        fn anything_is_an_answer_or_an_error(text in r"([0-9a-f]{1,17}-[0-9a-f]{1,17} [rwxps-]{0,5} [0-9a-f]{0,3} ?.{0,9}\n|VmFlags:.{0,9}\n|.{0,30}\n){0,5}") {
            let _ = parse(text.as_bytes());
        }
    }
}
