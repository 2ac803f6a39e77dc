//! TCP connections to somebody who is not in the job.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::{Job, path};
use ckrun_integration::run::{finish, needs};
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Words that the peer is ahead of the answers.
const AHEAD: u64 = 100;

/// A network that only one test knows, with addresses for several hosts.
struct Network(String);

impl Network {
    fn new(name: String) -> Network {
        ip(&["netns", "add", &name]);
        let network = Network(name);
        ip(&["-n", &network.0, "link", "set", "lo", "up"]);
        for address in ["10.77.0.1/32", "10.77.0.2/32", "10.77.0.3/32"] {
            ip(&["-n", &network.0, "address", "add", address, "dev", "lo"]);
        }
        network
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// Somebody at this address.
    fn listen(&self, address: &'static str) -> TcpListener {
        let network = File::open(self.path()).unwrap();
        let bind = move || {
            setns(network, CloneFlags::CLONE_NEWNET).unwrap();
            TcpListener::bind(address).unwrap()
        };
        std::thread::spawn(bind).join().unwrap()
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

/// As the guest has it.
fn mix(mut x: u64) -> u64 {
    x ^= x >> 31;
    x = x.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x.wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// Where the conversation is: words that were sent, and answers that came.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Talk {
    sent: u64,
    answered: u64,
}

/// The other end of a guest's line.
struct Peer {
    quiet: Arc<AtomicBool>,
    talk: JoinHandle<Talk>,
}

impl Peer {
    /// Goes on with a conversation with the first who connects.
    fn at(network: &Network, address: &'static str, talk: Talk) -> Peer {
        let listener = network.listen(address);
        let quiet = Arc::new(AtomicBool::new(false));
        let hushed = quiet.clone();
        let talk = std::thread::spawn(move || converse(listener.accept().unwrap().0, talk, &hushed));
        Peer { quiet, talk }
    }

    /// It says nothing from now on, and only listens.
    fn hush(&self) {
        self.quiet.store(true, Ordering::SeqCst);
    }
}

/// Speaks until the line is cut.
fn converse(mut line: TcpStream, mut talk: Talk, quiet: &AtomicBool) -> Talk {
    line.set_nodelay(true).unwrap();
    let mut part = Vec::new();
    loop {
        while talk.sent < talk.answered + AHEAD && !quiet.load(Ordering::SeqCst) {
            if line.write_all(&mix(talk.sent + 1).to_ne_bytes()).is_err() {
                return talk;
            }
            talk.sent += 1;
        }
        let mut bytes = [0; 800];
        match line.read(&mut bytes) {
            Ok(0) | Err(_) => return talk,
            Ok(read) => part.extend(&bytes[..read]),
        }
        while let Some((word, _)) = part.split_first_chunk::<8>() {
            talk.answered += 1;
            assert_eq!(u64::from_ne_bytes(*word), mix(talk.answered + (1 << 32)), "{talk:?}");
            part.drain(..8);
        }
    }
}

/// A guest with a line to somebody at 10.77.0.2:5011.
fn up(mode: &str, more: &[&str]) -> (Job, Network, Peer) {
    let job = Job::new("inet", mode);
    let network = Network::new(job.container.id().replace("ckrun-", "net-"));
    job.container.change(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "network", "path": network.path()}));
    });
    let peer = Peer::at(&network, "10.77.0.2:5011", Talk::default());
    job.start_with(more);
    (job, network, peer)
}

/// Nobody has said what is to become of it.
#[test]
fn it_is_refused() {
    let (job, _network, _peer) = up("line", &[]);
    let words = [
        "fd ",
        "tcp socket",
        "connected to 10.77.0.2:5011",
        "--tcp-established",
        "--tcp-close",
        "--map tcp:",
    ];
    job.survives_or_is_refused(&words);
}

#[test]
fn it_is_closed() {
    let (job, _network, peer) = up("line-or-end", &[]);
    let image = job.image("image");
    job.container.ckrun(&["checkpoint", "--tcp-close", "--image-path", path(&image), "ID"]).ok();
    assert!(peer.talk.join().unwrap().answered > 0);
    job.restore(&image);
}

/// Somebody else goes on, elsewhere; neither side misses or repeats a word.
#[test]
fn somebody_else_goes_on() {
    let (job, network, peer) = up("line", &["--map", "tcp:emu:4000=10.77.0.2:5011"]);
    let mut peer = peer;
    for (round, address) in ["10.77.0.3:6000", "10.77.0.2:5011"].into_iter().enumerate() {
        let image = job.image(&format!("image-{round}"));
        let ids = job.container.ckrun(&["ids", "--to-real", "sock:emu:4000", "ID"]).ok();
        assert!(ids.contains(if round == 0 { "10.77.0.2:5011" } else { "10.77.0.3:6000" }), "{ids}");
        peer.hush();
        job.container.ckrun(&["checkpoint", "--image-path", path(&image), "ID"]).ok();
        let talk = peer.talk.join().unwrap();
        assert!(talk.answered > 0);
        let lonely = job.container.ckrun(&["restore", "--detach", "--image-path", path(&image), "ID"]);
        assert!(lonely.exits(1).stderr.contains("say --map tcp:emu:4000="));
        peer = Peer::at(&network, address, talk);
        job.restore_with(&image, &["--map", &format!("tcp:emu:4000={address}")]);
    }
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    assert!(peer.talk.join().unwrap().answered > 0);
}
