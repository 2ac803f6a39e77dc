//! podman, with ckrun as its runtime.

use super::{Done, Enclosure, Terminal, ckrun, image, program};
use std::fs;
use std::path::Path;

/// A podman with a storage of its own, and an image `bb` in it.
#[derive(Debug)]
pub struct Podman {
    /// Where it lives.
    pub enclosure: Enclosure,
    base: Vec<String>,
}

impl Podman {
    /// Makes one.
    pub fn new() -> Self {
        let mut enclosure = Enclosure::new();
        let conf = configuration(&enclosure, &ckrun());
        enclosure.set_env("CONTAINERS_CONF", &conf);
        let base = [
            program("/usr/bin/podman", "podman"),
            format!("--root={}", enclosure.path("root")),
            format!("--runroot={}", enclosure.path("run")),
            format!("--tmpdir={}", enclosure.path("tmp")),
            "--storage-driver=overlay".into(),
        ];
        let podman = Podman { base: base.into(), enclosure };
        let tar = image::rootfs_tar(podman.enclosure.dir());
        podman.call(&["import", tar.to_str().unwrap(), "bb"]).ok();
        podman
    }

    /// The words of a call of podman.
    pub fn words(&self, words: &[&str]) -> Vec<String> {
        let mut all = self.base.clone();
        all.extend(words.iter().map(|word| (*word).to_owned()));
        // A new container or pod gets a cgroup below the enclosure's, and no network unless it asks for one.
        let verb = match words {
            ["run" | "create", ..] => self.base.len(),
            ["pod", "create", ..] => self.base.len() + 1,
            _ => return all,
        };
        if !words.contains(&"--cgroups=disabled") {
            all.insert(verb + 1, format!("--cgroup-parent={}", self.enclosure.cgroup()));
        }
        if !words.iter().any(|word| word.starts_with("--network") || word.starts_with("--pod")) {
            all.insert(verb + 1, "--network=none".into());
        }
        all
    }

    /// Calls it.
    #[track_caller]
    pub fn call(&self, words: &[&str]) -> Done {
        self.enclosure.call(self.words(words))
    }

    /// Calls it on a terminal.
    #[track_caller]
    pub fn terminal(&self, words: &[&str]) -> Terminal {
        self.enclosure.terminal(self.words(words))
    }

    /// One value of `podman inspect`.
    #[track_caller]
    pub fn inspect(&self, name: &str, format: &str) -> String {
        self.call(&["inspect", "--format", format, name]).ok()
    }

    /// The container's cgroup.
    pub fn cgroup(&self, name: &str) -> String {
        format!("{}/libpod-{}", self.enclosure.cgroup(), self.inspect(name, "{{.Id}}"))
    }

    /// Follows the log until `text` is in it.
    #[track_caller]
    pub fn await_log(&self, name: &str, text: &str) {
        let mut log = self.terminal(&["logs", "--follow", name]);
        log.awaits(text);
    }

    /// Removes all containers and checks that nothing is left of them.
    #[track_caller]
    pub fn finish(self) {
        // In the hierarchies that podman does not know of, a pod's cgroup is made by the runtime; nobody removes it.
        let pods = self.call(&["pod", "ps", "--quiet", "--no-trunc"]).ok();
        self.call(&["pod", "rm", "--all", "--force", "--time=0"]).ok();
        self.call(&["rm", "--all", "--force", "--time=0"]).ok();
        let kept: Vec<&str> = pods.lines().chain(["conmon"]).collect();
        self.enclosure.assert_clean("/run/ckrun", &kept);
    }
}

impl Default for Podman {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes a containers.conf(5) that knows one runtime.
pub fn configuration(enclosure: &Enclosure, runtime: &Path) -> String {
    // An engine that may not raise limits (CAP_SYS_RESOURCE) can only lower them: these are below all defaults.
    let content = format!(
        r#"[containers]
        default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
        cgroupns = "private"
        [engine]
        cgroup_manager = "cgroupfs"
        events_logger = "file"
        runtime = "ckrun"
        runtime_supports_json = ["ckrun"]
        runtime_supports_nocgroup = ["ckrun"]
        [engine.runtimes]
        ckrun = ["{}"]
        "#,
        runtime.display()
    );
    let path = enclosure.path("containers.conf");
    fs::write(&path, content).unwrap();
    path
}
