//! OpenOCD, as Debian has it, is the job: it scans the test access port of the Verilated design by remote_bitbang, and goes on with
//! the next bit behind another server at another address.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::hosts::{Site, VERILATED, work};

const SCANS: u64 = 1500;

#[test]
#[ignore = "heavy: make test-all"]
fn moves_of_openocd_change_nothing() {
    let site = Site::verilated();
    let (mut a, mut b) = (site.host("a"), site.host("b"));
    a.serve("emu-a", 1, &VERILATED);
    b.serve("emu-b", 1, &VERILATED);
    for host in [&a, &b] {
        host.debugger("tb", SCANS);
    }
    work::moves_change_nothing(&a, &b, "emu:link=jtag", SCANS, 5);
    drop((a, b));
    site.no_trace();
}
