//! A job and its slot of an emulator move from host to host: the testbench's log, the design's digest and the cycle are those
//! of a run that nobody has disturbed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::hosts::{Host, SMALL, Site};

const TRANSACTIONS: u64 = 40_000;

/// What a job finds, and what it opens.
const DEVICE: (&str, &str) = ("emu:link=device", "dev:/dev/emu0");
const TCP: (&str, &str) = ("emu:link=socket", "tcp:emu:4000");
const RING: (&str, &str) = ("emu:link=memory", "shm:/dev/shm/ring0");

/// Two hosts with a bundle each; of B's slots another job has the first one.
fn hosts(site: &Site, link: &str) -> (Host, Host) {
    let (mut a, mut b) = (site.host("a"), site.host("b"));
    a.serve("emu-a", 2, &SMALL);
    b.serve("emu-b", 2, &SMALL);
    b.control("emu-b", &["--owner", "somebody else", "claim", "--slot", "0"]);
    for host in [&a, &b] {
        host.bundle("tb", link, TRANSACTIONS);
    }
    (a, b)
}

/// Three moves of a job at each of so many random points, which are printed if they fail.
fn moves_change_nothing((plugin, link): (&str, &str), times: usize) {
    let site = Site::new();
    let (a, b) = hosts(&site, link);
    a.start(plugin);
    let expected = a.outcome();
    assert!(expected.contains("\nexit 0\n"), "{expected}");
    let mut random = std::process::id().wrapping_mul(0x9e37_79b1);
    for _ in 0..times {
        let mut points = [0; 3].map(|_| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u64::from(random >> 8) % (TRANSACTIONS * 2 / 3)
        });
        points.sort_unstable();
        eprintln!("{plugin}: moves at {points:?}");
        a.start(plugin);
        for (point, (from, to)) in points.into_iter().zip([(&a, &b), (&b, &a), (&a, &b)]) {
            from.reaches(point);
            from.moves(to, &["ID"]).exits(0);
            from.is_empty();
        }
        assert_eq!(b.outcome(), expected, "{plugin}, moved at {points:?}");
        b.is_empty();
        // Every slot has been given back.
        assert!(a.control("emu-a", &["list"])["slots"][0]["owner"].is_null());
        assert!(b.control("emu-b", &["list"])["slots"][1]["owner"].is_null());
    }
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
fn a_job_goes_on_when_its_host_has_gone() {
    let site = Site::new();
    let (a, b) = hosts(&site, DEVICE.1);
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
