//! Every kind of link gives the same results, and says so when the emulator has gone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

mod common;

use ckrun_softemu::control::Claim;
use ckrun_softemu::link::Kind;
use common::{Server, options, testbench, undisturbed};
use std::io::{BufRead, BufReader, Read};

#[test]
fn every_kind_of_link_gives_the_same_result() {
    let expected = undisturbed(7, 3000).to_string();
    let server = Server::start(4);
    for kind in Kind::ALL {
        let folder = tempfile::tempdir().unwrap();
        let (_, link) = server.claim(&kind.to_string(), kind, false);
        let output = testbench(&link, 7, 3000, folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(said.lines().last(), Some(expected.as_str()), "{kind}");
    }
}

#[test]
fn all_links_of_a_server_can_be_used_at_once() {
    let server = Server::start(4);
    let folder = tempfile::tempdir().unwrap();
    let running: Vec<_> = (0..4)
        .map(|n| {
            let kind = Kind::ALL[n as usize];
            let (_, link) = server.claim(&kind.to_string(), kind, false);
            (n, testbench(&link, n, 1000, folder.path()).spawn().unwrap())
        })
        .collect();
    for (n, child) in running {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said.lines().last(), Some(undisturbed(n, 1000).to_string().as_str()), "seed {n}");
    }
}

#[test]
fn the_testbench_says_that_the_emulator_has_gone() {
    for kind in Kind::ALL {
        let mut server = Server::start(1);
        let folder = tempfile::tempdir().unwrap();
        let (_, link) = server.claim("job", kind, false);
        let mut child = testbench(&link, 1, u64::MAX >> 1, folder.path()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        lines.next().unwrap().unwrap();
        server.kill();
        lines.for_each(drop);
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3), "{kind}: {said}");
        assert!(said.contains(&format!("{link}: the emulator has gone")), "{kind}: {said}");
        let log = std::fs::read_to_string(common::log_path(folder.path(), 1)).unwrap();
        assert!(log.lines().count() > 100, "{kind}: what was done is in the log");
    }
}

#[test]
fn a_link_survives_a_reconnect_only_if_asked() {
    for kind in [Kind::Tcp, Kind::Unix, Kind::Pty] {
        let server = Server::start(2);
        let folder = tempfile::tempdir().unwrap();
        for reconnect in [false, true] {
            let mut control = server.control("job");
            let claim = Claim { links: vec![kind], reconnect, ..Claim::default() };
            let claimed = control.claim(&claim).unwrap();
            let run = |seed| {
                let options = options(&claimed.links[0], seed, 200, folder.path());
                ckrun_softemu::testbench::run(&options, &mut std::io::sink(), &mut |_, _| Ok(()))
            };
            run(1).unwrap();
            if reconnect {
                // Only then is the next one another one.
                while control.drain(claimed.slot).unwrap()[0].connected {}
                run(2).unwrap();
                continue;
            }
            // The server hears of the end of the first testbench before that of this request, or with it.
            loop {
                let drained = control.drain(claimed.slot).unwrap();
                if let Some(why) = &drained[0].broken {
                    assert!(why.contains("the job has closed it"), "{why}");
                    break;
                }
            }
            if kind != Kind::Pty {
                assert!(run(2).is_err(), "{kind}");
            }
        }
    }
}
