//! How readily the kernel kills the job when memory runs out: `process.oomScoreAdj`.

use super::procfs::Proc;
use crate::error::{Error, Result};
use ckrun_virt::Failure;
use nix::errno::Errno;
use oci_spec::runtime::Process;

/// Sets the score of this process, -1000 (never) to 1000.
///
/// # Errors
/// Names the field. To lower it needs CAP_SYS_RESOURCE; for a `rootless` ckrun, which never has that, it is only a
/// warning, as in runc.
pub fn set(process: &Process, rootless: bool, proc: &Proc) -> Result<()> {
    let Some(score) = process.oom_score_adj() else { return Ok(()) };
    match proc.write("self/oom_score_adj", score.to_string().as_bytes()) {
        Ok(()) => Ok(()),
        Err(Errno::EACCES) if rootless => {
            log::warn!("process.oomScoreAdj: {score} is not set: a rootless container can't lower it");
            Ok(())
        }
        Err(errno) => {
            let why = Failure::new(format!("write {score} to /proc/self/oom_score_adj"), errno);
            let reason = match errno {
                Errno::EACCES => ": lowering it needs CAP_SYS_RESOURCE",
                Errno::EINVAL => ": it must be -1000 to 1000",
                _ => "",
            };
            Err(Error::config("process.oomScoreAdj", format!("{why}{reason}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::testing::in_child;
    use serde_json::json;

    fn process(score: i32) -> Process {
        serde_json::from_value(json!({"cwd": "/", "user": {"uid": 0, "gid": 0}, "oomScoreAdj": score}))
            .unwrap()
    }

    #[test]
    fn raised_but_not_lowered() {
        in_child(|| {
            let proc = Proc::open().unwrap();
            set(&process(900), false, &proc).unwrap();
            assert_eq!(std::fs::read_to_string("/proc/self/oom_score_adj").unwrap(), "900\n");
            let said = set(&process(1001), false, &proc).unwrap_err().to_string();
            assert_eq!(
                said,
                "process.oomScoreAdj: write 1001 to /proc/self/oom_score_adj: invalid argument: \
                 it must be -1000 to 1000"
            );
            // The least value that the process may go back to is the one it was given with the privilege, or began with.
            rustix::thread::set_capabilities(
                None,
                rustix::thread::CapabilitySets {
                    effective: rustix::thread::CapabilitySet::empty(),
                    permitted: rustix::thread::CapabilitySet::empty(),
                    inheritable: rustix::thread::CapabilitySet::empty(),
                },
            )
            .unwrap();
            let said = set(&process(-1000), false, &proc).unwrap_err().to_string();
            assert!(
                said.starts_with("process.oomScoreAdj: ") && said.ends_with("needs CAP_SYS_RESOURCE"),
                "{said}"
            );
            set(&process(-1000), true, &proc).unwrap();
        });
    }
}
