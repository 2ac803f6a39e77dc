//! POSIX message queues (mq_overview(7)) keep their messages when nobody has them open. No image can hold them yet.

use super::container::{Container, join};
use crate::namespace::{Kind, Namespace};
use crate::resource::Blocker;
use crate::{Doing, Failure};
use nix::unistd::Pid;

/// Names the queues of the job whose first process is `init`, as far as the container has them mounted. `name` makes the
/// blocker.
pub(super) fn blockers(
    container: &Container,
    init: Pid,
    name: impl Fn(String, &'static str) -> Blocker,
) -> Result<Vec<Blocker>, Failure> {
    let mut found = Vec::new();
    for mount in container.mounted(b"mqueue") {
        let what = || format!("read {}", String::from_utf8_lossy(&mount.point));
        let Some(directory) = container.directory(&mount.point)? else { continue };
        for entry in rustix::fs::Dir::new(directory).doing(what)? {
            let entry = entry.doing(what)?;
            let file = entry.file_name().to_bytes();
            if matches!(file, b"." | b"..") {
                continue;
            }
            if Namespace::of(init, Kind::Ipc)?.is_none() {
                // They are the host's, and stay.
                return Ok(Vec::new());
            }
            let path = join(&mount.point, file);
            let what = format!("POSIX message queue {}", String::from_utf8_lossy(&path));
            found.push(name(what, "its messages can't be checkpointed yet"));
        }
    }
    Ok(found)
}
