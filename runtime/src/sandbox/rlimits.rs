//! Resource limits of the job: `process.rlimits`.

use crate::error::{Error, Result};
use ckrun_virt::Failure;
use nix::errno::Errno;
use nix::unistd::Pid;
use oci_spec::runtime::{PosixRlimit, PosixRlimitType as Type};
use rustix::process::{Resource, Rlimit, prlimit};

/// Sets the limits of process `pid`, or of the caller. The parent should set them for a job in a user namespace: once
/// inside, nothing can raise a hard limit.
///
/// # Errors
/// Names `process.rlimits[i]`: listed twice, soft above hard, or hard above what the caller may set.
pub fn set(limits: &[PosixRlimit], pid: Option<Pid>) -> Result<()> {
    let pid = pid.and_then(|pid| rustix::process::Pid::from_raw(pid.as_raw()));
    for (i, limit) in limits.iter().enumerate() {
        let (kind, soft, hard) = (limit.typ(), limit.soft(), limit.hard());
        let refuse =
            |why: String| Err(Error::config(format!("process.rlimits[{i}]"), format!("{kind}: {why}")));
        if limits[..i].iter().any(|earlier| earlier.typ() == kind) {
            return refuse("is listed twice".into());
        }
        if soft > hard {
            return refuse(format!("the soft limit {soft} is above the hard limit {hard}"));
        }
        match prlimit(pid, resource(kind), Rlimit { current: finite(soft), maximum: finite(hard) }) {
            Ok(_) => {}
            Err(rustix::io::Errno::PERM) => {
                return refuse(format!(
                    "raise the hard limit to {hard}: operation not permitted: this needs CAP_SYS_RESOURCE{}",
                    if kind == Type::RlimitNofile { " and a value within /proc/sys/fs/nr_open" } else { "" }
                ));
            }
            Err(e) => {
                let errno = Errno::from_raw(e.raw_os_error());
                return refuse(Failure::new(format!("set to {soft}, {hard}"), errno).to_string());
            }
        }
    }
    Ok(())
}

/// The largest number is how the runtime-spec's clients write "unlimited".
fn finite(limit: u64) -> Option<u64> {
    (limit != libc::RLIM_INFINITY).then_some(limit)
}

fn resource(kind: Type) -> Resource {
    match kind {
        Type::RlimitCpu => Resource::Cpu,
        Type::RlimitFsize => Resource::Fsize,
        Type::RlimitData => Resource::Data,
        Type::RlimitStack => Resource::Stack,
        Type::RlimitCore => Resource::Core,
        Type::RlimitRss => Resource::Rss,
        Type::RlimitNproc => Resource::Nproc,
        Type::RlimitNofile => Resource::Nofile,
        Type::RlimitMemlock => Resource::Memlock,
        Type::RlimitAs => Resource::As,
        Type::RlimitLocks => Resource::Locks,
        Type::RlimitSigpending => Resource::Sigpending,
        Type::RlimitMsgqueue => Resource::Msgqueue,
        Type::RlimitNice => Resource::Nice,
        Type::RlimitRtprio => Resource::Rtprio,
        Type::RlimitRttime => Resource::Rttime,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::testing::in_child;
    use rustix::process::getrlimit;
    use serde_json::json;

    fn limits(json: serde_json::Value) -> Vec<PosixRlimit> {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn limits_are_set_and_unlimited_is_a_number() {
        in_child(|| {
            let list = limits(json!([
                {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                {"type": "RLIMIT_CPU", "soft": 50, "hard": u64::MAX},
            ]));
            set(&list, Some(Pid::this())).unwrap();
            assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: Some(100), maximum: Some(200) });
            assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
            assert_eq!(getrlimit(Resource::Cpu), Rlimit { current: Some(50), maximum: None });
        });
    }

    #[test]
    fn what_cant_be_set_names_its_entry() {
        in_child(|| {
            let nofile = |soft, hard| json!({"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard});
            let said = |json| set(&limits(json), None).unwrap_err().to_string();
            assert_eq!(
                said(json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}, nofile(5, 4)])),
                "process.rlimits[1]: RLIMIT_NOFILE: the soft limit 5 is above the hard limit 4"
            );
            assert_eq!(
                said(json!([nofile(50, 60), nofile(50, 60)])),
                "process.rlimits[1]: RLIMIT_NOFILE: is listed twice"
            );
            // Without the privilege, raising what was lowered fails.
            nix::unistd::setresuid(1000.into(), 1000.into(), 1000.into()).unwrap();
            let said = said(json!([nofile(50, 61)]));
            assert!(said.starts_with(
                "process.rlimits[0]: RLIMIT_NOFILE: raise the hard limit to 61: operation not permitted"
            ));
        });
    }

    #[test]
    fn all_sixteen_kinds_are_known() {
        let names = "AS CORE CPU DATA FSIZE LOCKS MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK";
        in_child(move || {
            for name in names.split(' ') {
                let kind: Type = serde_json::from_value(json!(format!("RLIMIT_{name}"))).unwrap();
                let now = getrlimit(resource(kind));
                let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
                let same = json!([{"type": format!("RLIMIT_{name}"), "soft": number(now.current), "hard": number(now.maximum)}]);
                set(&limits(same), None).unwrap();
                assert_eq!(getrlimit(resource(kind)), now, "{name}");
            }
        });
    }
}
