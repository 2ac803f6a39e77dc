//! Transactions as bytes on a link. Everything is a word of 32 bits, little-endian.
//!
//! ```text
//!  request    0 length   4 sequence   8 operation           12 operands and data …
//!  reply      0 length   4 sequence   8 status │ bit 31:    12 cycle, low   16 cycle, high   20 data …
//!                                              │ interrupt
//! ```
//!
//! The length is that of the whole frame in bytes. Sequence numbers count up by one on a link, wrapping; the first
//! one of a connection may be any.

use crate::transaction::{MAX_WORDS, Reply, Request, Status};

/// The longest frame: a write to RAM, or its reading.
pub const MAX_FRAME: usize = 4 * (MAX_WORDS + 8);

const INTERRUPT: u32 = 1 << 31;

/// Operation numbers.
mod operation {
    pub const READ_REGISTER: u32 = 1;
    pub const WRITE_REGISTER: u32 = 2;
    pub const READ_RAM: u32 = 3;
    pub const WRITE_RAM: u32 = 4;
    pub const PUSH: u32 = 5;
    pub const POP: u32 = 6;
    pub const STEP: u32 = 7;
    pub const WAIT_INTERRUPT: u32 = 8;
    pub const CYCLE: u32 = 9;
    pub const DIGEST: u32 = 10;
}

/// What is wrong with a frame. After it nothing on the link makes sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Broken {
    #[error("a frame of {0} bytes")]
    Length(usize),
    #[error("unknown operation {0}, or operands that it can't have")]
    Operation(u32),
    #[error("unknown status {0}")]
    Status(u32),
}

/// The words of the first frame in `bytes`, and how many bytes it has; `None` if it is not complete yet.
fn first(bytes: &[u8], least: usize) -> Result<Option<(Vec<u32>, usize)>, Broken> {
    let Some(length) = bytes.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if !length.is_multiple_of(4) || !(least..=MAX_FRAME).contains(&length) {
        return Err(Broken::Length(length));
    }
    let Some(frame) = bytes.get(4..length) else { return Ok(None) };
    Ok(Some((frame.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect(), length)))
}

fn put(out: &mut Vec<u8>, head: &[u32], data: &[u32]) {
    let length = 4 * (1 + head.len() + data.len()) as u32;
    out.extend(length.to_le_bytes());
    out.extend(head.iter().chain(data).flat_map(|word| word.to_le_bytes()));
}

impl Request {
    /// Appends the frame of this request.
    pub fn encode(&self, sequence: u32, out: &mut Vec<u8>) {
        let two = |n: u64| [n as u32, (n >> 32) as u32];
        let mut simple = |operation, operands: &[u32]| put(out, &[sequence, operation], operands);
        match self {
            Request::ReadRegister(number) => simple(operation::READ_REGISTER, &[*number]),
            Request::WriteRegister(number, value) => simple(operation::WRITE_REGISTER, &[*number, *value]),
            Request::ReadRam(at, count) => simple(operation::READ_RAM, &[*at, *count]),
            Request::WriteRam(at, words) => put(out, &[sequence, operation::WRITE_RAM, *at], words),
            Request::Push(words) => simple(operation::PUSH, words),
            Request::Pop(most) => simple(operation::POP, &[*most]),
            Request::Step(cycles) => simple(operation::STEP, &two(*cycles)),
            Request::WaitInterrupt(cycles) => simple(operation::WAIT_INTERRUPT, &two(*cycles)),
            Request::Cycle => simple(operation::CYCLE, &[]),
            Request::Digest => simple(operation::DIGEST, &[]),
        }
    }

    /// The first request in `bytes`: sequence number, request, length of the frame. `None` if it is not complete yet.
    pub fn decode(bytes: &[u8]) -> Result<Option<(u32, Request, usize)>, Broken> {
        let Some((words, length)) = first(bytes, 12)? else { return Ok(None) };
        let (sequence, operation, operands) = (words[0], words[1], &words[2..]);
        let request = match (operation, operands) {
            (operation::READ_REGISTER, [number]) => Request::ReadRegister(*number),
            (operation::WRITE_REGISTER, [number, value]) => Request::WriteRegister(*number, *value),
            (operation::READ_RAM, [at, count]) => Request::ReadRam(*at, *count),
            (operation::WRITE_RAM, [at, words @ ..]) => Request::WriteRam(*at, words.to_vec()),
            (operation::PUSH, words) => Request::Push(words.to_vec()),
            (operation::POP, [most]) => Request::Pop(*most),
            (operation::STEP, [low, high]) => Request::Step(long(*low, *high)),
            (operation::WAIT_INTERRUPT, [low, high]) => Request::WaitInterrupt(long(*low, *high)),
            (operation::CYCLE, []) => Request::Cycle,
            (operation::DIGEST, []) => Request::Digest,
            _ => return Err(Broken::Operation(operation)),
        };
        Ok(Some((sequence, request, length)))
    }
}

impl Reply {
    /// Appends the frame of this reply.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let status = self.status as u32 | if self.interrupt { INTERRUPT } else { 0 };
        put(out, &[self.sequence, status, self.cycle as u32, (self.cycle >> 32) as u32], &self.words);
    }

    /// The first reply in `bytes`, and the length of the frame. `None` if it is not complete yet.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Reply, usize)>, Broken> {
        let Some((mut words, length)) = first(bytes, 20)? else { return Ok(None) };
        let status = match words[1] & !INTERRUPT {
            0 => Status::Done,
            1 => Status::Refused,
            2 => Status::OutOfSequence,
            other => return Err(Broken::Status(other)),
        };
        let interrupt = words[1] & INTERRUPT != 0;
        let (sequence, cycle) = (words[0], long(words[2], words[3]));
        words.drain(..4);
        Ok(Some((Reply { sequence, status, interrupt, cycle, words }, length)))
    }
}

fn long(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_come_back_however_they_are_cut() {
        let requests = [
            Request::ReadRegister(3),
            Request::WriteRegister(16, u32::MAX),
            Request::ReadRam(1, 2),
            Request::WriteRam(9, vec![7; MAX_WORDS]),
            Request::Push(vec![]),
            Request::Pop(5),
            Request::Step(u64::MAX - 5),
            Request::WaitInterrupt(1 << 40),
            Request::Cycle,
            Request::Digest,
        ];
        for (n, request) in requests.iter().enumerate() {
            let mut bytes = Vec::new();
            request.encode(n as u32, &mut bytes);
            for cut in 0..bytes.len() {
                assert_eq!(Request::decode(&bytes[..cut]), Ok(None), "{request} cut at {cut}");
            }
            assert_eq!(Request::decode(&bytes), Ok(Some((n as u32, request.clone(), bytes.len()))));
        }
        let reply = Reply {
            sequence: 9,
            status: Status::Refused,
            interrupt: true,
            cycle: 1 << 35,
            words: vec![1, 2],
        };
        let mut bytes = Vec::new();
        reply.encode(&mut bytes);
        let length = bytes.len();
        bytes.push(0xff);
        assert_eq!(Reply::decode(&bytes), Ok(Some((reply, length))));
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(Request::decode(&[0xff; 8]), Err(Broken::Length(0xffff_ffff)));
        assert_eq!(Request::decode(&[13, 0, 0, 0]), Err(Broken::Length(13)));
        let mut bytes = Vec::new();
        put(&mut bytes, &[0, 77], &[]);
        assert_eq!(Request::decode(&bytes), Err(Broken::Operation(77)));
    }
}
