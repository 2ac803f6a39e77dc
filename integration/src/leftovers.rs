//! What a container may leave behind: nothing.

use crate::pipes::{await_end, try_pidfd};
use std::fs;
use std::path::{Path, PathBuf};

/// A trace of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trace {
    /// A cgroup directory.
    Cgroup(PathBuf),
    /// A process, and how it is known.
    Process(i32, String),
    /// A mount on the host.
    Mount(String),
    /// Its directory below `--root`.
    State(PathBuf),
}

/// Everything that carries `tag`, a word that occurs in the container's id, cgroup paths and directories and nowhere
/// else. `state` is its directory below `--root`.
pub fn traces(tag: &str, state: &Path) -> Vec<Trace> {
    let mut found = Vec::new();
    cgroups(Path::new("/sys/fs/cgroup"), tag, &mut found);
    found.extend(processes(tag));
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    found.extend(mounts.lines().filter(|line| line.contains(tag)).map(|line| Trace::Mount(line.into())));
    if state.exists() {
        found.push(Trace::State(state.into()));
    }
    found
}

/// Fails when there is a trace of a container.
pub fn check(tag: &str, state: &Path) {
    assert_eq!(traces(tag, state), [], "left behind");
}

/// Waits until processes that are ending have ended; for those to whom a dying ckrun's end is the signal to end.
pub fn settle(tag: &str) {
    for trace in processes(tag) {
        if let Trace::Process(pid, _) = trace
            && let Some(fd) = try_pidfd(pid)
            // The id may be another's by now.
            && processes(tag).contains(&trace)
        {
            await_end(fd);
        }
    }
}

fn cgroups(dir: &Path, tag: &str, found: &mut Vec<Trace>) {
    // Cgroups of other tests come and go meanwhile.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().contains(tag) {
                found.push(Trace::Cgroup(entry.path()));
            }
            cgroups(&entry.path(), tag, found);
        }
    }
}

/// A process in a container of a test has the container's rootfs among its mounts, or is an init or a ckrun whose
/// command line names the test's directory, or is in one of its cgroups.
fn processes(tag: &str) -> Vec<Trace> {
    let own = std::process::id().cast_signed();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        if pid == own {
            continue;
        }
        let read = |name| fs::read(entry.path().join(name)).unwrap_or_default();
        let ended =
            String::from_utf8_lossy(&read("stat")).rsplit(')').next().is_some_and(|s| s.starts_with(" Z"));
        if ended {
            continue;
        }
        for file in ["cmdline", "mountinfo", "cgroup"] {
            if String::from_utf8_lossy(&read(file)).contains(tag) {
                found.push(Trace::Process(pid, String::from_utf8_lossy(&read("cmdline")).replace('\0', " ")));
                break;
            }
        }
    }
    found
}
