//! The supervisor: the process of ckrun that a job with plugins has. Nobody else has one.
//!
//! ```text
//!   ckrun create, start, checkpoint, …           the supervisor                    the plugins
//!   [client]: requests, one at a time     ◀───▶  [serve], [desk]            ◀───▶  events, calls (plugin/)
//!   a job that stands still: its memory          names, areas, signals
//! ```
//!
//! It is started by the verb that makes the job, before there is a sandbox, and lives until the job has ended and its
//! plugins have heard of that. Its parent is a process that does nothing but start another one if it is killed
//! ([`keeper`]), and that is nobody's child: not the caller's, who waits for nothing but the job. Verbs come and go; one that goes in the middle of its story ends that story: what was
//! to be made is let go of, and a checkpoint that was under way is rolled back. When the supervisor itself is killed the
//! job goes on, and another one goes on from what it has left in its [`record`] and with its keeper ([`again`]).
//!
//! - [`request`]: what verbs and the supervisor say to each other;
//! - [`client`]: the verb's end, [`launch`]: how a supervisor is started and found, [`still`]: what a verb that holds the job
//!   tells of it;
//! - [`serve`]: the supervisor's loop, [`guest`]: a verb, [`story`]: what is done for it, [`ties`]: what plugins bind and save, [`desk`]: what they
//!   are answered, [`translate`]: names among it;
//! - [`claims`]: the system calls that it answers ([`crate::intercept`]), [`errand`]: what the job asks for ([`crate::job_api`]);
//! - [`record`]: what it leaves in the container's directory, [`logs`]: what plugins write.

mod again;
mod claims;
pub mod client;
pub mod desk;
mod errand;
pub mod guest;
pub mod keeper;
pub mod launch;
pub mod logs;
pub mod record;
pub mod request;
pub mod serve;
pub mod still;
pub mod story;
mod ties;
mod translate;

pub use client::Client;
pub use record::Record;

/// Files in the container's directory.
pub mod names {
    /// The socket at which it can be reached.
    pub const SOCKET: &str = "supervisor.sock";
    /// See [`super::Record`].
    pub const RECORD: &str = "supervisor.json";
    /// Its own complaints.
    pub const LOG: &str = "supervisor.log";
    /// What the plugins write, and what came before that.
    pub const PLUGINS_LOG: &str = "plugins.log";
    /// See [`PLUGINS_LOG`].
    pub const PLUGINS_LOG_BEFORE: &str = "plugins.log.1";
    /// The container's /etc/hosts, if names had to be added to it.
    pub const HOSTS: &str = "hosts";
    /// The socket at which the job can reach it, if it may.
    pub const JOB_API: &str = "job.sock";
    /// See [`crate::intercept::notes`].
    pub const NOTES: &str = crate::intercept::notes::NAME;
    /// An empty directory, for a plugin of which an image has no folder.
    pub const EMPTY: &str = "empty";
    /// All of them but the directory.
    pub const FILES: [&str; 8] =
        [SOCKET, RECORD, LOG, PLUGINS_LOG, PLUGINS_LOG_BEFORE, HOSTS, JOB_API, NOTES];
}

/// The most plugins of a job: as many as descriptors go with a message.
pub const PLUGINS: usize = ckrun_plugin::wire::DESCRIPTORS;
