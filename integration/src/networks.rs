//! Network namespaces of a test's own, which are there before and after the job.

use crate::job::Job;
use crate::run::{finish, needs};
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use std::fs::File;
use std::process::Command;

/// One, known by its name.
#[derive(Debug)]
pub struct Network(String);

impl Network {
    /// A network that only one test knows, with addresses for several hosts.
    pub fn new(name: String) -> Network {
        let network = Network::empty(name);
        for address in ["10.77.0.1/32", "10.77.0.2/32", "10.77.0.3/32"] {
            ip(&["-n", &network.0, "address", "add", address, "dev", "lo"]);
        }
        network
    }

    /// Two hosts that are joined: 10.77.0.1 and 10.77.0.2.
    pub fn pair(name: &str) -> [Network; 2] {
        let [here, there] = ["a", "b"].map(|end| Network::empty(format!("{name}-{end}")));
        ip(&["-n", &here.0, "link", "add", "v", "type", "veth", "peer", "v", "netns", &there.0]);
        for (network, address) in [(&here, "10.77.0.1/24"), (&there, "10.77.0.2/24")] {
            ip(&["-n", &network.0, "address", "add", address, "dev", "v"]);
            ip(&["-n", &network.0, "link", "set", "v", "up"]);
        }
        [here, there]
    }

    fn empty(name: String) -> Network {
        ip(&["netns", "add", &name]);
        let network = Network(name);
        ip(&["-n", &network.0, "link", "set", "lo", "up"]);
        network
    }

    /// Where it is to be found.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// The tables of packet filters in it.
    pub fn tables(&self) -> String {
        let mut command = Command::new(needs("ip", "iproute2"));
        let nft = needs("nft", "nftables");
        command.args(["netns", "exec", &self.0]).arg(nft).args(["list", "tables"]);
        finish(command).ok()
    }

    /// Does something in it.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let network = File::open(self.path()).expect("open a network namespace");
        let there = move || {
            setns(network, CloneFlags::CLONE_NEWNET).expect("enter a network namespace");
            work()
        };
        std::thread::spawn(there).join().expect("do something in a network namespace")
    }

    /// The job is to run in it.
    pub fn take(&self, job: &Job) {
        job.container.change(|config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != "network");
            namespaces.push(json!({"type": "network", "path": self.path()}));
        });
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.0]);
    }
}

fn ip(words: &[&str]) {
    let mut command = Command::new(needs("ip", "iproute2"));
    command.args(words);
    finish(command).ok();
}
