//! The plugin protocol of ckrun, version 1.0 (`plugins/PROTOCOL.md`): its messages as types, its framing, and what a plugin
//! in Rust needs.
//!
//! A plugin implements [`Plugin`] and hands itself to [`serve()`]; its methods speak to ckrun by [`Ckrun`]. The example
//! `echo` is a whole one.
//!
//! Both sides use the rest:
//!
//! - [`wire`]: the socket, lines and descriptors; [`message`]: one line of JSON-RPC;
//! - [`event`]: the names of the events, deadlines, notifications; [`occasion`]: what each event says;
//! - [`binding`]: what a plugin ties to a job; [`call`]: what it may ask of ckrun;
//! - [`fault`]: errors and their codes; [`number`]: hexadecimal numbers and base64.
//!
//! [`rehearsal`] plays ckrun's part in the tests of a plugin.

pub mod binding;
pub mod call;
pub mod ckrun;
pub mod event;
pub mod fault;
pub mod message;
pub mod number;
pub mod occasion;
pub mod plugin;
pub mod rehearsal;
pub mod serve;
pub mod wire;

pub use binding::{Address, Attachment, Binding, Real};
pub use ckrun::Ckrun;
pub use event::{Event, Grant, Level};
pub use fault::{Code, Fault};
pub use occasion::{After, Job, Reason, Requirements, Saved};
pub use plugin::Plugin;
pub use serve::{serve, serve_on};
