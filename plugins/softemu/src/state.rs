//! The state of a slot as a file: the design, and what was on its links.
//!
//! All numbers are little-endian.
//!
//! ```text
//!   0  magic          8   "CKSOFTEM"
//!   8  version        4   2
//!  12  RAM words      4   ┐
//!  16  FIFO words     4   ├ the design's parameters, for the message when they differ
//!  20  boot cycles    8   ┘
//!  28  design digest 16   XXH3-128 of parameters and layout
//!  44  length         8   of the two parts that follow
//!  52  the design         its length 8; of softemu's: cycle 8, boot 8, random 8; stage, word, accumulator, shadow, key, timer, period,
//!                         enable, pending 4 each; scratch 16×4; in FIFO, out FIFO: first 4, count 4, words; RAM
//!      the links          count 4, then each: kind 4, next sequence number 8 (2³² = any),
//!                         requests that were not served, replies that were not delivered, image of the ring:
//!                         each as length 8 and bytes
//!      checksum      16   XXH3-128 of everything before it
//! ```

use crate::design::{Design, Fifo, Parameters};
use crate::error::{Doing, Error, Result};
use crate::hardware::Hardware;
use crate::link::Kind;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

const MAGIC: &[u8; 8] = b"CKSOFTEM";
/// The version of the format that is written; older ones would be read.
pub const VERSION: u32 = 2;
const HEADER: usize = 52;
const CHECKSUM: usize = 16;

/// Why a state file can't be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Unfit {
    #[error("not a state file of softemu")]
    Foreign,
    #[error("truncated: {found} bytes instead of {expected}")]
    Truncated { found: u64, expected: u64 },
    #[error("written by a newer softemu: format {0}, this one reads up to {VERSION}")]
    Newer(u32),
    #[error("altered: {0}")]
    Altered(&'static str),
    #[error("the state of another design: {theirs} (here: {ours})")]
    OtherDesign { theirs: String, ours: String },
}

/// What was on a link when its slot was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkState {
    /// Which link of the slot.
    pub kind: Kind,
    /// The sequence number that the next request must have; `None` before the first one.
    pub next: Option<u32>,
    /// Bytes of requests that the job has sent and that were not served.
    pub requests: Vec<u8>,
    /// Bytes of replies that have not reached the job.
    pub replies: Vec<u8>,
    /// Of a ring, the whole of it: a job may keep positions in its own memory, so they must not change.
    pub ring: Vec<u8>,
}

/// The state of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot<H = Design> {
    /// Its design.
    pub design: H,
    /// Its links.
    pub links: Vec<LinkState>,
}

impl<H: Hardware> Snapshot<H> {
    /// The file's contents.
    pub fn save(&self) -> Vec<u8> {
        Snapshot::encode(&self.design, &self.links)
    }

    /// Those of a design and its links.
    pub fn encode(design: &H, links: &[LinkState]) -> Vec<u8> {
        let parameters = design.parameters();
        let state = design.state();
        let mut body = Vec::with_capacity(state.len() + 64);
        put_u64(&mut body, state.len() as u64);
        body.extend(state);
        put_u32(&mut body, links.len() as u32);
        for link in links {
            put_u32(&mut body, link.kind as u32);
            put_u64(&mut body, link.next.map_or(1 << 32, u64::from));
            for bytes in [&link.requests, &link.replies, &link.ring] {
                put_u64(&mut body, bytes.len() as u64);
                body.extend_from_slice(bytes);
            }
        }
        let mut file = Vec::with_capacity(HEADER + body.len() + CHECKSUM);
        file.extend_from_slice(MAGIC);
        put_u32(&mut file, VERSION);
        put_u32(&mut file, parameters.ram);
        put_u32(&mut file, parameters.fifo);
        put_u64(&mut file, parameters.boot);
        file.extend(H::identity(parameters).to_le_bytes());
        put_u64(&mut file, body.len() as u64);
        file.extend(body);
        let checksum = xxh3_128(&file);
        file.extend(checksum.to_le_bytes());
        file
    }

    /// The snapshot in a file's contents, for a design of these parameters.
    pub fn load(file: &[u8], parameters: Parameters) -> std::result::Result<Snapshot<H>, Unfit> {
        let theirs = check(file, parameters, H::identity(parameters))?;
        let mut input = Input { rest: &file[HEADER..file.len() - CHECKSUM] };
        let length = input.u64()?;
        let design = H::resume(theirs, input.take(length)?)?;
        let mut links = Vec::new();
        for _ in 0..input.u32()? {
            let kind = Kind::from_number(input.u32()?).ok_or(Unfit::Altered("unknown kind of link"))?;
            let next = match input.u64()? {
                n if n <= u64::from(u32::MAX) => Some(n as u32),
                n if n == 1 << 32 => None,
                _ => return Err(Unfit::Altered("sequence number out of range")),
            };
            let [requests, replies, ring] = [input.counted()?, input.counted()?, input.counted()?];
            links.push(LinkState { kind, next, requests, replies, ring });
        }
        if !input.rest.is_empty() {
            return Err(Unfit::Altered("bytes after the last link"));
        }
        Ok(Snapshot { design, links })
    }

