//! A job that moves from one server to another, at any moment, ends as if nothing had happened.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

mod common;

use ckrun_softemu::client::Client;
use ckrun_softemu::control::Claim;
use ckrun_softemu::link::Kind;
use ckrun_softemu::testbench::{self, Outcome};
use ckrun_softemu::{Error, Result};
use common::{Server, options, undisturbed};

const TRANSACTIONS: u64 = 2000;
const SEED: u64 = 11;

/// Freezes and saves a slot, kills its server, and loads the state into another slot of another server. The testbench
/// stands still in the meantime, wherever it is: this runs in its thread.
fn migrate(server: &mut Server, slot: &mut usize, kind: Kind, client: &mut Client) -> Result<()> {
    let file = server.folder.path().join("slot.state");
    let mut old = server.control("job");
    old.freeze(*slot)?;
    let saved = old.save(*slot, &file)?;
    let next = Server::start(3);
    // Another job has the slot of the same number.
    next.control("somebody else").claim(&Claim { slot: Some(*slot), ..Claim::default() })?;
    let (there, link) = next.claim("job", kind, true);
    assert_ne!(there, *slot);
    let mut new = next.control("job");
    assert_eq!(new.check(&file)?, saved);
    assert_eq!(new.load(there, &file)?, saved);
    client.replace(&link)?;
    server.kill();
    new.thaw(there)?;
    (*server, *slot) = (next, there);
    Ok(())
}

fn run_with_moves(kind: Kind, points: &[u64]) -> Outcome {
    let mut server = Server::start(1);
    let folder = tempfile::tempdir().unwrap();
    let (mut slot, link) = server.claim("job", kind, false);
    let options = options(&link, SEED, TRANSACTIONS, folder.path());
    testbench::run(&options, &mut std::io::sink(), &mut |client, done| {
        if points.contains(&done) {
            migrate(&mut server, &mut slot, kind, client)?;
        }
        Ok(())
    })
    .unwrap_or_else(|error: Error| panic!("{kind}, moved at {points:?}: {error}"))
}

/// Random points, three moves deep, printed if they fail.
fn moves_change_nothing(kind: Kind) {
    let expected = undisturbed(SEED, TRANSACTIONS);
    let mut random = std::process::id().wrapping_mul(0x9e37_79b1) ^ kind as u32;
    for _ in 0..5 {
        let points: Vec<u64> = (0..3)
            .map(|_| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                1 + u64::from(random >> 8) % TRANSACTIONS
            })
            .collect();
        assert_eq!(run_with_moves(kind, &points), expected, "{kind}, moved at {points:?}");
    }
}

#[test]
fn moves_over_tcp_change_nothing() {
    moves_change_nothing(Kind::Tcp);
}

#[test]
fn moves_over_a_unix_socket_change_nothing() {
    moves_change_nothing(Kind::Unix);
}

#[test]
fn moves_over_a_pty_change_nothing() {
    moves_change_nothing(Kind::Pty);
}

#[test]
fn moves_over_shared_memory_change_nothing() {
    moves_change_nothing(Kind::Ring);
}

#[test]
fn a_save_and_a_thaw_in_place_change_nothing() {
    let expected = undisturbed(SEED, TRANSACTIONS);
    for kind in Kind::ALL {
        let server = Server::start(1);
        let folder = tempfile::tempdir().unwrap();
        let (slot, link) = server.claim("job", kind, false);
        let mut control = server.control("job");
        let options = options(&link, SEED, TRANSACTIONS, folder.path());
        let outcome = testbench::run(&options, &mut std::io::sink(), &mut |_, done| {
            if done.is_multiple_of(50) {
                control.freeze(slot)?;
                control.save(slot, &folder.path().join("state"))?;
                control.thaw(slot)?;
            }
            Ok(())
        });
        assert_eq!(outcome.unwrap(), expected, "{kind}");
    }
}

#[test]
fn a_frozen_slot_serves_nothing_and_counts_what_waits() {
    use ckrun_softemu::transaction::Request;
    for kind in Kind::ALL {
        let server = Server::start(1);
        let (slot, link) = server.claim("job", kind, false);
        let mut client = Client::open(&link).unwrap();
        client.transact(&Request::Step(10)).unwrap();
        let mut control = server.control("job");
        assert!(control.freeze(slot).unwrap()[0].is_empty(), "{kind}");
        client.issue(&Request::Step(5)).unwrap();
        client.issue(&Request::Cycle).unwrap();
        // Frames of 20 and 12 bytes. The kernel may hand the last ones over a moment later.
        while control.drain(slot).unwrap()[0].unserved < 32 {}
        assert_eq!(control.drain(slot).unwrap()[0].unserved, 32, "{kind}");
        assert_eq!(control.cycle(slot).unwrap(), 10, "{kind}");
        control.thaw(slot).unwrap();
        client.reply().unwrap();
        assert_eq!(client.reply().unwrap().cycle, 15, "{kind}");
    }
}

#[test]
fn a_freeze_waits_for_the_transaction_under_way() {
    use ckrun_softemu::transaction::Request;
    let server = Server::start(1);
    let (slot, link) = server.claim("job", Kind::Unix, false);
    let mut client = Client::open(&link).unwrap();
    const LONG: u64 = 20_000_000;
    client.issue(&Request::Step(LONG)).unwrap();
    client.issue(&Request::Step(1)).unwrap();
    let mut control = server.control("job");
    // It has begun, and others are served meanwhile.
    while control.cycle(slot).unwrap() == 0 {}
    assert!(server.control("job").save(slot, "/nowhere".as_ref()).is_err());
    control.freeze(slot).unwrap();
    assert_eq!(control.cycle(slot).unwrap(), LONG);
    assert_eq!(client.reply().unwrap().cycle, LONG);
}
