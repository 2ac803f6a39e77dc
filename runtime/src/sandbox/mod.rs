//! The sandbox: namespaces, mounts, devices, identity: everything between a clone and the job's first instruction.
//!
//! Two processes build it. **ckrun**, outside ([`build`] in this file), reads and checks everything, makes the clone,
//! and does what needs the host: id maps, cgroups, network devices, hooks, the state on disk. The **init**, inside
//! ([`init`]), makes the mounts, changes the root and becomes the job. They work at the same time and meet only where
//! one needs the other ([`channel`]).

pub mod build;
pub mod caps;
mod cgroup_mount;
pub mod channel;
pub mod claim;
pub mod command;
pub mod console;
mod copy_up;
pub mod destroy;
mod devices;
mod filesystem;
pub mod guardian;
pub mod hooks;
pub mod identity;
mod idmap;
mod idmapped;
pub mod init;
pub mod intel_rdt;
pub mod job;
pub mod keyring;
pub mod knock;
pub mod labels;
pub mod mount_options;
mod mounts;
pub mod namespaces;
pub mod netdev;
pub mod oom;
mod park;
mod pivot;
pub mod places;
pub mod procfs;
mod protect;
pub mod rlimits;
pub mod root;
pub mod scheduling;
pub mod seccomp;
pub mod shield;
pub mod sysctl;
#[cfg(test)]
mod testing;
mod tree;
pub mod validate;
pub mod visit;
mod wanted;

/// The wishes of the command line for a new container.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The host's root is an initramfs: no pivot_root.
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// What of the host was put where in the container, by somebody who answers for it, and whose sockets are whose.
    pub maps: crate::remap::Maps,
    /// The job may ask for checkpoints, and this is the directory for them.
    pub job_api: Option<std::path::PathBuf>,
    /// System calls of the job that somebody outside is asked about.
    pub asks: Option<seccomp::Filter>,
    /// Descriptors of the caller that the job keeps.
    pub inherited: job::Inherited,
    /// cgroups are made by systemd.
    pub systemd_cgroup: bool,
    /// No cgroups at all.
    pub no_cgroups: bool,
    /// ckrun runs without the host's root.
    pub rootless: bool,
}
