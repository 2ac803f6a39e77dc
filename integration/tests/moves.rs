//! A job and its slot of an emulator move from host to host: the testbench's log, the design's digest and the cycle are those
//! of a run that nobody has disturbed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::hosts::{Host, SMALL, Site, VERILATED, work};

const TRANSACTIONS: u64 = 40_000;

/// What a job finds, and what it opens.
const DEVICE: (&str, &str) = ("emu:link=device", "dev:/dev/emu0");
const TCP: (&str, &str) = ("emu:link=socket", "tcp:emu:4000");
const RING: (&str, &str) = ("emu:link=memory", "shm:/dev/shm/ring0");

/// Two hosts with a bundle each; of B's slots another job has the first one.
fn hosts(site: &Site, design: &[&str], link: &str) -> (Host, Host) {
    let (mut a, mut b) = (site.host("a"), site.host("b"));
    a.serve("emu-a", 2, design);
    b.serve("emu-b", 2, design);
    b.control("emu-b", &["--owner", "somebody else", "claim", "--slot", "0", "--links", "unix"]);
    for host in [&a, &b] {
        host.bundle("tb", link, TRANSACTIONS);
    }
    (a, b)
}

/// Three moves of a job at each of so many random triples of points.
fn moves_change_nothing(link: (&str, &str), times: usize) {
    moves_on(&Site::new(), &SMALL, link, times);
}

fn moves_on(site: &Site, design: &[&str], (plugin, link): (&str, &str), times: usize) {
    let (a, b) = hosts(site, design, link);
    work::moves_change_nothing(&a, &b, plugin, TRANSACTIONS, times);
    // Every slot has been given back.
    assert!(a.control("emu-a", &["list"])["slots"][0]["owner"].is_null());
    assert!(b.control("emu-b", &["list"])["slots"][1]["owner"].is_null());
    drop((a, b));
    site.no_trace();
}

#[test]
fn moves_of_a_device_change_nothing() {
    moves_change_nothing(DEVICE, 1);
}

#[test]
fn moves_of_a_ring_change_nothing() {
    moves_change_nothing(RING, 1);
}

#[test]
fn moves_of_a_connection_change_nothing() {
    moves_change_nothing(TCP, 1);
}

#[test]
#[ignore = "heavy: make test-all"]
fn fifty_moves_of_a_connection_change_nothing() {
    moves_change_nothing(TCP, 17);
}

#[test]
#[ignore = "heavy: make test-all"]
fn fifty_moves_of_a_device_change_nothing() {
    moves_change_nothing(DEVICE, 17);
}

#[test]
#[ignore = "heavy: make test-all"]
fn fifty_moves_of_a_ring_change_nothing() {
    moves_change_nothing(RING, 17);
}

#[test]
#[ignore = "heavy: make test-all"]
fn fifty_moves_change_nothing_for_the_verilated_design() {
    for link in [DEVICE, TCP, RING] {
        moves_on(&Site::verilated(), &VERILATED, link, 6);
    }
}

/// The testbench and a JTAG adapter are one job, and have one slot: each byte of either is served once.
#[test]
#[ignore = "heavy: make test-all"]
fn moves_of_a_testbench_and_an_adapter_at_once_change_nothing() {
    let site = Site::verilated();
    let (mut a, mut b) = (site.host("a"), site.host("b"));
    a.serve("emu-a", 1, &VERILATED);
    b.serve("emu-b", 1, &VERILATED);
    for host in [&a, &b] {
        host.bench_and_adapter("tb", TRANSACTIONS / 4);
    }
    work::moves_change_nothing(&a, &b, "emu:socket=tcp:emu:4000,jtag=tcp:emu:4001", TRANSACTIONS / 4, 3);
    drop((a, b));
    site.no_trace();
}

#[test]
fn a_job_goes_on_when_its_host_has_gone() {
    let site = Site::new();
    let (a, b) = hosts(&site, &SMALL, DEVICE.1);
    a.start(DEVICE.0);
    let expected = a.outcome();
    a.start(DEVICE.0);
    a.reaches(500);
    a.ckrun(&["checkpoint", "--image-path", "/mnt/image", "ID"]).ok();
    a.die();
    b.quietly(&["restore", "--detach", "--image-path", "/mnt/image", "--bundle", "/srv/tb", "ID"]).ok();
    let ids = b.ckrun(&["ids", "ID"]).ok();
    assert!(ids.contains("generation 0: host a,") && ids.contains("generation 1: host b,"), "{ids}");
    let list = b.ckrun(&["plugin", "list", "ID"]).ok();
    assert!(list.contains("dev:/dev/emu0"), "{list}");
    assert_eq!(b.outcome(), expected);
    b.is_empty();
}
