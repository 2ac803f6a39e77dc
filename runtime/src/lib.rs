//! ckrun: an OCI container runtime whose jobs can be checkpointed and started again elsewhere.
//!
//! The library is what the thin `main.rs` calls. Its rooms:
//!
//! - [`config`]: a bundle's config.json; [`cdi`]: what device specs of vendors add to it;
//! - [`state`]: what ckrun remembers of a container between two verbs;
//! - [`sandbox`]: namespaces, mounts, devices, identity: everything between a clone and the job's first instruction;
//! - [`cgroup`]: limits, accounting, freezing, on cgroup v1 and v2;
//! - [`error`]: everything that can go wrong.

pub mod cdi;
pub mod cgroup;
pub mod config;
pub mod error;
pub mod sandbox;
pub mod state;
