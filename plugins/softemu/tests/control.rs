//! The control socket: claims, refusals, faults, and what a server leaves behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

mod common;

use ckrun_softemu::client::Client;
use ckrun_softemu::control::{Claim, Fault, Request, When};
use ckrun_softemu::error::Refusal;
use ckrun_softemu::link::Kind;
use ckrun_softemu::{Error, Result};
use ckrun_softemu::{testbench, transaction};
use common::{Server, options};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

fn refused<T: std::fmt::Debug>(result: Result<T>) -> (Refusal, String) {
    match result.unwrap_err() {
        Error::Refused { kind, message } => (kind, message),
        other => panic!("not a refusal: {other}"),
    }
}

#[test]
fn a_slot_can_be_claimed_once() {
    let server = Server::start(2);
    let (mut one, mut two) = (server.control("one"), server.control("two"));
    let claim = Claim { slot: Some(1), ..Claim::default() };
    assert_eq!(one.claim(&claim).unwrap().slot, 1);
    assert_eq!(refused(two.claim(&claim)), (Refusal::Taken, "slot 1 is taken by one".into()));
    assert_eq!(refused(one.claim(&claim)).0, Refusal::Taken, "not by its owner either");
    assert_eq!(refused(two.freeze(1)), (Refusal::Owner, "slot 1 is one's, not two's".into()));
    assert_eq!(refused(two.release(0)).0, Refusal::Owner);
    assert_eq!(refused(two.freeze(2)), (Refusal::Unknown, "there is no slot 2, there are 2 from 0".into()));
    assert_eq!(two.claim(&Claim::default()).unwrap().slot, 0);
    assert_eq!(
        refused(one.claim(&Claim::default())),
        (Refusal::Taken, "all 2 slots are taken: two, one".into())
    );
    // A claim is its owner's, not the connection's.
    drop(one);
    server.control("one").release(1).unwrap();
    assert_eq!(two.claim(&claim).unwrap().slot, 1);
}

#[test]
fn two_claims_at_once_get_one_slot() {
    let server = Server::start(1);
    let won = std::thread::scope(|scope| {
        let claims: Vec<_> = (0..8)
            .map(|n| {
                scope.spawn({
                    let server = &server;
                    move || server.control(&n.to_string()).claim(&Claim::default())
                })
            })
            .collect();
        claims.into_iter().map(|claim| claim.join().unwrap().is_ok()).filter(|won| *won).count()
    });
    assert_eq!(won, 1);
}

#[test]
fn files_that_do_not_fit_change_nothing() {
    let server = Server::start(2);
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good");
    let (slot, link) = server.claim("job", Kind::Unix, false);
    testbench::run(&options(&link, 1, 100, folder.path()), &mut std::io::sink(), &mut |_, _| Ok(())).unwrap();
    let mut control = server.control("job");
    assert_eq!(refused(control.save(slot, &good)).0, Refusal::State, "not frozen");
    control.freeze(slot).unwrap();
    control.save(slot, &good).unwrap();
    let (other, _) = server.claim("job", Kind::Unix, true);
    let before = control.digest(other).unwrap();
    let bytes = fs::read(&good).unwrap();
    let truncated = folder.path().join("truncated");
    fs::write(&truncated, &bytes[..bytes.len() / 2]).unwrap();
    let lying = folder.path().join("lying");
    fs::write(&lying, [&bytes[..100], &[bytes[100] ^ 1], &bytes[101..]].concat()).unwrap();
    for (file, why) in [(&truncated, "truncated: "), (&lying, "altered: the checksum does not match")] {
        let (kind, message) = refused(control.load(other, file));
        assert_eq!(kind, Refusal::Mismatch);
        assert!(message.starts_with(&format!("{}: {why}", file.display())), "{message}");
        assert_eq!(refused(control.check(file)), (kind, message));
    }
    let (kind, message) = refused(control.load(other, &folder.path().join("absent")));
    assert!(kind == Refusal::System && message.contains("absent: no such file"), "{message}");
    assert_eq!(control.digest(other).unwrap(), before);
    // Claimed with a link that the job has not used, and without the one that it has.
    let third = Server::start(1);
    let (slot, _) = third.claim("job", Kind::Tcp, true);
    let (kind, message) = refused(third.control("job").load(slot, &good));
    assert!(kind == Refusal::Mismatch && message.contains("link of kind unix"), "{message}");
    let larger = Server::with(1, &["--ram", "2048"]);
    let (kind, message) = refused(larger.control("job").check(&good));
    assert!(kind == Refusal::Mismatch && message.contains("another design: 1024 words"), "{message}");
}

