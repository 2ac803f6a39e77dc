//! A restart: the story of how an image becomes a running job.
//!
//! The runtime has built a sandbox, as for a new job, and its first process waits in it. ckrun takes that over and makes
//! the tree from it. Every task is traced, and dies with ckrun, until all of them are let go together.

mod draft;
mod options;

pub use draft::{Draft, Problem};
pub use options::{Changed, NetworkIs, Options, Peer};

use crate::cgroups::Places;
use crate::events::Events;
use crate::image::{Bytes, Image};
use crate::making::Making;
use crate::table::{Generation, Id, Seen, Table, Time};
use crate::{Error, fault, mounts, tmpfs};
use nix::unistd::Pid;
use serde::Serialize;
use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The number of the one descriptor, besides the standard streams, that a process has which is to become the first one
/// of a restored job: a SOCK_SEQPACKET socket, whose other end ckrun has.
pub const HATCH: RawFd = 3;

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How long all of it took.
    pub total: Duration,
    /// Processes of the job.
    pub processes: usize,
    /// Threads of the job.
    pub threads: usize,
    /// Size of the memory that was read.
    pub bytes: u64,
    /// What the job's ids stand for now; to be kept with the job's state.
    #[serde(skip)]
    pub table: Table,
}

/// What the process that is to become the job's first one needs of the image inside the sandbox. It can't open the
/// image itself: it may be in a user namespace, for whose root the files are another user's.
#[derive(Debug, Default)]
pub struct Baggage {
    tmpfs: tmpfs::Contents,
    mounts: mounts::Changes,
}

impl Baggage {
    /// Reads and opens it, before there is a sandbox.
    ///
    /// # Errors
    /// Those of the image.
    pub fn open(image: &Image) -> Result<Baggage, Error> {
        fault::point("restore:tmpfs")?;
        let mounts: mounts::Changes = image.json(mounts::FILE)?;
        mounts.check().map_err(|why| Error::Damaged(format!("{}: {why}", mounts::FILE)))?;
        Ok(Baggage { tmpfs: tmpfs::Contents::open(image)?, mounts })
    }
}

/// What a process that is to become the job's first one does inside the sandbox: contents of file systems, and what the
/// job had changed about its mounts. `made` are the paths at which the sandbox has mounted a new tmpfs. The answer is the
/// mount namespaces of the job, for which it is to have the numbers from [`HATCH`] on.
///
/// # Errors
/// The kernel's, the image's.
pub fn inside<'p>(
    baggage: &Baggage,
    made: impl IntoIterator<Item = &'p Path>,
) -> Result<mounts::Namespaces, Error> {
    tmpfs::restore(&baggage.tmpfs, made)?;
    mounts::restore(&baggage.mounts, &baggage.tmpfs)
}

/// Makes `init`, which waits at the other end of `hatch`, the job of `draft`, and lets the job go.
///
/// # Errors
/// What [`Draft::look_around`] finds, the kernel's, the image's. What has been made dies with ckrun, or with `init`.
pub fn restore(
    draft: Draft<'_>,
    init: Pid,
    hatch: OwnedFd,
    options: &Options,
    events: &mut dyn Events,
) -> Result<Report, Error> {
    let began = Instant::now();
    let problems = draft.look_around(init, options)?;
    if !problems.is_empty() {
        return Err(Error::Unsupported(named(&problems)));
    }
    let Draft { image, job, mut table, namespaces, bridge } = draft;
    let bridge = bridge.map_err(Error::Unsupported)?;
    fault::point("restore:seize")?;
    let cgroups = Places::of(&job.cgroups, &options.cgroups)?;
    let mut making = Making::begin(&job, image, bridge, init, hatch, namespaces, cgroups)?;
    fault::point("restore:files")?;
    making.files(options)?;
    fault::point("restore:tree")?;
    making.tree(events)?;
    fault::point("restore:threads")?;
    making.threads()?;
    fault::point("restore:state")?;
    making.state()?;
    making.cgroups(options.own_cgroups)?;

    let now = Time::now();
    let number = table.generation().saturating_add(1);
    table.rebind(Generation::here(number, now)?).map_err(|e| Error::Damaged(format!("table.json: {e}")))?;
    bind(&mut table, options, now)?;
    let mut seen = Seen::made(making.processes())?;
    job.files.show(&mut seen);
    table.observe(&seen, now).map_err(|e| Error::Damaged(format!("table.json: {e}")))?;
    if let Some(id) = table.awaited().first() {
        return Err(Error::Damaged(format!("table.json: nobody in tasks.json has the id {id}")));
    }
    events.restart(making.renewed())?;

    fault::point("restore:registers")?;
    making.registers()?;
    events.running(&table, &mut making)?;
    fault::point("restore:release")?;
    let rubble = making.wake(init)?;
    let bytes = making.bytes;
    making.release()?;
    drop(rubble);
    Ok(Report { total: began.elapsed(), processes: job.members.len(), threads: job.cpu.len(), bytes, table })
}

/// So many problems are named at once: a job may have thousands of files, all of which lack.
const NAMED: usize = 20;

fn named(problems: &[Problem]) -> String {
    let named: Vec<String> = problems.iter().take(NAMED).map(ToString::to_string).collect();
    let more = problems.len() - named.len();
    let more = if more > 0 { format!("; and {more} more, which --dry-run names") } else { String::new() };
    named.join("; ") + &more
}

/// Binds the devices and sockets that the job had, and those that it has from now on.
fn bind(table: &mut Table, options: &Options, now: Time) -> Result<(), Error> {
    let had = table.awaited().into_iter().filter_map(|id| match id {
        Id::Device(path) => Some((options.devices.to_real(path.as_path())?, path)),
        _ => None,
    });
    let new = options.devices.iter().map(|rule| (rule.to.clone(), rule.from.clone().into()));
    let all: BTreeMap<Bytes, PathBuf> = had.chain(new).map(|(real, path)| (path, real)).collect();
    for (path, real) in all {
        let bound = table.bind(&Id::Device(path), &Id::Device(real.into()), now);
        bound.map_err(|e| Error::Damaged(format!("table.json: {e}")))?;
    }
    table.describe(options.vendors.clone());
    for (name, peer) in &options.sockets {
        let bound = table.bind(&Id::Socket(name.clone()), &Id::Socket(peer.name()), now);
        bound.map_err(|e| Error::Damaged(format!("table.json: {e}")))?;
    }
    for (id, real) in &options.bound {
        table.bind(id, real, now).map_err(|e| Error::Damaged(format!("table.json: {e}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_problems_are_named_and_the_others_counted() {
        let problems: Vec<_> = (0..NAMED + 2)
            .map(|n| Problem { what: format!("/file-{n}"), why: "is not there".into() })
            .collect();
        assert_eq!(named(&problems[..2]), "/file-0: is not there; /file-1: is not there");
        let all = named(&problems);
        assert!(all.ends_with("/file-19: is not there; and 2 more, which --dry-run names"), "{all}");
    }
}
