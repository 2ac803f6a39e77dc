//! Process-level virtualisation for ckrun.
//!
//! This crate knows processes, their kernel resources and the calls that make and inspect them. It knows nothing of OCI
//! or of command lines: those are the `ckrun` crate's, which stands on this one.
//!
//! - [`sys`]: system calls that neither libc, nix nor rustix wraps, each wrapped once;
//! - [`proc`]: what ckrun reads of `/proc`;
//! - [`table`]: what a job's names stand for on this host, now and before;
//! - [`process`]: a process that can't be mistaken for another one;
//! - [`program`]: system calls that a stopped task is to make itself;
//! - [`resource`]: what the rooms of the kinds of state have in common;
//! - [`events`]: the moments of a checkpoint and a restart at which others have something to do;
//! - [`clocks`]: a job's clocks go on where they were;
//! - [`fault`]: points at which a test can make ckrun die;
//! - [`fd`]: descriptors and what is behind them; [`fs`]: directories and umask;
//! - [`image`]: a checkpoint on disk;
//! - [`memory`]: address spaces, read and built again;
//! - [`netlink`]: questions to the kernel about network namespaces; [`network`]: what is in the job's;
//! - [`sysv`]: semaphores and message queues; [`uts`]: host and domain name;
//! - [`tmpfs`]: contents of file systems in memory; [`mounts`]: those that a job has made;
//! - [`cpu`]: what a thread has in the CPU;
//! - [`error`]: a failed call, said so that a person can act on it.

pub mod capture;
pub mod checkpoint;
pub mod clocks;
pub mod cpu;
pub mod creds;
pub mod dispatch;
pub mod endings;
pub mod error;
pub mod events;
pub mod exit;
pub mod fault;
pub mod fd;
pub mod fs;
pub mod hex;
pub mod image;
pub mod interval_timers;
pub mod job;
pub mod landlock;
pub mod limits;
pub mod listing;
pub mod login;
mod making;
pub mod memory;
pub mod mempolicy;
pub mod mounts;
pub mod namespace;
pub mod netlink;
pub mod network;
pub mod nursery;
pub mod oom;
pub mod outside;
pub mod overruns;
pub mod owned;
pub mod proc;
pub mod process;
pub mod program;
pub mod resource;
pub mod restore;
pub mod rooms;
pub mod sched;
pub mod seccomp;
pub mod seize;
pub mod signals;
pub mod snapshot;
pub mod status;
pub mod still;
mod storing;
mod stub;
pub mod survey;
pub mod switches;
pub mod sys;
pub mod sysv;
pub mod table;
pub mod timers;
pub mod tmpfs;
pub mod tracee;
pub mod tree;
pub mod unusual;
pub mod uts;
pub mod vdso;
pub mod visit;
pub mod worker;

pub use error::{Doing, Error, Failure};
pub use process::Process;