#[test]
fn a_job_that_ends_during_a_freeze_is_saved() {
    for kind in [Kind::Unix, Kind::Tcp] {
        let server = Server::start(1);
        let (slot, link) = server.claim("job", kind, false);
        let mut job = Client::open(&link).unwrap();
        let mut control = server.control("job");
        job.transact(&transaction::Request::Cycle).unwrap();
        control.freeze(slot).unwrap();
        drop(job);
        for name in ["first", "second"] {
            control.save(slot, &server.folder.path().join(name)).unwrap();
        }
        control.thaw(slot).unwrap();
        // It is seen in the server's next turn.
        let deadline = Instant::now() + Duration::from_secs(30);
        let broken = loop {
            assert!(Instant::now() < deadline, "the server takes the job for alive");
            if let Some(why) = control.drain(slot).unwrap().remove(0).broken {
                break why;
            }
        };
        assert_eq!(broken, "the job has closed it");
    }
}

#[test]
fn a_fault_strikes_at_its_cycle_or_after_its_transactions() {
    let strike = |element: &str, at: When| {
        let server = Server::start(1);
        let folder = tempfile::tempdir().unwrap();
        let (slot, link) = server.claim("job", Kind::Unix, false);
        let fault = Fault { element: element.parse().unwrap(), bit: 3, at };
        server.control("job").fault(slot, &fault).unwrap();
        let options = options(&link, 3, 2000, folder.path());
        let ran = testbench::run(&options, &mut std::io::sink(), &mut |_, _| Ok(()));
        ran.map_err(|error| error.to_string())
    };
    let undisturbed = common::undisturbed(3, 2000);
    let detected = strike("shadow", When::Cycle(150_000)).unwrap_err();
    assert!(detected.contains("detected a fault"), "{detected}");
    assert_eq!(strike("shadow", When::Cycle(150_000)).unwrap_err(), detected, "it is reproducible");
    // A register that is written before it is read again masks the fault; not all of them are.
    let scratch = |n: u32| strike(&format!("scratch:{n}"), When::Transactions(1000)).err();
    let wrong: Vec<_> = (0..16).filter_map(scratch).collect();
    assert!((1..16).contains(&wrong.len()), "{wrong:?}");
    assert!(wrong[0].contains("read register ") && wrong[0].contains("value: it is "), "{wrong:?}");
    let silent = strike("ram:9", When::Transactions(1000)).unwrap();
    assert_ne!(silent.digest, undisturbed.digest);
    let masked = strike("word", When::Cycle(100_000)).unwrap();
    assert_eq!(masked, undisturbed);

    let server = Server::start(1);
    server.claim("job", Kind::Unix, false);
    let fault = Fault { element: "ram:9999".parse().unwrap(), bit: 0, at: When::Cycle(5) };
    let message = refused(server.control("job").fault(0, &fault)).1;
    assert_eq!(message, "state element ram:9999: there are 1024, from 0");
}

#[test]
fn nonsense_is_answered() {
    let server = Server::start(1);
    let mut stream = UnixStream::connect(server.folder.path().join("control")).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    for line in ["", "{}", "{\"op\":\"explode\"}", "{\"op\":\"freeze\",\"slot\":-1}", "\u{fffd}"] {
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let answer = answers.next().unwrap().unwrap();
        assert!(answer.contains(r#""kind":"request""#), "{line}: {answer}");
    }
    let list = serde_json::to_string(&Request::List).unwrap();
    stream.write_all(format!("{list}\n").as_bytes()).unwrap();
    assert!(answers.next().unwrap().unwrap().contains(r#""ok""#));
    stream.write_all(&[b'x'; 100_000]).unwrap();
    assert!(answers.next().unwrap().unwrap().contains("a line of more than"));
    // What was not read of it makes an error of the end of the file.
    assert!(answers.next().is_none_or(|answer| answer.is_err()), "then the connection ends");
    assert_eq!(server.control("me").list().unwrap().slots.len(), 1);
}

#[test]
fn a_job_that_breaks_the_framing_loses_its_link_only() {
    let server = Server::start(2);
    let (slot, link) = server.claim("job", Kind::Unix, false);
    let mut stream = UnixStream::connect(&link.address).unwrap();
    stream.write_all(&[0xff; 64]).unwrap();
    let mut control = server.control("job");
    while control.drain(slot).unwrap()[0].broken.is_none() {}
    let why = control.drain(slot).unwrap()[0].broken.clone().unwrap();
    assert!(why.contains("a frame of 4294967295 bytes"), "{why}");
    let (_, other) = server.claim("job", Kind::Pty, false);
    testbench::run(&options(&other, 1, 100, server.folder.path()), &mut std::io::sink(), &mut |_, _| Ok(()))
        .unwrap();
}

#[test]
fn nothing_is_left_behind() {
    let server = Server::start(1);
    let claim = Claim { links: Kind::ALL.to_vec(), ..Claim::default() };
    let links = server.control("job").claim(&claim).unwrap().links;
    let ring = links.iter().find(|link| link.kind == Kind::Ring).unwrap().address.clone();
    assert!(fs::metadata(&ring).is_ok());
    let folder = server.stop();
    assert!(fs::metadata(&ring).is_err());
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}
