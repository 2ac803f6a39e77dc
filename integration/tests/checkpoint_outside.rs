//! TCP connections to somebody who is not in the job.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::{Job, cleared, path};
use ckrun_integration::networks::Network;
use ckrun_integration::pipes::PATIENCE;
use ckrun_integration::run::finish;
use ckrun_virt::sys::sockopt;
use nix::sys::signal::{Signal, kill};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Words that the peer is ahead of the answers.
const AHEAD: u64 = 100;
/// After this time without an answer it sends another one.
const IMPATIENCE: Duration = Duration::from_millis(20);

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
    line: Receiver<TcpStream>,
}

impl Peer {
    /// Goes on with a conversation with the first who connects.
    fn at(network: &Network, address: &'static str, talk: Talk) -> Peer {
        let listener = network.within(move || TcpListener::bind(address).unwrap());
        let quiet = Arc::new(AtomicBool::new(false));
        let hushed = quiet.clone();
        let (tell, line) = channel();
        let talk = std::thread::spawn(move || {
            let line = listener.accept().unwrap().0;
            tell.send(line.try_clone().unwrap()).unwrap();
            converse(line, talk, &hushed)
        });
        Peer { quiet, talk, line }
    }

    /// It says nothing from now on, and only listens.
    fn hush(&self) {
        self.quiet.store(true, Ordering::SeqCst);
    }
}

/// Speaks until the line is cut.
fn converse(mut line: TcpStream, mut talk: Talk, quiet: &AtomicBool) -> Talk {
    line.set_nodelay(true).unwrap();
    line.set_read_timeout(Some(IMPATIENCE)).unwrap();
    let (mut part, mut urge) = (Vec::new(), 0);
    loop {
        while talk.sent < talk.answered + AHEAD + urge && !quiet.load(Ordering::SeqCst) {
            if line.write_all(&mix(talk.sent + 1).to_ne_bytes()).is_err() {
                return talk;
            }
            talk.sent += 1;
        }
        let mut bytes = [0; 800];
        match line.read(&mut bytes) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => urge += 1,
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
    network.take(&job);
    let peer = Peer::at(&network, "10.77.0.2:5011", Talk::default());
    job.start_with(more);
    (job, network, peer)
}

/// A guest with a line that is to be kept, to somebody on another host.
struct Kept {
    job: Job,
    network: Network,
    line: TcpStream,
    talk: JoinHandle<Talk>,
    _there: Network,
}

impl Kept {
    fn up() -> Kept {
        let job = Job::new("inet", "line");
        let [network, there] = Network::pair(&job.container.id().replace("ckrun-", "net-"));
        network.take(&job);
        let Peer { talk, line, .. } = Peer::at(&there, "10.77.0.2:5011", Talk::default());
        job.start();
        Kept { job, network, line: line.recv().unwrap(), talk, _there: there }
    }

    /// Waits until the peer has sent something once more, since it had no answer; nor has it been turned away.
    fn hears_nothing(&self) {
        // `struct tcp_info`: tcpi_state (1 is established), tcpi_total_retrans.
        let info = || {
            let mut info = [0; 104];
            sockopt::get(&self.line, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).unwrap();
            assert_eq!(info[0], 1, "the peer has been told something");
            u32::from_ne_bytes(*info.last_chunk().unwrap())
        };
        let (before, deadline) = (info(), Instant::now() + PATIENCE);
        while info() == before {
            assert!(Instant::now() < deadline, "the peer has no reason to send anything again");
            std::thread::yield_now();
        }
    }

    fn checkpoint<'a>(&self, image: &'a Path) -> [&'a str; 5] {
        ["checkpoint", "--tcp-established", "--image-path", path(image), "ID"]
    }

    fn end(self) {
        self.job.is_well();
        assert_eq!(self.network.tables(), "");
        self.job.container.ckrun(&["delete", "--force", "ID"]).ok();
        let talk = self.talk.join().unwrap();
        assert!(talk.answered > 0 && talk.answered <= talk.sent, "{talk:?}");
    }
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

/// From before the line is looked at until it is there again, the peer hears nothing, and nothing that it sends is taken by
/// somebody who then forgets it.
#[test]
fn nobody_answers_while_the_job_is_away() {
    let kept = Kept::up();
    for round in 0..2 {
        let image = kept.job.image(&format!("image-{round}"));
        let (mut ckrun, pid) = kept.job.stopped_at("checkpoint:tmpfs", &kept.checkpoint(&image));
        kept.hears_nothing();
        kill(pid, Signal::SIGCONT).unwrap();
        assert!(ckrun.wait().unwrap().success());
        kept.job.container.no_trace();
        kept.hears_nothing();
        assert_eq!(kept.network.tables(), "table inet ckrun");
        // What clients say next.
        kept.job.container.ckrun(&["delete", "--force", "ID"]).ok();
        let words = ["restore", "--detach", "--image-path", path(&image), "ID"];
        let mut command = kept.job.container.command(&words);
        command.env("CKRUN_FAULT", "fail@restore:release");
        finish(command).exits(1);
        kept.hears_nothing();
        kept.job.restore(&image);
        assert_eq!(kept.network.tables(), "");
    }
    kept.end();
}

/// The line goes on where it was, whatever ends the checkpoint.
#[test]
fn a_checkpoint_that_comes_to_nothing_leaves_no_wall() {
    let kept = Kept::up();
    for point in ["checkpoint:tmpfs", "checkpoint:commit", "checkpoint:committed"] {
        let image = kept.job.image(&point.replace(':', "-"));
        let (mut ckrun, pid) = kept.job.stopped_at(point, &kept.checkpoint(&image));
        kept.hears_nothing();
        kill(pid, Signal::SIGKILL).unwrap();
        assert!(!ckrun.wait().unwrap().success());
        cleared(&kept.job.container);
        kept.job.is_well();
        assert_eq!(kept.network.tables(), "");
    }
    let image = kept.job.image("failed");
    let mut command = kept.job.container.command(&kept.checkpoint(&image));
    command.env("CKRUN_FAULT", "fail@checkpoint:commit");
    finish(command).exits(1);
    kept.job.is_unharmed(&image);
    kept.end();
}
