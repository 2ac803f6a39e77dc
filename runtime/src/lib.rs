//! ckrun: an OCI container runtime whose jobs can be checkpointed and started again elsewhere.
//!
//! The library is what the thin `main.rs` calls. Its rooms:
//!
//! - [`cli`]: the command line, [`global`]: its options for every verb, [`named`]: those of the verb that it names; [`verbs`]: one file for each verb of it; [`report`]: how an error or a log line is said; [`journal`]: the log that a checkpoint leaves;
//! - [`config`]: a bundle's config.json; [`cdi`]: what device specs of vendors add to it;
//! - [`state`]: what ckrun remembers of a container between two verbs;
//! - [`status`]: where a container is in its life;
//! - [`sandbox`]: namespaces, mounts, devices, identity: everything between a clone and the job's first instruction;
//! - [`plugin`]: programs that speak for what a job is tied to outside;
//! - [`supervisor`]: the process that a job with plugins has;
//! - [`foreground`]: ckrun while it waits for a job: signals, the terminal, the end;
//! - [`cgroup`]: limits, accounting, freezing, on cgroup v1 and v2;
//! - [`criu`]: what clients expect of CRIU;
//! - [`error`]: everything that can go wrong.

pub mod cdi;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod criu;
pub mod error;
pub mod foreground;
pub mod global;
pub mod handover;
pub mod intercept;
pub mod job_api;
pub mod journal;
pub mod named;
pub mod plugin;
pub mod progress;
pub mod remap;
pub mod report;
pub mod sandbox;
pub mod state;
pub mod status;
pub mod supervisor;
pub mod user;
pub mod verbs;
