//! A process's memory: read from outside while the process is stopped, and built again in a new one.
//!
//! Capture: [`Layout::read`] reads the map, [`MmState::capture`] the kernel's notes beside it, [`dump`] stores the pages
//! that are the process's own, [`dump_object`] those of what processes share. [`survey`] tells beforehand what can't be
//! carried.
//!
//! Restore, in a stopped task that runs calls for ckrun: a [`Plan`] says what it keeps of what it has inherited, [`build`]
//! makes the mappings, [`fill`] puts the pages in place, [`finish`] adds the rest, [`seal`] closes.

pub(crate) mod aio;
mod batch;
pub mod bridge;
mod build;
mod build_id;
mod copy;
mod disks;
mod dump;
mod files;
mod fill;
mod filler;
pub(crate) mod frames;
mod layout;
mod mm;
mod object;
mod plan;
mod policy;
mod relative;
mod segment;
mod shared;
mod smaps;
mod vma;

pub use bridge::Bridge;
pub use build::{Blueprint, Handle, Handles, build, draw, finish, seal};
pub(crate) use dump::leave_the_callers_cpu;
pub use dump::{Dumped, dump, dump_object};
pub use files::{check_files, namespaces};
pub use fill::{Underway, Ways, fill, prepare};
pub use filler::{Filler, PageFiles};
pub use layout::{Layout, blockers, survey};
pub use mm::MmState;
pub use object::{Census, Kind, Object, Obstacle};
pub use plan::Plan;
pub use policy::PolicyQuestions;
pub use relative::Relative;
pub use shared::{make_objects, open_elsewhere, seal_objects};
pub use vma::{Backing, Flags, PAGE, Prot, Span, Vma};

#[cfg(test)]
mod restore_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
