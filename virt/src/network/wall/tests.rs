//! Each in a thread of its own, which goes to a new network namespace.

use super::*;
use nix::sched::{CloneFlags, unshare};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;

fn nft(words: &str) -> String {
    let done = Command::new("nft").args(words.split(' ')).output().unwrap();
    assert!(done.status.success(), "{words}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Checks what there is in the end: the children of other tests have this one's sockets too, until they execute a program.
#[track_caller]
fn nft_says(words: &str, wanted: &str) {
    let said = (0..200).any(|_| nft(words).trim() == wanted);
    assert!(said, "{words}: {}", nft(words));
}

/// In a namespace of which `Pid` is.
fn alone(test: impl FnOnce(Pid) + Send + 'static) {
    let within = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        test(nix::unistd::gettid());
    };
    std::thread::spawn(within).join().unwrap();
}

fn ends(local: &str, peer: &str) -> Ends {
    (local.parse().unwrap(), peer.parse().unwrap())
}

#[test]
fn what_is_named_does_not_come_through_and_all_else_does() {
    for host in ["127.0.0.1", "[::1]"] {
        alone(move |here| {
            let listener = TcpListener::bind(format!("{host}:0")).unwrap();
            let mut pairs = [(); 2].map(|()| {
                let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                (listener.accept().unwrap().0, there)
            });
            let (own, peer) = &pairs[0];
            let ends = (own.local_addr().unwrap(), peer.local_addr().unwrap());
            let mut wall = Wall::raise(here, vec![ends]).unwrap();
            let mut byte = [0];
            for (own, there) in &mut pairs {
                there.write_all(b"x").unwrap();
                own.set_nonblocking(true).unwrap();
            }
            pairs[1].0.set_nonblocking(false).unwrap();
            pairs[1].0.read_exact(&mut byte).unwrap();
            assert_eq!(pairs[0].0.read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
            // It stays when ckrun has ended, and nobody is told that there is no socket any more.
            wall.stay().unwrap();
            drop(wall);
            pairs[0].0.shutdown(Shutdown::Both).unwrap();
            assert!(nft("list ruleset").contains("tcp sport . "));
            lower(here, &[ends]).unwrap();
            nft_says("list ruleset", "");
        });
    }
}

/// With one that has gone in between, and one that was restored twice.
#[test]
fn several_jobs_do_not_meet() {
    alone(|here| {
        let one = ends("10.0.0.1:80", "10.0.0.2:1000");
        let other = ends("[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.2]:1001");
        let third = ends("[fd00::1]:80", "[fd00::2]:1001");
        let [mut first, mut second] =
            [vec![one], vec![other, third]].map(|all| Wall::raise(here, all).unwrap());
        assert_eq!(nft("list tables").lines().count(), 2);
        first.stay().unwrap();
        second.stay().unwrap();
        drop((first, second));
        nft_says("list tables", "table inet ckrun");
        lower(here, &[one]).unwrap();
        let left = nft("list ruleset");
        assert!(
            !left.contains("1000 . 10.0.0.1") && left.contains("10.0.0.2 . 1001 . 10.0.0.1 . 80"),
            "{left}"
        );
        assert!(left.contains("fd00::2 . 1001 . fd00::1 . 80"), "{left}");
        lower(here, &[one, third]).unwrap();
        nft("delete element inet ckrun four { 10.0.0.2 . 1001 . 10.0.0.1 . 80 }");
        // The last one to come finds it empty.
        lower(here, &[one]).unwrap();
        nft_says("list ruleset", "");
        lower(here, &[one]).unwrap();
    });
}

#[test]
fn many_connections_are_entered_and_taken_out_again() {
    alone(|here| {
        let all: Vec<Ends> =
            (1..=2000).map(|port| ends("10.0.0.1:80", &format!("10.0.0.2:{port}"))).collect();
        let mut wall = Wall::raise(here, all.clone()).unwrap();
        wall.stay().unwrap();
        wall.stay().unwrap();
        let rest = ends("10.0.0.1:80", "10.0.0.3:1");
        Wall::raise(here, vec![rest]).unwrap().stay().unwrap();
        lower(here, &all).unwrap();
        assert_eq!(nft("list ruleset").matches("timeout 1d").count(), 1);
        wall.leave().unwrap();
        lower(here, &[rest]).unwrap();
        drop(wall);
        nft_says("list ruleset", "");
    });
}
