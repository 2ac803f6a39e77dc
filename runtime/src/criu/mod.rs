//! What the clients of a runtime expect of CRIU: that there is a `criu` to ask for its version ([`serve`]), that an image
//! has a certain file ([`inventory`]), and that there are figures in a certain format ([`stats`]). ckrun does all of that
//! itself, and has nothing else in common with CRIU: the images are its own.

pub mod inventory;
mod serve;
pub mod stats;
mod wire;

pub use serve::{is_meant, main};
