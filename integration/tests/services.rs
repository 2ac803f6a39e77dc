//! Real services with real clients at work, all in one container: checkpointed under load, killed and restored, three
//! times. Each driver (`programs/services`) verifies what the clients are told, and nothing may be missing or come twice.
//! `make test-all` runs them, since they are heavy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::path;
use ckrun_integration::networks::Network;
use ckrun_integration::pipes::PATIENCE;
use ckrun_integration::programs::{program, resting, source, survives};
use ckrun_integration::run::needs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Runs a driver, for which the `programs` of these packages must be there.
fn service(driver: &str, programs: &[(&str, &str)]) {
    needs("python3", "python3");
    for (program, package) in programs {
        needs(program, package);
    }
    with_files(&["service.py", driver]);
}

/// Runs the last one of some drivers' files.
fn with_files(files: &[&str]) {
    let paths: Vec<_> = files.iter().map(|file| source("services").join(file)).collect();
    let last = format!("/work/{}", files.last().expect("a driver"));
    survives(&program(&["python3", &last], &paths));
}

#[test]
#[ignore = "heavy: make test-all"]
fn redis() {
    service("redis.py", &[("redis-server", "redis-server")]);
}

/// Clients of redis on another host, in the same connections through three generations.
#[test]
#[ignore = "heavy: make test-all"]
fn redis_with_clients_outside() {
    needs("redis-server", "redis-server");
    let files = ["service.py", "redis_outside.py"].map(|file| source("services").join(file));
    let job = resting(&["python3", "/work/redis_outside.py"], &files);
    let [here, there] = Network::pair(&job.container.id().replace("ckrun-", "net-"));
    here.take(&job);
    job.start();
    let works: [fn(Redis, &Sender<u64>); 4] = [count, count, keep, keep];
    let clients: Vec<Receiver<u64>> = (0..)
        .zip(works)
        .map(|(number, work)| {
            let line = there.within(|| TcpStream::connect("10.77.0.1:6379").unwrap());
            let (tell, told) = channel();
            std::thread::spawn(move || work(Redis { number, line: BufReader::new(line) }, &tell));
            told
        })
        .collect();
    let get_on = || {
        for client in &clients {
            // What was told before is there already.
            let before = client.try_iter().last().unwrap_or(0);
            while client.recv_timeout(PATIENCE).expect("a client stands still, or has ended") < before + 20 {}
        }
    };
    for generation in 0..3 {
        get_on();
        let image = job.image(&format!("generation-{generation}"));
        let words = ["checkpoint", "--tcp-established", "--image-path", path(&image), "ID"];
        job.container.ckrun(&words).ok();
        job.container.no_trace();
        job.restore_and_count(&image, 10);
        assert_eq!(here.tables(), "");
    }
    get_on();
    // Nobody else has ever connected.
    let mut asker = Redis {
        number: 9,
        line: BufReader::new(there.within(|| TcpStream::connect("10.77.0.1:6379").unwrap())),
    };
    asker.send(&[b"INFO", b"stats"]);
    let stats = asker.bulk();
    assert!(
        String::from_utf8_lossy(&stats).contains("total_connections_received:6\r\n"),
        "five, and the one that asks"
    );
}

/// A client of redis.
struct Redis {
    number: u8,
    line: BufReader<TcpStream>,
}

impl Redis {
    fn send(&mut self, words: &[&[u8]]) {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n", word.len()).into_bytes());
            bytes.extend(*word);
            bytes.extend(b"\r\n");
        }
        self.line.get_mut().write_all(&bytes).unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.line.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn bulk(&mut self) -> Vec<u8> {
        let length: usize = self.answer().strip_prefix('$').unwrap().parse().unwrap();
        let mut bytes = vec![0; length + 2];
        self.line.read_exact(&mut bytes).unwrap();
        bytes.truncate(length);
        bytes
    }
}

/// A hundred on the way at once; none may be lost, and none done twice.
fn count(mut redis: Redis, tell: &Sender<u64>) {
    let key = format!("counter-{}", redis.number);
    for round in 0_u64.. {
        for _ in 0..100 {
            redis.send(&[b"INCR", key.as_bytes()]);
        }
        for n in 1..=100 {
            assert_eq!(redis.answer(), format!(":{}", round * 100 + n));
        }
        if tell.send(round).is_err() {
            return;
        }
    }
}

/// Values that do not fit into the buffers of either side.
fn keep(mut redis: Redis, tell: &Sender<u64>) {
    let key = format!("value-{}", redis.number);
    for round in 0_u64.. {
        let value: Vec<u8> = (0..300_000).map(|at| ((at ^ round) % 251) as u8).collect();
        redis.send(&[b"SET", key.as_bytes(), &value]);
        redis.send(&[b"GET", key.as_bytes()]);
        assert_eq!(redis.answer(), "+OK");
        assert!(redis.bulk() == value, "round {round}");
        if tell.send(round).is_err() {
            return;
        }
    }
}

#[test]
#[ignore = "heavy: make test-all"]
fn asyncio() {
    service("echo.py", &[]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn nginx() {
    service("nginx.py", &[("nginx", "nginx-light")]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn postgresql() {
    service("postgres.py", &[("pgbench", "postgresql")]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn tmux() {
    service("tmux.py", &[("tmux", "tmux")]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn editors() {
    service("editors.py", &[("tmux", "tmux"), ("vim.tiny", "vim-tiny"), ("nano", "nano")]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn node() {
    needs("python3", "python3");
    needs("node", "nodejs");
    with_files(&["service.py", "node.js", "node.py"]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn sshd() {
    service("sshd.py", &[("sshd", "openssh-server"), ("ssh", "openssh-client")]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn a_supervisor() {
    service("supervisor.py", &[("supervisord", "supervisor")]);
}

#[test]
#[ignore = "heavy: make test-all"]
fn stress_ng() {
    service("stress.py", &[("stress-ng", "stress-ng")]);
}
