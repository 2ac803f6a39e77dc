//! Where a container is in its life.

use oci_spec::runtime::ContainerState;
use serde::{Deserialize, Serialize};

/// Where a container is in its life, in the runtime-spec's words (and runc's "paused").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `ckrun create` or `ckrun run` is at work on it.
    Creating,
    /// The sandbox stands and its init waits for `ckrun start`.
    Created,
    /// The job runs.
    Running,
    /// The job is frozen.
    Paused,
    /// The init has ended.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

impl From<Status> for ContainerState {
    /// The runtime-spec has no word for a pause: a paused job is a running one.
    fn from(status: Status) -> Self {
        match status {
            Status::Creating => ContainerState::Creating,
            Status::Created => ContainerState::Created,
            Status::Running | Status::Paused => ContainerState::Running,
            Status::Stopped => ContainerState::Stopped,
        }
    }
}
