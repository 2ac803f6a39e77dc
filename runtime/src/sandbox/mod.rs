//! The sandbox.

pub mod caps;
pub mod identity;
pub mod keyring;
pub mod labels;
pub mod netdev;
pub mod oom;
pub mod procfs;
pub mod rlimits;
pub mod scheduling;
pub mod seccomp;
pub mod sysctl;
#[cfg(test)]
mod testing;
