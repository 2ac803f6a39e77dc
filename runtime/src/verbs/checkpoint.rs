//! `ckrun checkpoint`: write a job to an image.

use super::carry::{CarryArgs, absolute, own_pids, refuse, to_virt};
use super::{Context, lock, print_json, print_line, require};
use crate::cgroup::Cgroups;
use crate::config::Ask;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::progress::{Progress, size};
use crate::sandbox::guardian::{Charge, Guardian};
use crate::sandbox::{destroy, places, seccomp};
use crate::status::Status;
use ckrun_virt::checkpoint::{Options, Report, checkpoint};
use ckrun_virt::events::Events;
use ckrun_virt::survey::survey;
use ckrun_virt::table::Table;
use ckrun_virt::{Process, fault};
use serde_json::{Value, json};
use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Write a container's job to an image, from which `ckrun restore` brings it back
///
/// The job ends, unless --leave-running, and with it the container. The image is complete or absent: whatever goes wrong
/// before it is complete leaves the job running. dump.log in the directory of the image, or in that of --work-path, tells
/// what was done.
#[derive(Debug, clap::Args)]
#[command(
    args_override_self = true,
    after_help = "Examples:\n  ckrun checkpoint --image-path /images/web web\n  \
        ckrun checkpoint --dry-run web          what would stand in the way?\n  \
        ckrun checkpoint --leave-running --json --image-path /images/web.1 web"
)]
pub struct Args {
    #[command(flatten)]
    carry: CarryArgs,
    /// Let the job go on afterwards
    #[arg(long)]
    leave_running: bool,
    /// Only tell what stands in the way, as far as it can be seen without stopping the job
    #[arg(long)]
    dry_run: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    /// Taken for compatibility: an image never needs another one
    #[arg(long, value_name = "DIR", hide = true)]
    parent_path: Option<PathBuf>,
    /// Not supported: memory alone, ahead of a checkpoint
    #[arg(long, hide = true)]
    pre_dump: bool,
    /// Not supported: memory sent over the network
    #[arg(long, value_name = "ADDRESS:PORT", hide = true)]
    page_server: Option<String>,
    /// Taken for compatibility
    #[arg(long, hide = true)]
    tcp_skip_in_flight: bool,
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
}

impl Args {
    /// The log of this run.
    pub fn journal(&self) -> Option<Journal> {
        if self.dry_run { None } else { self.carry.journal("dump.log") }
    }
}

/// Carries it out. With `--dry-run` the answer is 1 when something stands in the way.
pub fn run(args: &Args, context: &Context) -> Result<i32> {
    self::check(args)?;
    let (entry, state, status) = lock(context, &args.id)?;
    require("checkpoint", &args.id, status, &[Status::Running, Status::Paused])?;
    let spec = entry.spec()?;
    own_pids(&spec)?;
    let table = Table::read(entry.dir())?;
    // What config.json says of filters holds for a job that was started by it.
    let restored = table.as_ref().is_some_and(|table| table.generation() > 0);
    let listener = !restored && spec.lx().and_then(|l| l.seccomp().as_ref()).is_some_and(seccomp::notifies);
    let gone = || Error::WrongState { verb: "checkpoint", id: args.id.clone(), status: Status::Stopped };
    let init = state.process().ok_or_else(gone)?;
    let options = Options {
        image: absolute(&args.carry.image_path)?,
        leave_running: args.leave_running,
        frozen: status == Status::Paused,
        members: state.cgroups.pids()?,
        listener,
        places: places::of(&spec),
        table: Some(table.map_or_else(|| super::ids::first(&state), Ok)?),
    };
    if args.dry_run {
        return look(args, &init, &options);
    }
    let config = entry.config()?;
    // After a sudden end of ckrun no half image stays. The job needs nobody's help: the kernel lets traced tasks go.
    let guardian = Guardian::post(entry.held(), Charge::Image(options.image.as_os_str()))?;
    if let Some(init) = state.init {
        guardian.tell(init)?;
    }
    let frozen = (status == Status::Paused).then_some(&state.cgroups);
    let mut watcher = Watcher { progress: Progress::new("checkpoint"), frozen };
    let written = checkpoint(init.pid(), &options, &[("config.json", config)], &mut watcher);
    drop(watcher);
    drop(guardian);
    if let Some(cgroups) = frozen
        && (written.is_err() || options.leave_running)
        && !cgroups.frozen()?
    {
        cgroups.freeze()?;
    }
    let report = written?;
    if !options.leave_running {
        fault::point("checkpoint:destroy")?;
        // The image is good and the job has ended: what can't be cleared away is no reason to call this a failure.
        if let Err(e) = destroy::forget(entry, &state) {
            log::warn!("{e}");
        }
    }
    log::debug!("{}", summary(&options.image, &report));
    tell(args, &options.image, &report)?;
    Ok(0)
}

