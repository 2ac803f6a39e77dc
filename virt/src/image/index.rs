//! `pages.idx`: which pages of which address space or shared object are in the image, and where. IMAGE.md draws it.

use super::{Error, MAX_INDEX, MAX_RUN_PAGES, PAGE, PageRun, Result};
use std::ops::Range;
use std::path::Path;

/// Whose pages they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The address space of the process with this virtual id.
    Process(i32),
    /// A shared memory object, by the number that it has in this image.
    Shared(u32),
}

const MAGIC: [u8; 8] = *b"CKRUNIDX";
const VERSION: u32 = 1;
const HEADER: usize = 32;
const SECTION: usize = 24;
const RUN: usize = 32;

/// The index of an image, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    sections: Vec<(Owner, Range<usize>)>,
    runs: Vec<PageRun>,
}

impl Index {
    /// The runs of `owner` in ascending order; none when it has no page in the image.
    pub fn of(&self, owner: Owner) -> &[PageRun] {
        self.sections
            .binary_search_by_key(&owner, |(owner, _)| *owner)
            .ok()
            .and_then(|at| self.runs.get(self.sections.get(at)?.1.clone()))
            .unwrap_or_default()
    }

    /// All sections, in the order of their owners.
    pub fn sections(&self) -> impl Iterator<Item = (Owner, &[PageRun])> {
        self.sections.iter().map(|(owner, range)| (*owner, self.runs.get(range.clone()).unwrap_or_default()))
    }

    /// All runs of all owners. A run that several share comes once for each.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// Puts an index together, in any order of owners.
    ///
    /// # Errors
    /// What breaks a rule of the index; `pages` gives the size in bytes of `pages-N.img`, if it is there.
    pub(super) fn new(
        sections: &[(Owner, Vec<PageRun>)],
        pages: impl FnMut(u16) -> Option<u64>,
    ) -> Result<Self, String> {
        let mut order: Vec<_> = sections.iter().collect();
        order.sort_by_key(|(owner, _)| *owner);
        let mut index = Index::default();
        index.runs.reserve_exact(sections.iter().map(|(_, runs)| runs.len()).sum());
        for (owner, runs) in order {
            let first = index.runs.len();
            index.runs.extend_from_slice(runs);
            index.sections.push((*owner, first..index.runs.len()));
        }
        index.check(pages)?;
        Ok(index)
    }

