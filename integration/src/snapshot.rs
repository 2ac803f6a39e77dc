//! The processes of a job as the host sees them: what a checkpoint must leave as it was.

use crate::bundle::Container;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// What is seen of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its threads.
    pub threads: BTreeSet<i32>,
    /// Where its descriptors lead.
    pub fds: BTreeMap<i32, String>,
    /// Its mappings, without their contents.
    pub maps: Vec<String>,
    /// Lines of /proc/PID/status of all threads that tell of signals, rights, and who traces it.
    pub status: Vec<String>,
}

/// The processes of a container, by their ids on the host.
pub fn snapshot(container: &Container) -> BTreeMap<i32, Seen> {
    pids(container).into_iter().map(|pid| (pid, look(pid))).collect()
}

/// Fails when a job is not as it was, and says in what.
pub fn unchanged(before: &BTreeMap<i32, Seen>, after: &BTreeMap<i32, Seen>, when: &str) {
    assert!(before.keys().eq(after.keys()), "{when}: {:?} {:?}", before.keys(), after.keys());
    for (pid, was) in before {
        let is = &after[pid];
        assert_eq!((&was.threads, &was.fds), (&is.threads, &is.fds), "{when}: process {pid}");
        let only = |ours: &[String], theirs: &[String]| -> Vec<String> {
            ours.iter().filter(|line| !theirs.contains(line)).cloned().collect()
        };
        let lost = [only(&was.maps, &is.maps), only(&was.status, &is.status)].concat();
        let new = [only(&is.maps, &was.maps), only(&is.status, &was.status)].concat();
        assert!(lost.is_empty() && new.is_empty(), "{when}: process {pid} had {lost:#?} and has {new:#?}");
    }
}

/// The ids of all processes of a container.
pub fn pids(container: &Container) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    for dir in container.cgroups() {
        let procs = fs::read_to_string(dir.join("cgroup.procs")).expect("read cgroup.procs");
        found.extend(procs.lines().map(|pid| pid.parse::<i32>().expect("a process id")));
    }
    found
}

fn look(pid: i32) -> Seen {
    const WORDS: [&str; 13] = [
        "TracerPid",
        "Uid",
        "Gid",
        "FDSize",
        "VmLck",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "CapEff",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
        "Threads",
    ];
    let dir = Path::new("/proc").join(pid.to_string());
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let threads = numbers(&dir.join("task"));
    let mut status = Vec::new();
    for thread in &threads {
        let text = read(&dir.join("task").join(thread.to_string()).join("status"));
        let told = text.lines().filter(|line| WORDS.iter().any(|w| line.split(':').next() == Some(w)));
        status.extend(told.map(str::to_owned));
    }
    let fds = numbers(&dir.join("fd")).into_iter().map(|fd| {
        let to = fs::read_link(dir.join("fd").join(fd.to_string())).unwrap_or_default();
        (fd, to.to_string_lossy().into_owned())
    });
    Seen {
        fds: fds.collect(),
        maps: read(&dir.join("maps")).lines().map(str::to_owned).collect(),
        threads,
        status,
    }
}

fn numbers(dir: &Path) -> BTreeSet<i32> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries.filter_map(|entry| entry.expect("read a directory").file_name().to_str()?.parse().ok()).collect()
}
