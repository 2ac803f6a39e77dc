//! Sockets of the internet protocols with both ends in the job, or with one end only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::Job;
use ckrun_integration::modes_survive;

modes_survive!("inet":
    listen listen_6 listen_dual reuseport idle idle_6 waiting waiting_6 slow_to_accept connecting options
    ; else "waiting-with-data" "line" "line-or-end"
);

mod streams {
    ckrun_integration::modes_survive!("streams":
        pair pair_6 pair_mapped pair_alone full grown grown_6 close_wait close_wait_6 peer_gone fin_wait1 fin_wait1_6
        last_ack last_ack_6 drain closed closed_6 closed_one reset foreign no_reading
        ; else
    );
}

mod traffic {
    ckrun_integration::modes_survive!("traffic":
        cork between torrent torrent_6 edge full_edge arriving
        ; else "mapped"
    );
}

mod datagrams {
    ckrun_integration::modes_survive!("datagrams":
        udp udp_6 udp_connected udp_queue udp_queue_6 udp_shut groups raw
        ; else "udp-corked"
    );
}

#[test]
fn received_data_that_is_mapped() {
    Job::up("traffic", "mapped").is_refused_beforehand(&["a mapped socket"]);
}

/// What waits to be accepted can't be read.
#[test]
fn waiting_with_data() {
    Job::up("inet", "waiting-with-data").survives_or_is_refused(&[
        "tcp socket",
        "waits to be accepted",
        "5 bytes",
    ]);
}

/// Half a datagram is in the kernel, which does not give it away.
#[test]
fn udp_corked() {
    Job::up("datagrams", "udp-corked").survives_or_is_refused(&["udp socket", "corked"]);
}