    /// The bytes of `pages.idx`.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.sections.len() * SECTION + self.runs.len() * RUN);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(PAGE as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.sections.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&(self.runs.len() as u64).to_le_bytes());
        for (owner, range) in &self.sections {
            let (kind, id) = match *owner {
                Owner::Process(pid) => (0u32, pid.cast_unsigned()),
                Owner::Shared(id) => (1, id),
            };
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
            bytes.extend_from_slice(&(range.start as u64).to_le_bytes());
            bytes.extend_from_slice(&(range.len() as u64).to_le_bytes());
        }
        for run in &self.runs {
            // There may be a hundred thousand of them: each goes in as one.
            let mut row = [0; RUN];
            row[..8].copy_from_slice(&run.vaddr.to_le_bytes());
            row[8..12].copy_from_slice(&run.pages.to_le_bytes());
            row[12..14].copy_from_slice(&run.file.to_le_bytes());
            row[14..16].copy_from_slice(&run.flags.to_le_bytes());
            row[16..24].copy_from_slice(&run.offset.to_le_bytes());
            row[24..].copy_from_slice(&run.digest.to_le_bytes());
            bytes.extend_from_slice(&row);
        }
        bytes
    }

    /// Reads the bytes of `pages.idx`. `file` is only for messages; `pages` gives the size in bytes of `pages-N.img`,
    /// if the image has it.
    ///
    /// # Errors
    /// [`Error::Newer`] and [`Error::Damaged`].
    pub fn parse(file: &Path, bytes: &[u8], pages: impl FnMut(u16) -> Option<u64>) -> Result<Self> {
        if let Some(version) = Fields(bytes).magic_and_version()
            && version > VERSION
        {
            return Err(Error::Newer { file: file.to_owned(), found: version.into() });
        }
        let index = Self::read(bytes).map_err(|why| Error::damaged(file, why))?;
        index.check(pages).map_err(|why| Error::damaged(file, why))?;
        Ok(index)
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        let short = || "it ends in the middle".to_owned();
        if bytes.len() as u64 > MAX_INDEX {
            return Err(format!("larger than the {MAX_INDEX} bytes that it may have"));
        }
        let mut fields = Fields(bytes);
        match fields.magic_and_version() {
            None => return Err("it does not begin as a page index does".into()),
            Some(VERSION) => {}
            Some(version) => return Err(format!("there never was a page index of version {version}")),
        }
        let page = fields.u32().ok_or_else(short)?;
        if u64::from(page) != PAGE {
            return Err(format!("pages of {page} bytes; this ckrun knows pages of {PAGE}"));
        }
        let (sections, runs) = (fields.u64().ok_or_else(short)?, fields.u64().ok_or_else(short)?);
        // Nothing is reserved before the counts agree with a size that is known to be there.
        let claimed = sections
            .checked_mul(SECTION as u64)
            .zip(runs.checked_mul(RUN as u64))
            .and_then(|(a, b)| a.checked_add(b)?.checked_add(HEADER as u64));
        if claimed != Some(bytes.len() as u64) {
            return Err(format!("{sections} sections and {runs} runs don't make {} bytes", bytes.len()));
        }
        let (sections, runs) = (sections as usize, runs as usize);
        let mut index = Index { sections: Vec::with_capacity(sections), runs: Vec::with_capacity(runs) };
        let mut next: usize = 0;
        for _ in 0..sections {
            let kind = fields.u32().ok_or_else(short)?;
            let id = fields.u32().ok_or_else(short)?;
            let first = fields.u64().ok_or_else(short)?;
            let count = fields.u64().ok_or_else(short)?;
            let owner = match kind {
                0 => Owner::Process(id.cast_signed()),
                1 => Owner::Shared(id),
                _ => return Err(format!("a section of the unknown kind {kind}")),
            };
            let end = usize::try_from(count).ok().and_then(|count| next.checked_add(count));
            let Some(end) = end.filter(|&end| first == next as u64 && end <= runs) else {
                return Err(format!("the section of {owner:?} claims {count} runs from {first}"));
            };
            index.sections.push((owner, next..end));
            next = end;
        }
        if next != runs {
            return Err(format!("{} runs belong to nobody", runs - next));
        }
        for _ in 0..runs {
            index.runs.push(fields.run().ok_or_else(short)?);
        }
        Ok(index)
    }

    /// The rules that an index must keep whoever wrote it.
    fn check(&self, mut pages: impl FnMut(u16) -> Option<u64>) -> Result<(), String> {
        if let Some(pair) = self.sections.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            return Err(format!(
                "the section of {:?} does not come after that of {:?}",
                pair[1].0, pair[0].0
            ));
        }
        let mut known: Option<(u16, u64)> = None;
        for (owner, runs) in self.sections() {
            if matches!(owner, Owner::Process(..=0)) {
                return Err(format!("{owner:?} is no process"));
            }
            let mut end = 0;
            for run in runs {
                let wrong = |why: &str| Err(format!("{owner:?}, address {:#x}: {why}", run.vaddr));
                if !(1..=MAX_RUN_PAGES).contains(&run.pages) {
                    return wrong(&format!("a run of {} pages", run.pages));
                }
                if !run.vaddr.is_multiple_of(PAGE) || !run.offset.is_multiple_of(PAGE) {
                    return wrong("not at the beginning of a page");
                }
                if run.vaddr < end {
                    return wrong("not after the run before it");
                }
                let Some(after) = run.vaddr.checked_add(run.len()) else {
                    return wrong("beyond the last address");
                };
                end = after;
                let size = match known {
                    Some((file, size)) if file == run.file => size,
                    _ => match pages(run.file) {
                        Some(size) => known.insert((run.file, size)).1,
                        None => {
                            return wrong(&format!("in pages-{}.img, which is not in the image", run.file));
                        }
                    },
                };
                if run.offset.checked_add(run.len()).is_none_or(|end| end > size) {
                    return wrong(&format!("beyond the end of pages-{}.img", run.file));
                }
            }
        }
        Ok(())
    }
}

