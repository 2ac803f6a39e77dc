//! The testbench: a job as verification engineers have them, only smaller.
//!
//! It opens its link once, waits until the design is ready, issues a reproducible sequence of transactions with several
//! outstanding, checks every reply, and writes everything to a log. What it prints at the end is the same for every
//! undisturbed run with the same options, over whatever link, with however many moves in between.

mod model;
mod stimulus;

use crate::client::Client;
use crate::design::{interrupt, registers};
use crate::error::{Doing, Error, Result};
use crate::link::Name;
use crate::transaction::{Reply, Request};
use model::Model;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use stimulus::Stimulus;
use xxhash_rust::xxh3::Xxh3;

/// What the pipeline multiplies by in all runs.
const KEY: u32 = 0x9e37_79b1;
/// Cycles of each step while the design is not ready.
const BOOT_STEP: u64 = 1 << 16;

/// What a testbench does.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The link: tcp:HOST:PORT, unix:PATH, dev:PATH or shm:PATH
    #[arg(long)]
    pub link: Name,
    /// Seed of the sequence of transactions
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// How many transactions, after the design has become ready
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub transactions: u64,
    /// The log; replaced if there is one
    #[arg(long, value_name = "FILE")]
    pub log: PathBuf,
    /// How many transactions may be outstanding
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub outstanding: usize,
    /// Print a line of progress after so many transactions; 0: none
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub progress: u64,
}

/// What a run ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Transactions, those of the start included.
    pub transactions: u64,
    /// The design's cycle.
    pub cycle: u64,
    /// Digest of its state.
    pub digest: u128,
    /// Hash of the log.
    pub log: u128,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { transactions, cycle, digest, log } = self;
        write!(f, "transactions {transactions} cycle {cycle} digest {digest:032x} log {log:032x}")
    }
}

/// The log: a line a transaction, and the hash of all of them.
struct Log {
    path: PathBuf,
    file: BufWriter<File>,
    line: String,
    hash: Box<Xxh3>,
    lines: u64,
}

impl Log {
    fn create(path: &PathBuf) -> Result<Log> {
        let file = BufWriter::new(File::create(path).doing(|| format!("make the log {}", path.display()))?);
        Ok(Log { path: path.clone(), file, line: String::new(), hash: Box::new(Xxh3::new()), lines: 0 })
    }

    fn write(&mut self, request: &Request, reply: &Reply) -> Result<()> {
        use fmt::Write as _;
        self.line.clear();
        let sequence = reply.sequence;
        // Writing to a string can't fail.
        let _ = writeln!(self.line, "{sequence} {request} -> {reply}");
        self.hash.update(self.line.as_bytes());
        self.lines += 1;
        self.file.write_all(self.line.as_bytes()).doing(|| format!("write {}", self.path.display()))
    }

    fn finish(&mut self) -> Result<u128> {
        self.file.flush().doing(|| format!("write {}", self.path.display()))?;
        Ok(self.hash.digest128())
    }
}

/// Runs a testbench, printing its progress to `progress`. After each reply of the sequence, `after` is told how many there
/// have been: a test can move the link then.
pub fn run(
    options: &Options,
    progress: &mut dyn Write,
    after: &mut dyn FnMut(&mut Client, u64) -> Result<()>,
) -> Result<Outcome> {
    let mut log = Log::create(&options.log)?;
    let ran = Client::open(&options.link).and_then(|mut client| {
        let mut bench = Bench { client: &mut client, log: &mut log, outstanding: VecDeque::new() };
        let model = bench.start(progress)?;
        bench.sequence(options, model, progress, after)?;
        bench.end()
    });
    // What has been logged so far is worth most when something has failed.
    let hash = log.finish()?;
    ran.map(|(cycle, digest)| Outcome { transactions: log.lines, cycle, digest, log: hash })
}

struct Bench<'a> {
    client: &'a mut Client,
    log: &'a mut Log,
    outstanding: VecDeque<Request>,
}

impl Bench<'_> {
    fn transact(&mut self, request: Request) -> Result<Reply> {
        let reply = self.client.transact(&request)?;
        self.log.write(&request, &reply)?;
        Ok(reply)
    }

    fn read(&mut self, register: u32) -> Result<u32> {
        Ok(self.transact(Request::ReadRegister(register))?.words.first().copied().unwrap_or(0))
    }

    /// Identifies the design, waits until it is ready, and sets it up.
    fn start(&mut self, progress: &mut dyn Write) -> Result<Model> {
        let identity = self.read(registers::ID)?;
        if identity != registers::IDENTITY {
            let why = format!("it is {identity:08x}, and should be {:08x}", registers::IDENTITY);
            return Err(Error::Mismatch { sequence: 0, request: "read register 0".into(), why });
        }
        let ram = self.read(registers::RAM)?;
        while self.read(registers::STATUS)? & registers::status::READY == 0 {
            self.transact(Request::Step(BOOT_STEP))?;
        }
        say(progress, format_args!("ready"))?;
        self.empty()?;
        for (register, value) in [
            (registers::KEY, KEY),
            (registers::ACCUMULATOR, 0),
            (registers::PERIOD, 500),
            (registers::PENDING, u32::MAX),
            (registers::ENABLE, interrupt::TIMER | interrupt::FAULT),
        ] {
            self.transact(Request::WriteRegister(register, value))?;
        }
        let cycle = self.transact(Request::Cycle)?.cycle;
        Ok(Model::new(cycle, ram, KEY))
    }

    /// Lets out what somebody before us has left in the pipeline.
    fn empty(&mut self) -> Result<()> {
        use registers::status::{BUSY, INPUT_EMPTY, OUTPUT_EMPTY};
        let empty = INPUT_EMPTY | OUTPUT_EMPTY;
        while self.read(registers::STATUS)? & (empty | BUSY) != empty {
            self.transact(Request::Pop(64))?;
            self.transact(Request::Step(64))?;
        }
        Ok(())
    }

    fn sequence(
        &mut self,
        options: &Options,
        mut model: Model,
        progress: &mut dyn Write,
        after: &mut dyn FnMut(&mut Client, u64) -> Result<()>,
    ) -> Result<()> {
        let mut requests = Stimulus::new(options.seed, model.ram_words()).take(options.transactions as usize);
        for done in 1..=options.transactions {
            while self.outstanding.len() < options.outstanding.max(1)
                && let Some(request) = requests.next()
            {
                self.client.issue(&request)?;
                self.outstanding.push_back(request);
            }
            let reply = self.client.reply()?;
            let Some(request) = self.outstanding.pop_front() else { break };
            self.log.write(&request, &reply)?;
            model.check(&request, &reply).map_err(|why| Error::Mismatch {
                sequence: reply.sequence,
                request: request.to_string(),
                why,
            })?;
            if options.progress > 0 && done.is_multiple_of(options.progress) {
                say(progress, format_args!("{done} cycle {}", reply.cycle))?;
            }
            after(self.client, done)?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(u64, u128)> {
        let reply = self.transact(Request::Digest)?;
        let digest = reply.words.iter().rev().fold(0, |digest, word| digest << 32 | u128::from(*word));
        Ok((reply.cycle, digest))
    }
}

fn say(progress: &mut dyn Write, what: fmt::Arguments<'_>) -> Result<()> {
    writeln!(progress, "{what}").and_then(|()| progress.flush()).doing(|| "print progress")
}
