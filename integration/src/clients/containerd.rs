//! containerd with its shim runc.v2 and its client ctr, and ckrun as the runtime.

use super::{Daemon, Done, Enclosure, Terminal, ckrun, image, program};
use std::fs;

/// The name of the image.
pub const IMAGE: &str = "docker.io/library/bb:latest";

/// A containerd with a root of its own, and an image in it.
#[derive(Debug)]
pub struct Containerd {
    ctr: Vec<String>,
    _daemon: Daemon,
    /// Where it lives.
    pub enclosure: Enclosure,
}

impl Containerd {
    /// Starts one.
    pub fn new() -> Self {
        let enclosure = Enclosure::new();
        let config = enclosure.path("config.toml");
        let socket = enclosure.path("sock");
        let content = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {socket:?}\n",
            enclosure.path("root"),
            enclosure.path("state"),
        );
        fs::write(&config, content).unwrap();
        let containerd = program("/usr/bin/containerd", "containerd");
        let daemon = enclosure.daemon([&containerd, "--config", &config], "containerd successfully booted");
        // The namespace is also the name of the cgroup that the containers are below.
        let ctr = ["/usr/bin/ctr", "--address", &socket, "--namespace", enclosure.name()].map(String::from);
        let containerd = Containerd { ctr: ctr.into(), _daemon: daemon, enclosure };
        let archive = image::oci_archive(containerd.enclosure.dir(), IMAGE);
        containerd.call(&["image", "import", archive.to_str().unwrap()]).ok();
        containerd
    }

    /// The words of a call of ctr.
    pub fn words(&self, words: &[&str]) -> Vec<String> {
        self.ctr.iter().cloned().chain(words.iter().map(|word| (*word).to_owned())).collect()
    }

    /// Calls ctr.
    #[track_caller]
    pub fn call(&self, words: &[&str]) -> Done {
        self.enclosure.call(self.words(words))
    }

    /// The words of `ctr run`.
    pub fn run_words(&self, options: &[&str], id: &str, job: &[&str]) -> Vec<String> {
        let ckrun = ckrun();
        let runtime = ["--runtime=io.containerd.runc.v2", "--runc-binary", ckrun.to_str().unwrap()];
        self.words(&[&["run"], options, &runtime[..], &[IMAGE, id], job].concat())
    }

    /// `ctr run`.
    #[track_caller]
    pub fn run(&self, options: &[&str], id: &str, job: &[&str]) -> Done {
        self.enclosure.call(self.run_words(options, id, job))
    }

    /// `ctr task exec`.
    #[track_caller]
    pub fn exec(&self, id: &str, options: &[&str], job: &[&str]) -> Done {
        self.call(&[&["task", "exec", "--exec-id", "second"], options, &[id], job].concat())
    }

    /// Starts a command on a terminal.
    pub fn terminal(&self, words: Vec<String>) -> Terminal {
        self.enclosure.terminal(words)
    }

    /// The state that containerd tells.
    #[track_caller]
    pub fn status(&self, id: &str) -> String {
        let tasks = self.call(&["task", "ls"]).ok();
        let task =
            tasks.lines().find(|line| line.starts_with(id)).unwrap_or_else(|| panic!("no {id} in {tasks}"));
        task.split_whitespace().nth(2).unwrap().into()
    }

    /// Ends a task and removes its container.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        self.call(&["task", "rm", "--force", id]).ok();
        self.call(&["container", "rm", id]).ok();
    }

    /// Checks that nothing is left.
    #[track_caller]
    pub fn finish(self) {
        assert_eq!(self.call(&["task", "ls", "--quiet"]).ok(), "");
        // The shim's default; the namespace's directory stays.
        let root = format!("/run/containerd/runc/{}", self.enclosure.name());
        self.enclosure.assert_clean(&root, &[]);
    }
}

impl Default for Containerd {
    fn default() -> Self {
        Self::new()
    }
}
