//! `ckrun state`: what a container is doing.

use super::{Context, look, print_json};
use crate::error::Result;
use crate::state::{OCI_VERSION, State};
use crate::status::Status;
use serde::Serialize;
use std::collections::HashMap;
use std::path::Path;

/// Print a container's state as JSON
///
/// status is one of creating, created, running, paused, stopped; pid is the init's id on the host, 0 when stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ckrun state web | jq -r .status")]
pub struct Args {
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
}

/// What `state` and `list` print of a container; runc's keys.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown<'a> {
    oci_version: &'static str,
    id: &'a str,
    pid: i32,
    status: Status,
    bundle: &'a Path,
    rootfs: &'a Path,
    created: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a HashMap<String, String>>,
    owner: String,
}

impl<'a> Shown<'a> {
    /// Puts together what is known.
    pub fn of(state: &'a State, status: Status) -> Self {
        Shown {
            oci_version: OCI_VERSION,
            id: &state.id,
            pid: if status == Status::Stopped { 0 } else { state.init.map_or(0, |i| i.pid) },
            status,
            bundle: &state.bundle,
            rootfs: &state.rootfs,
            created: &state.created,
            annotations: state.annotations.as_ref(),
            owner: user_name(state.owner),
        }
    }

    /// The columns of `ckrun list`.
    pub fn columns(&self) -> [String; 6] {
        [
            self.id.to_owned(),
            self.pid.to_string(),
            self.status.to_string(),
            self.bundle.display().to_string(),
            self.created.to_owned(),
            self.owner.clone(),
        ]
    }
}

/// The name of a user in /etc/passwd, else the number: a static binary can't load the C library's other sources.
fn user_name(uid: u32) -> String {
    let table = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry = table.lines().find(|line| line.split(':').nth(2).and_then(|n| n.parse().ok()) == Some(uid));
    entry.and_then(|line| line.split(':').next()).map_or_else(|| format!("#{uid}"), str::to_owned)
}

/// Carries it out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let (_, state, status) = look(context, &args.id)?;
    print_json(&Shown::of(&state, status))
}
