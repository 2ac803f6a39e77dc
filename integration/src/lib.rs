//! What the tests of whole ckrun stand on: bundles to run, ckrun to run them, and a look at what it leaves behind.
//!
//! - [`bundle`]: a container of a test's own, in a temporary directory;
//! - [`run`]: ckrun as a child process, and what it said;
//! - [`pipes`]: lines from pipes and the ends of processes, awaited;
//! - [`terminal`]: pseudoterminals and descriptors sent over sockets;
//! - [`agent`]: the other side of a seccomp listener;
//! - [`guests`], [`status`], [`job`]: programs that verify their own state, checkpointed and restored;
//! - [`programs`]: real programs in containers;
//! - [`bystander`]: processes and cgroups of somebody else;
//! - [`snapshot`]: the processes of a job as the host sees them;
//! - [`clients`]: podman, buildah, containerd and Docker, each in directories of its own;
//! - [`told`]: plugins that write down what they hear;
//! - [`supervisor`]: the processes that such a job has of ckrun;
//! - [`trace`]: ckrun killed at any of its system calls;
//! - [`hosts`]: two emulator hosts, made of namespaces;
//! - [`machine`]: a host with another kernel and CPU, in QEMU;
//! - [`images`]: images that no job was needed for;
//! - [`leftovers`]: what must not be there afterwards.
//!
//! Everything in here panics when something is wrong: that is how a test fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

pub mod agent;
pub mod bundle;
pub mod bystander;
pub mod clients;
pub mod emulator;
pub mod guests;
pub mod hosts;
pub mod images;
pub mod job;
pub mod leftovers;
pub mod machine;
pub mod networks;
pub mod pipes;
pub mod programs;
pub mod run;
pub mod snapshot;
pub mod status;
pub mod supervisor;
pub mod terminal;
pub mod told;
pub mod trace;
