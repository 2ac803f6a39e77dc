//! `ckrun checkpoint`: write a job to an image.

use super::carry::{CarryArgs, absolute, refuse};
use super::subject::Subject;
use super::{Context, print_json, print_line};
use crate::criu::stats;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::progress::size;
use ckrun_virt::checkpoint::Report;
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
    let (image, outward) = (&args.carry.image_path, args.carry.outward());
    let mut subject = Subject::find(context, "checkpoint", &args.id, image, args.leave_running, outward)?;
    if args.carry.without_network() {
        subject = subject.without_network();
    }
    subject = subject.with_cgroups(args.carry.manage_cgroups_mode);
    if args.dry_run {
        return look(args, &subject);
    }
    let report = subject.take(&mut ())?;
    let image = absolute(&args.carry.image_path)?;
    log::debug!("{}", summary(&image, &report));
    args.carry.figures(|dir| stats::dumped(dir, &report));
    tell(args, &image, &report)?;
    Ok(0)
}

fn check(args: &Args) -> Result<()> {
    if args.pre_dump {
        let why = "--pre-dump is not supported: take a whole image with --leave-running instead";
        return Err(Error::Usage(format!("checkpoint: {why}")));
    }
    refuse("checkpoint", "--page-server", args.page_server.is_some())?;
    args.carry.check("checkpoint")
}

fn look(args: &Args, subject: &Subject) -> Result<i32> {
    let blockers = subject.survey()?;
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

pub(super) fn milliseconds(time: Duration) -> f64 {
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
