//! Points at which a test can make ckrun die, or fail.
//!
//! `CKRUN_FAULT=checkpoint:capture` kills ckrun when it comes to that point, as `kill -9` would. With
//! `fail@checkpoint:capture` the step fails instead, as if the kernel had refused a call, and with `stop@checkpoint:capture`
//! ckrun stops until somebody lets it go on (SIGCONT). Without the variable a point
//! costs one comparison. Who can set ckrun's environment can kill it anyway, so that this gives nobody a power; still it
//! is not listened to where the environment comes from somebody with less rights (AT_SECURE, getauxval(3)).

use crate::Failure;
use nix::errno::Errno;
use std::sync::OnceLock;

/// Every point, in the order in which a checkpoint and a restart come to them.
pub const POINTS: &[&str] = &[
    "checkpoint:look",
    "checkpoint:seize",
    "checkpoint:capture",
    "checkpoint:tmpfs",
    "checkpoint:network",
    "checkpoint:memory",
    "checkpoint:resume",
    "checkpoint:write",
    "checkpoint:commit",
    "checkpoint:committed",
    "checkpoint:kill",
    "checkpoint:destroy",
    "restore:check",
    "restore:tmpfs",
    "restore:claim",
    "restore:sandbox",
    "restore:seize",
    "restore:files",
    "restore:network",
    "restore:tree",
    "restore:threads",
    "restore:state",
    "restore:registers",
    "restore:save",
    "restore:release",
    "restore:done",
];

#[derive(Debug, PartialEq, Eq)]
struct Fault {
    point: String,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Die,
    Fail,
    Stop,
}

/// A step begins here.
///
/// # Errors
/// `EIO`, when a test asked for it.
pub fn point(name: &'static str) -> Result<(), Failure> {
    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
    debug_assert!(POINTS.contains(&name), "{name} is not in the list");
    match FAULT.get_or_init(|| parse(&asked()?)) {
        Some(fault) if fault.point == name => strike(fault),
        _ => Ok(()),
    }
}

fn strike(fault: &Fault) -> Result<(), Failure> {
    let signal = match fault.what {
        What::Die => libc::SIGKILL,
        What::Stop => libc::SIGSTOP,
        What::Fail => {
            let what = format!("go on at {}, where a test wants a failure", fault.point);
            return Err(Failure::new(what, Errno::EIO));
        }
    };
    // SAFETY: a signal to ourselves.
    unsafe { libc::kill(libc::getpid(), signal) };
    Ok(())
}

fn asked() -> Option<String> {
    // SAFETY: only reads what the kernel gave us at our exec.
    let secure = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    if secure { None } else { std::env::var("CKRUN_FAULT").ok() }
}

fn parse(text: &str) -> Option<Fault> {
    let (what, point) = match text.split_once('@') {
        Some(("fail", point)) => (What::Fail, point),
        Some(("stop", point)) => (What::Stop, point),
        _ => (What::Die, text),
    };
    (!point.is_empty()).then(|| Fault { point: point.into(), what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_variable_nothing_happens() {
        // The variable is not set while tests run.
        for name in POINTS {
            point(name).unwrap();
        }
    }

    #[test]
    fn three_ways_to_go() {
        let fault = |what| Some(Fault { point: "restore:files".into(), what });
        assert_eq!(parse("restore:files"), fault(What::Die));
        assert_eq!(parse("fail@restore:files"), fault(What::Fail));
        assert_eq!(parse("stop@restore:files"), fault(What::Stop));
        assert_eq!(parse(""), None);
        let said = strike(&fault(What::Fail).unwrap()).unwrap_err();
        assert_eq!(said.errno, Errno::EIO);
        assert!(said.what.contains("restore:files"), "{said}");
    }
}