fn check(args: &Args) -> Result<()> {
    refuse("checkpoint", "--pre-dump", args.pre_dump)?;
    refuse("checkpoint", "--page-server", args.page_server.is_some())?;
    args.carry.check("checkpoint")
}

/// What a checkpoint has to do at the moments of its story.
struct Watcher<'a> {
    progress: Progress,
    /// The cgroups of a job that was found frozen.
    frozen: Option<&'a Cgroups>,
}

impl Events for Watcher<'_> {
    fn seized(&mut self) -> Result<(), ckrun_virt::Error> {
        self.frozen.map_or(Ok(()), |cgroups| cgroups.thaw().map_err(to_virt))
    }

    fn resume(&mut self) -> Result<(), ckrun_virt::Error> {
        self.frozen.map_or(Ok(()), |cgroups| cgroups.freeze().map_err(to_virt))
    }

    fn progress(&mut self, done: u64, total: u64) {
        self.progress.update(done, total);
    }
}

fn look(args: &Args, init: &Process, options: &Options) -> Result<i32> {
    let blockers = survey(init.pid(), options)?;
    if args.json {
        print_json(&json!({ "blockers": blockers }))?;
    } else if blockers.is_empty() {
        print_line("nothing stands in the way of a checkpoint, as far as can be seen while the job runs")?;
    }
    if !args.json {
        blockers.iter().try_for_each(|blocker| print_line(&blocker.to_string()))?;
    }
    Ok(i32::from(!blockers.is_empty()))
}

fn tell(args: &Args, image: &Path, report: &Report) -> Result<()> {
    if args.json {
        print_json(&in_json(image, report))
    } else if stdout().is_terminal() {
        print_line(&summary(image, report))
    } else {
        // Clients expect to read nothing.
        Ok(())
    }
}

fn in_json(image: &Path, report: &Report) -> Value {
    json!({
        "image": image,
        "frozenMs": milliseconds(report.frozen),
        "totalMs": milliseconds(report.total),
        "processes": report.processes,
        "threads": report.threads,
        "bytes": report.bytes,
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

fn summary(image: &Path, report: &Report) -> String {
    format!(
        "{}: {} processes, {} threads, {}; the job stood still for {:.1} ms of {:.1} ms",
        image.display(),
        report.processes,
        report.threads,
        size(report.bytes),
        milliseconds(report.frozen),
        milliseconds(report.total),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_its_units_in_the_names() {
        let report = Report {
            frozen: Duration::from_micros(1234),
            total: Duration::from_millis(56),
            processes: 2,
            threads: 3,
            bytes: 4096,
            memory: 0,
            zeroes: 0,
        };
        let json = in_json(Path::new("/i"), &report);
        assert_eq!(json["frozenMs"], 1.234);
        assert_eq!(json["totalMs"], 56.0);
        assert_eq!((&json["image"], &json["bytes"]), (&json!("/i"), &json!(4096)));
        let said = summary(Path::new("/i"), &report);
        assert_eq!(said, "/i: 2 processes, 3 threads, 4.0 KiB; the job stood still for 1.2 ms of 56.0 ms");
    }
}
