//! The software emulator that ships with ckrun: something that a job can be tied to as to a hardware emulator, small
//! enough to be understood, and so deterministic that a single lost, doubled or reordered byte shows.
//!
//! - [`design`]: the hardware, cycle by cycle; [`hardware`]: what any other needs to take its place;
//! - [`transaction`]: what can be asked of it; [`frame`]: the same as bytes;
//! - [`link`]: what a testbench holds: a socket, a pty, a ring in shared memory;
//! - [`server`]: slots of the design, each with its links;
//! - [`control`]: the vendor's side: claim, freeze, save, load, for plugins and by hand;
//! - [`state`]: a slot as a file;
//! - [`plugin`]: takes a slot with a job from host to host;
//! - [`client`], [`testbench`]: a job that checks every reply.

pub mod cli;
pub mod client;
pub mod control;
pub mod design;
pub mod error;
pub mod frame;
pub mod hardware;
pub mod link;
pub mod plugin;
pub mod server;
pub mod state;
pub mod testbench;
pub mod transaction;

pub use control::Control;
pub use error::{Error, Result};