    /// Writes the file: under a temporary name first, so that `path` is complete or absent.
    pub fn write(bytes: &[u8], path: &Path) -> Result<()> {
        let temporary = path.with_added_extension("partial");
        let written = (|| {
            let _ = fs::remove_file(&temporary);
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written.doing(|| format!("write {}", path.display()))
    }

    /// Reads the file.
    pub fn read(path: &Path, parameters: Parameters) -> Result<Snapshot<H>> {
        let bytes = fs::read(path).doing(|| format!("read {}", path.display()))?;
        Snapshot::load(&bytes, parameters).map_err(|why| Error::State { file: path.to_owned(), why })
    }
}

/// Checks header and checksum, from what is most likely wrong to what is least, and returns the file's parameters.
fn check(file: &[u8], ours: Parameters, identity: u128) -> std::result::Result<Parameters, Unfit> {
    let found = file.len() as u64;
    if !file.starts_with(&MAGIC[..file.len().min(MAGIC.len())]) {
        return Err(Unfit::Foreign);
    }
    let least = (HEADER + CHECKSUM) as u64;
    if found < least {
        return Err(Unfit::Truncated { found, expected: least });
    }
    let mut header = Input { rest: &file[MAGIC.len()..HEADER] };
    let version = header.u32()?;
    if version > VERSION {
        return Err(Unfit::Newer(version));
    }
    let theirs = Parameters { ram: header.u32()?, fifo: header.u32()?, boot: header.u64()? };
    let digest = header.u128()?;
    let expected = header.u64()?.checked_add(least).ok_or(Unfit::Altered("impossible length"))?;
    if found < expected {
        return Err(Unfit::Truncated { found, expected });
    }
    let (content, checksum) = file.split_at(file.len() - CHECKSUM);
    if found > expected || xxh3_128(content).to_le_bytes() != checksum {
        return Err(Unfit::Altered("the checksum does not match"));
    }
    if version != VERSION || digest != identity || theirs != ours {
        let words = |p: Parameters, digest: u128| {
            format!(
                "{} words of RAM, FIFOs of {}, {} cycles of boot, digest {digest:032x}",
                p.ram, p.fifo, p.boot
            )
        };
        return Err(Unfit::OtherDesign { theirs: words(theirs, digest), ours: words(ours, identity) });
    }
    Ok(theirs)
}

/// Every bit of the state of a design, in the order of the file.
pub(crate) fn design_bytes(design: &Design) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 + 4 * (design.ram.len() + 2 * design.input.words.len()));
    for n in [design.cycle, design.boot, design.random] {
        put_u64(&mut out, n);
    }
    for n in [
        design.stage,
        design.word,
        design.accumulator,
        design.shadow,
        design.key,
        design.timer,
        design.period,
        design.enable,
        design.pending,
    ] {
        put_u32(&mut out, n);
    }
    put_words(&mut out, &design.scratch);
    for fifo in [&design.input, &design.output] {
        put_u32(&mut out, fifo.first);
        put_u32(&mut out, fifo.count);
        put_words(&mut out, &fifo.words);
    }
    put_words(&mut out, &design.ram);
    out
}

/// The other way round.
pub(crate) fn read_design(state: &[u8], parameters: Parameters) -> std::result::Result<Design, Unfit> {
    let input = &mut Input { rest: state };
    let mut design = Design::new(parameters);
    for n in [&mut design.cycle, &mut design.boot, &mut design.random] {
        *n = input.u64()?;
    }
    for n in [
        &mut design.stage,
        &mut design.word,
        &mut design.accumulator,
        &mut design.shadow,
        &mut design.key,
        &mut design.timer,
        &mut design.period,
        &mut design.enable,
        &mut design.pending,
    ] {
        *n = input.u32()?;
    }
    input.words(&mut design.scratch)?;
    for fifo in [&mut design.input, &mut design.output] {
        read_fifo(input, fifo)?;
    }
    input.words(&mut design.ram)?;
    if !input.rest.is_empty() {
        return Err(Unfit::Altered("bytes after the design"));
    }
    Ok(design)
}

fn read_fifo(input: &mut Input<'_>, fifo: &mut Fifo) -> std::result::Result<(), Unfit> {
    fifo.first = input.u32()?;
    fifo.count = input.u32()?;
    if fifo.first as usize >= fifo.words.len() || fifo.count as usize > fifo.words.len() {
        return Err(Unfit::Altered("a FIFO's position is outside of it"));
    }
    input.words(&mut fifo.words)
}

fn put_u32(out: &mut Vec<u8>, n: u32) {
    out.extend(n.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, n: u64) {
    out.extend(n.to_le_bytes());
}

fn put_words(out: &mut Vec<u8>, words: &[u32]) {
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

/// What is left to read. The checksum was right, so what is missing is a lie, not an accident.
struct Input<'a> {
    rest: &'a [u8],
}

impl Input<'_> {
    fn take(&mut self, count: u64) -> std::result::Result<&[u8], Unfit> {
        let short = Unfit::Altered("the parts are longer than the file says");
        let count = usize::try_from(count).map_err(|_| short.clone())?;
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> std::result::Result<[u8; N], Unfit> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> std::result::Result<u32, Unfit> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> std::result::Result<u64, Unfit> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn u128(&mut self) -> std::result::Result<u128, Unfit> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    fn counted(&mut self) -> std::result::Result<Vec<u8>, Unfit> {
        let count = self.u64()?;
        Ok(self.take(count)?.to_vec())
    }

    fn words(&mut self, into: &mut [u32]) -> std::result::Result<(), Unfit> {
        let bytes = self.take(4 * into.len() as u64)?;
        for (word, bytes) in into.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