/// The rest of the bytes that fields are taken from.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn magic_and_version(&mut self) -> Option<u32> {
        (self.take()? == MAGIC).then(|| self.u32())?
    }

    fn run(&mut self) -> Option<PageRun> {
        Some(PageRun {
            vaddr: self.u64()?,
            pages: self.u32()?,
            file: self.u16()?,
            flags: self.u16()?,
            offset: self.u64()?,
            digest: self.u64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BIG: u64 = 1 << 40;

    fn run(vaddr: u64, pages: u32) -> PageRun {
        PageRun { vaddr, pages, file: 0, flags: 0, offset: 0, digest: 1 }
    }

    fn parse(bytes: &[u8]) -> Result<Index> {
        Index::parse(Path::new("pages.idx"), bytes, |file| (file < 2).then_some(BIG))
    }

    fn bytes(sections: &[(Owner, Vec<PageRun>)]) -> Vec<u8> {
        let mut index = Index::default();
        for (owner, runs) in sections {
            let first = index.runs.len();
            index.runs.extend(runs);
            index.sections.push((*owner, first..index.runs.len()));
        }
        index.to_bytes()
    }

    fn said(bytes: &[u8]) -> String {
        parse(bytes).unwrap_err().to_string()
    }

    #[test]
    fn owners_are_found_and_strangers_have_nothing() {
        let sections = [
            (Owner::Shared(4), vec![run(0, 1)]),
            (Owner::Process(7), vec![run(0x1000, 2), run(0x3000, 256)]),
            (Owner::Process(1), vec![]),
        ];
        let index = Index::new(&sections, |_| Some(BIG)).unwrap();
        let index = parse(&index.to_bytes()).unwrap();
        for (owner, runs) in &sections {
            assert_eq!(index.of(*owner), runs);
        }
        assert_eq!(index.of(Owner::Process(2)), []);
        assert_eq!(index.sections().count(), 3);
    }

    #[test]
    fn an_empty_index_is_an_index() {
        assert_eq!(parse(&Index::default().to_bytes()).unwrap().sections().count(), 0);
    }

    #[test]
    fn every_rule_is_kept() {
        let one = |run: PageRun| said(&bytes(&[(Owner::Process(1), vec![run])]));
        assert!(one(run(0, 0)).contains("a run of 0 pages"));
        assert!(one(run(0, 257)).contains("a run of 257 pages"));
        assert!(one(run(1, 1)).contains("beginning of a page"));
        assert!(one(PageRun { offset: 512, ..run(0, 1) }).contains("beginning of a page"));
        assert!(one(run(u64::MAX - 4095, 1)).contains("beyond the last address"));
        assert!(
            one(PageRun { offset: u64::MAX - 4095, ..run(0, 1) }).contains("beyond the end of pages-0.img")
        );
        assert!(one(PageRun { offset: BIG, ..run(0, 1) }).contains("beyond the end of pages-0.img"));
        assert!(one(PageRun { file: 2, ..run(0, 1) }).contains("pages-2.img, which is not in the image"));
        let two = |a, b| said(&bytes(&[(Owner::Process(1), vec![a, b])]));
        assert!(two(run(0x1000, 2), run(0x2000, 1)).contains("not after the run before it"));
        let owners = |a, b| said(&bytes(&[(a, vec![]), (b, vec![])]));
        assert!(owners(Owner::Process(1), Owner::Process(1)).contains("does not come after"));
        assert!(owners(Owner::Shared(1), Owner::Process(1)).contains("does not come after"));
        assert!(said(&bytes(&[(Owner::Process(0), vec![])])).contains("no process"));
        assert!(said(&bytes(&[(Owner::Process(-1), vec![])])).contains("no process"));
    }

    #[test]
    fn every_field_of_the_header_is_looked_at() {
        let good = bytes(&[
            (Owner::Process(1), vec![run(0, 1), run(0x1000, 1)]),
            (Owner::Shared(0), vec![run(0, 1)]),
        ]);
        parse(&good).unwrap();
        let with = |at: usize, field: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + field.len()].copy_from_slice(field);
            said(&bad)
        };
        assert!(with(0, b"X").contains("does not begin"));
        assert!(with(8, &[0]).contains("never was"));
        assert!(with(8, &[2]).contains("newer"));
        assert!(with(12, &8192u32.to_le_bytes()).contains("pages of 8192 bytes"));
        for count in [0, 1, 3, u64::MAX, u64::MAX / 24 + 1] {
            assert!(with(16, &count.to_le_bytes()).contains("don't make"), "{count}");
        }
        for count in [0, 2, 4, u64::MAX, 1 << 59] {
            assert!(with(24, &count.to_le_bytes()).contains("don't make"), "{count}");
        }
        assert!(with(32, &[2]).contains("unknown kind 2"));
        assert!(with(40, &[1]).contains("claims 2 runs from 1"));
        assert!(with(48, &u64::MAX.to_le_bytes()).contains("claims"));
        assert!(with(48, &[3]).contains("claims 1 runs from 2"));
        assert!(with(72, &[0]).contains("1 runs belong to nobody"));
    }

    #[test]
    fn every_cut_is_seen() {
        let good = bytes(&[(Owner::Process(1), vec![run(0, 1)])]);
        for len in 0..good.len() {
            assert!(parse(&good[..len]).is_err(), "{len}");
        }
        assert!(parse(&[&good[..], &[0]].concat()).is_err());
    }

    fn runs() -> impl Strategy<Value = Vec<PageRun>> {
        let parts = (0u64..1 << 20, 1..=MAX_RUN_PAGES, 0u16..2, any::<u16>(), 0u64..1 << 20, any::<u64>());
        proptest::collection::vec(parts, 0..20).prop_map(|parts| {
            let mut next = 0;
            parts
                .into_iter()
                .map(|(gap, pages, file, flags, offset, digest)| {
                    let vaddr = next + gap * PAGE;
                    next = vaddr + u64::from(pages) * PAGE;
                    PageRun { vaddr, pages, file, flags, offset: offset * PAGE, digest }
                })
                .collect()
        })
    }

    fn owner() -> impl Strategy<Value = Owner> {
        prop_oneof![(1..=i32::MAX).prop_map(Owner::Process), any::<u32>().prop_map(Owner::Shared)]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(sections in proptest::collection::hash_map(owner(), runs(), 0..10)) {
            let sections: Vec<_> = sections.into_iter().collect();
            let index = Index::new(&sections, |_| Some(BIG)).unwrap();
            let read = parse(&index.to_bytes()).unwrap();
            for (owner, runs) in &sections {
                prop_assert_eq!(read.of(*owner), runs.as_slice());
            }
            prop_assert_eq!(read, index);
        }

        #[test]
        fn any_bytes_are_an_answer_or_an_error(
            bytes: Vec<u8>, sections in proptest::collection::hash_map(owner(), runs(), 0..4),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let _ = parse(&bytes);
            let sections: Vec<_> = sections.into_iter().collect();
            let mut bytes = Index::new(&sections, |_| Some(BIG)).unwrap().to_bytes();
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(index) = parse(&bytes) {
                prop_assert!(index.runs().iter().all(|run| run.offset + run.len() <= BIG));
            }
        }
    }
}
