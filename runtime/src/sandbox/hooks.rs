//! Hooks: programs of the configuration that run at fixed points of a container's life, with its state on stdin.

use crate::config::Ask;
use crate::error::{Error, Result};
use ckrun_virt::error::text;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use oci_spec::runtime::{Hook, Process, Spec};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// There are hooks that may enter the container before its job is there, and do there what they like; a restart runs them
/// again.
pub fn before_start(spec: &Spec) -> bool {
    ["prestart", "createRuntime", "createContainer", "startContainer"]
        .iter()
        .any(|kind| !spec.hook_list(kind).is_empty())
}

/// Runs all hooks of one kind (`prestart`, `createRuntime`, …) in order, until one fails. `state` is what they read.
///
/// # Errors
/// Names the hook and says how it ended.
pub fn run(spec: &Spec, kind: &'static str, state: impl FnOnce() -> String) -> Result<()> {
    let hooks = spec.hook_list(kind);
    if hooks.is_empty() {
        return Ok(());
    }
    let state = state();
    hooks.iter().try_for_each(|hook| run_one(hook, kind, &state, None))
}

/// Runs the `startContainer` hooks, which belong to the job: without an environment of their own they have its.
pub fn run_in_job(spec: &Spec, process: &Process, state: impl FnOnce() -> String) -> Result<()> {
    let hooks = spec.hook_list("startContainer");
    if hooks.is_empty() {
        return Ok(());
    }
    let state = state();
    hooks.iter().try_for_each(|hook| run_one(hook, "startContainer", &state, process.env().as_deref()))
}

/// Runs all hooks of a kind whose failure must not stop anything (`poststart`, `poststop`): it is only logged.
pub fn run_leniently(spec: &Spec, kind: &'static str, state: impl FnOnce() -> String) {
    let hooks = spec.hook_list(kind);
    if hooks.is_empty() {
        return;
    }
    let state = state();
    for hook in hooks {
        if let Err(e) = run_one(hook, kind, &state, None) {
            log::warn!("{e}");
        }
    }
}

fn run_one(hook: &Hook, kind: &'static str, state: &str, default_env: Option<&[String]>) -> Result<()> {
    let failed = |why: String| Error::Hook { kind, path: hook.path().clone(), why };
    let started = Instant::now();
    let mut command = Command::new(hook.path());
    if let Some((name, args)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(args);
    }
    if let Some(env) = hook.env().as_deref().or(default_env) {
        command.env_clear().envs(env.iter().map(|var| var.split_once('=').unwrap_or((var, ""))));
    }
    let cause = |e: std::io::Error| {
        failed(e.raw_os_error().map_or_else(|| e.to_string(), |n| text(Errno::from_raw(n))))
    };
    command.stdin(to_be_read(state).map_err(cause)?).stdout(Stdio::inherit()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(cause)?;
    if let Some(seconds) = hook.timeout().filter(|s| *s > 0)
        && !ended_within(&child, started, Duration::from_secs(seconds.unsigned_abs()))
    {
        // Its id can't have been reused: it is our child and has not been waited for.
        let _ = child.kill();
        let _ = child.wait();
        return Err(failed(format!("did not end within its timeout of {seconds} s and was killed")));
    }
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let how = match (output.status.code(), output.status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(number)) => {
            format!("killed by {}", Signal::try_from(number).map_or("a signal", Signal::as_str))
        }
        _ => "ended".into(),
    };
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(if said.is_empty() { how } else { format!("{how}: {said}") }))
}

/// A file of memory with the state in it. A hook need not read its state: through a pipe, one that does not could block us,
/// or end an init, which does not ignore SIGPIPE.
fn to_be_read(state: &str) -> std::io::Result<File> {
    let mut file = File::from(memfd_create(c"state", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(state.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// Waits for a child through its pidfd, which becomes readable when it ends.
fn ended_within(child: &Child, started: Instant, limit: Duration) -> bool {
    let pid = Pid::from_raw(child.id().cast_signed());
    let Some(process) = ckrun_virt::Process::open_now(pid) else { return true };
    loop {
        let Some(left) = limit.checked_sub(started.elapsed()) else { return false };
        let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        // One more millisecond, so that rounding down does not turn the last wait into a spin.
        match poll(
            &mut fds,
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(0) | Err(Errno::EINTR) => {}
            _ => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{HookBuilder, HooksBuilder, SpecBuilder};

    fn spec(script: &str, timeout: Option<i64>) -> Spec {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        let mut hook = HookBuilder::default().path("/bin/sh").args(args).build().unwrap();
        hook.set_timeout(timeout);
        SpecBuilder::default()
            .hooks(HooksBuilder::default().poststop(vec![hook]).build().unwrap())
            .build()
            .unwrap()
    }

    #[test]
    fn the_state_is_on_stdin() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        run(&spec(&format!("cat > {}", out.display()), None), "poststop", || "{\"id\":\"x\"}".into())
            .unwrap();
        assert_eq!(std::fs::read_to_string(out).unwrap(), "{\"id\":\"x\"}");
    }

    #[test]
    fn a_hook_need_not_read_its_state() {
        // More than a pipe holds.
        run(&spec("exit 0", Some(10)), "poststop", || "x".repeat(1 << 20)).unwrap();
    }

    #[test]
    fn a_failure_says_what_the_hook_said() {
        let e = run(&spec("echo no emulator >&2; exit 3", None), "poststop", String::new).unwrap_err();
        assert_eq!(e.to_string(), "hook poststop /bin/sh: exit status 3: no emulator");
    }

    #[test]
    fn a_hook_that_hangs_is_killed_at_its_timeout() {
        let e = run(&spec("exec sleep 1000", Some(1)), "poststop", String::new).unwrap_err();
        assert!(e.to_string().contains("timeout of 1 s"), "{e}");
    }
}
