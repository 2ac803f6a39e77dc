//! What `checkpoint` and `restore` have in common: runc's options, and what a container must be like.

use crate::config::Ask;
use crate::error::{Error, Result};
use crate::journal::{Journal, Place};
use crate::user::is_host_root;
use ckrun_virt::Doing;
use ckrun_virt::owned::{Outgoing, Outward};
use oci_spec::runtime::{LinuxNamespaceType as Kind, Spec};
use std::path::{Path, PathBuf};

/// Options of runc's that both verbs have. Those that say what may be in an image need not be given: ckrun carries what it
/// can, and names what it can't.
#[derive(Debug, clap::Args)]
pub struct CarryArgs {
    /// Directory of the image
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Directory for the log [default: that of the image]
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// Not supported: memory that is fetched later
    #[arg(long, hide = true)]
    lazy_pages: bool,
    /// Keep TCP connections to somebody outside, for a restart at the same address. Without it, and without --tcp-close, a
    /// job that has one is refused
    #[arg(long)]
    tcp_established: bool,
    /// Let the job find TCP connections to somebody outside closed
    #[arg(long)]
    tcp_close: bool,
    /// Connect Unix sockets again to somebody outside, at the path by which the container knows it. Without it, a job that
    /// has one, or its image, is refused
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Taken for compatibility
    #[arg(long, hide = true)]
    shell_job: bool,
    /// Taken for compatibility: locks are always kept
    #[arg(long, hide = true)]
    file_locks: bool,
    /// Taken for compatibility: unlinked files are always kept
    #[arg(long, hide = true)]
    link_remap: bool,
    /// Taken for compatibility: no page is stored twice
    #[arg(long, hide = true)]
    auto_dedup: bool,
    /// Which cgroups go with the job: those that it has made below the container's own (soft), also what is set in the
    /// container's own (full; strict: which must not have been there before), none of them (ignore)
    #[arg(long, value_name = "MODE", value_enum, default_value = "soft")]
    pub manage_cgroups_mode: CgroupsMode,
    /// Leave out what is in the container's network namespace: a restart's is as that of a new container
    #[arg(long, value_name = "NAMESPACE", value_parser = ["network"])]
    empty_ns: Vec<String>,
    /// Taken for compatibility: nothing is written to it unless memory is fetched later
    #[arg(long, value_name = "FD", hide = true, allow_hyphen_values = true)]
    status_fd: Option<i32>,
    /// Taken for compatibility
    #[arg(long, value_name = "CONTEXT", hide = true)]
    lsm_mount_context: Option<String>,
    /// Not supported: a security label other than config.json's
    #[arg(long, value_name = "TYPE:LABEL", hide = true)]
    lsm_profile: Option<String>,
}

/// runc's words for what is done about cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CgroupsMode {
    /// What is below the container's own.
    Soft,
    /// Also what is set in the container's own.
    Full,
    /// The same; the container's own must be new.
    Strict,
    /// Nothing.
    Ignore,
}

impl CgroupsMode {
    /// What is set in the container's own cgroups goes with the job.
    pub fn whole(self) -> bool {
        matches!(self, CgroupsMode::Full | CgroupsMode::Strict)
    }
}

impl CarryArgs {
    /// Refuses what is not done, by its name, and a caller who may not do it.
    pub fn check(&self, verb: &str) -> Result<()> {
        refuse(verb, "--lazy-pages", self.lazy_pages)?;
        refuse(verb, "--lsm-profile", self.lsm_profile.is_some())?;
        // With runc it is `checkpoint` that tells by it when somebody can come for the pages.
        refuse(verb, "--status-fd", verb == "restore" && self.status_fd.is_some_and(|fd| fd >= 0))?;
        needs_root(verb)
    }

    /// What is in the network namespace is left out.
    pub fn without_network(&self) -> bool {
        !self.empty_ns.is_empty()
    }

    /// Leaves figures where clients look for them: in the directory of `--work-path`. The job has been written, or made,
    /// when there are any: that they can't be left is no failure.
    pub fn figures(&self, leave: impl FnOnce(&Path) -> Result<()>) {
        let Some(dir) = &self.work_path else { return };
        // The log, which goes there too, is written at the very end.
        let made = std::fs::create_dir_all(dir).doing(|| format!("make {}", dir.display()));
        if let Err(e) = made.map_err(Error::from).and_then(|()| leave(dir)) {
            log::warn!("{e}");
        }
    }

    /// What is to be done with connections to somebody outside.
    pub fn outward(&self) -> Outward {
        let tcp = match (self.tcp_close, self.tcp_established) {
            (true, _) => Outgoing::Close,
            (false, true) => Outgoing::Keep,
            (false, false) => Outgoing::Refuse,
        };
        Outward { tcp, unix: self.ext_unix_sk }
    }

    /// The journal of this run.
    pub fn journal(&self, name: &'static str) -> Option<Journal> {
        let dir = self.work_path.as_ref().unwrap_or(&self.image_path).clone();
        Journal::begin(Place { dir, name, wanted: self.work_path.is_some() }).ok()
    }
}

/// Refuses a caller who has not the rights that it takes.
pub fn needs_root(verb: &str) -> Result<()> {
    if is_host_root() {
        return Ok(());
    }
    let why = "needs the host's root: the job's memory and ids are out of reach of others";
    Err(Error::Usage(format!("{verb}: {why}")))
}

/// Refuses an option that is not done.
pub fn refuse(verb: &str, option: &str, given: bool) -> Result<()> {
    if given { Err(Error::Usage(format!("{verb}: {option} is not supported"))) } else { Ok(()) }
}

/// The ids in an image are those of the container's own pid namespace, and in no other could they be given again.
pub fn own_pids(spec: &Spec) -> Result<()> {
    if spec.namespace(Kind::Pid).is_some_and(|ns| ns.path().is_none()) {
        return Ok(());
    }
    let why = "a job can be checkpointed and restored only if it has a pid namespace of its own";
    Err(Error::config("linux.namespaces", why))
}

/// An absolute path, so that messages and processes with another working directory mean the same.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::file(path, &e))
}

/// An error of this crate on its way through the other.
pub fn to_virt(error: Error) -> ckrun_virt::Error {
    match error {
        Error::Sys(failure) => failure.into(),
        Error::Virt(error) => error,
        other => ckrun_virt::Error::Unsupported(other.to_string()),
    }
}
