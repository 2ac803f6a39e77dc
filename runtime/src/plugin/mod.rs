//! Plugins: programs that speak for what a job is tied to outside its container (plugins/PROTOCOL.md).
//!
//! - [`asked`]: which plugins a job is to have;
//! - [`manifest`]: which program, with what options and grants;
//! - [`start`]: its confined process;
//! - [`peer`]: one plugin: requests, answers, deadlines, its calls;
//! - [`round`]: one event for several plugins, with all that comes meanwhile;
//! - [`company`]: all plugins of a job, and the order in which they hear of what happens;
//! - [`again`]: a plugin in the place of one that was killed or has failed;
//! - [`attach`]: what they bind, with its descriptors;
//! - [`calls`]: what they may ask, and [`area`]: what they keep;
//! - [`check`]: a whole life with a plugin that is to be tried;
//! - [`failed`]: what a plugin did wrong, at which event, after how many seconds.

pub mod again;
pub mod area;
pub mod asked;
pub mod attach;
pub mod calls;
pub mod check;
pub mod company;
pub mod failed;
pub mod manifest;
pub mod peer;
pub mod round;
pub mod start;

pub use asked::Asked;
pub use calls::Calls;
pub use company::Company;
pub use failed::{Failed, Why};
pub use manifest::Manifest;

#[cfg(test)]
mod tests;
