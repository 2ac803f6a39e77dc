//! The plugin with real servers and a real testbench, and with what goes wrong on the way. ckrun's part is played by the
//! test; the testbench stands still because it runs in the test's thread.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

mod common;

use ckrun_plugin::occasion::{Exit, Going, Occasion, Recover};
use ckrun_plugin::rehearsal::{Rehearsal, saved};
use ckrun_plugin::{Address, After, Binding, Code, Fault, Real, Reason};
use ckrun_softemu::client::Client;
use ckrun_softemu::control::Claim;
use ckrun_softemu::design::registers;
use ckrun_softemu::link::{Kind, Name};
use ckrun_softemu::testbench::{self, Outcome};
use ckrun_softemu::transaction::Request;
use common::{SOFTEMU, Server, options, undisturbed};
use std::fs;
use std::path::{Path, PathBuf};

const TRANSACTIONS: u64 = 1500;
const SEED: u64 = 23;

/// A plugin that has said hello, for a server.
fn plugin(server: &Server, more: &[(&str, &str)]) -> Rehearsal {
    let mut plugin = Rehearsal::start(&[SOFTEMU, "plugin"]).unwrap();
    let folder = server.folder.path().display().to_string();
    plugin.hello(&[&[("server", folder.as_str())], more].concat()).unwrap();
    plugin
}

/// What the job opens for a binding.
fn link(binding: &Binding) -> Name {
    let Some(Real::Name(real)) = binding.real() else { panic!("{binding:?}") };
    let (kind, address) = match binding {
        Binding::Device { .. } => (Kind::Pty, real.clone()),
        Binding::Memory { .. } => (Kind::Ring, real.clone()),
        _ => match real.parse().unwrap() {
            Address::Tcp(host, port) => (Kind::Tcp, format!("{host}:{port}")),
            Address::Unix(path) => (Kind::Unix, path),
            Address::Abstract(name) => panic!("{name}"),
        },
    };
    Name { kind, address }
}

/// The option that asks for one kind of link.
fn asked(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Tcp => ("link", "socket"),
        Kind::Unix => ("socket", "unix:/run/emu.socket"),
        Kind::Pty => ("device", "/dev/emu7"),
        Kind::Ring => ("link", "memory"),
        Kind::Jtag => ("link", "jtag"),
    }
}

/// A job tied to a server.
struct Tied {
    server: Server,
    plugin: Rehearsal,
    bindings: Vec<Binding>,
    images: tempfile::TempDir,
    moves: u32,
}

impl Tied {
    fn new(kind: Kind, more: &[(&str, &str)]) -> Tied {
        let server = Server::start(2);
        let mut plugin = plugin(&server, &[&[asked(kind)], more].concat());
        let bindings = plugin.init().unwrap().bindings;
        plugin.running(After::Init).unwrap();
        Tied { server, plugin, bindings, images: tempfile::tempdir().unwrap(), moves: 0 }
    }

    fn link(&self) -> Name {
        link(&self.bindings[0])
    }

    fn folder(&self) -> PathBuf {
        self.images.path().join(self.moves.to_string())
    }

    /// presuspend and precheckpoint, while the testbench reads what has come. What a thread of the job would read while
    /// it still runs, `read` reads.
    fn save(&mut self, client: &mut Client) -> Result<serde_json::Map<String, serde_json::Value>, Fault> {
        self.moves += 1;
        client.read_ahead().unwrap();
        self.plugin.ask(Occasion::Presuspend)?;
        self.plugin.precheckpoint(&self.folder())
    }

    /// The whole way to another server.
    fn migrate(&mut self, client: &mut Client) {
        let requirements = freeze_and_save(self, client);
        let next = Server::start(1);
        let mut there = plugin(&next, &[("patience", "0")]);
        let saved = saved(&self.folder(), &requirements, &self.bindings);
        there.ask(Occasion::Check(saved.clone())).unwrap();
        let bindings = there.restart(&saved).unwrap().bindings;
        let names = |all: &[Binding]| all.iter().map(Binding::virtual_name).collect::<Vec<_>>();
        assert_eq!(names(&bindings), names(&self.bindings));
        self.bindings = bindings;
        client.replace(&self.link()).unwrap();
        there.running(After::Restart).unwrap();
        let here = std::mem::replace(&mut self.plugin, there);
        assert!(here.exit(Reason::Checkpointed).unwrap().success());
        assert!(self.server.control("x").list().unwrap().slots.iter().all(|slot| slot.owner.is_none()));
        self.server = next;
    }

    fn run(&mut self, mut at: impl FnMut(&mut Tied, &mut Client, u64)) -> Outcome {
        let folder = tempfile::tempdir().unwrap();
        let options = options(&self.link(), SEED, TRANSACTIONS, folder.path());
        testbench::run(&options, &mut std::io::sink(), &mut |client, done| {
            at(self, client, done);
            Ok(())
        })
        .unwrap()
    }
}

/// A job that runs reads its replies while the plugin waits for it; this one runs in a thread that is not there, so that
/// it reads until presuspend agrees.
fn freeze_and_save(tied: &mut Tied, client: &mut Client) -> serde_json::Map<String, serde_json::Value> {
    loop {
        match tied.save(client) {
            Ok(requirements) => return requirements,
            Err(fault) => {
                assert_eq!(fault.kind(), Some(Code::Veto), "{fault}");
                assert!(fault.message.contains("has not read all replies"), "{fault}");
                // Back to the job, as ckrun does it.
                tied.plugin.resume(After::Failure).unwrap();
                tied.plugin.running(After::Failure).unwrap();
            }
        }
    }
}

fn at_points(kind: Kind) {
    let expected = undisturbed(SEED, TRANSACTIONS);
    let mut tied = Tied::new(kind, &[("patience", "0")]);
    let mut random = std::process::id().wrapping_mul(0x9e37_79b1) ^ kind as u32;
    let points: Vec<u64> = (0..3)
        .map(|_| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            1 + u64::from(random >> 8) % TRANSACTIONS
        })
        .collect();
    let outcome = tied.run(|tied, client, done| {
        if points.contains(&done) {
            tied.migrate(client);
        }
    });
    assert_eq!(outcome, expected, "{kind}, moved at {points:?}");
}

#[test]
fn three_moves_over_tcp_change_nothing() {
    at_points(Kind::Tcp);
}

#[test]
fn three_moves_over_a_unix_socket_change_nothing() {
    at_points(Kind::Unix);
}

#[test]
fn three_moves_over_a_pty_change_nothing() {
    at_points(Kind::Pty);
}

#[test]
fn three_moves_over_shared_memory_change_nothing() {
    at_points(Kind::Ring);
}

#[test]
fn a_checkpoint_that_the_job_survives_changes_nothing() {
    let expected = undisturbed(SEED, TRANSACTIONS);
    for kind in Kind::ALL {
        let mut tied = Tied::new(kind, &[("patience", "0")]);
        let outcome = tied.run(|tied, client, done| {
            if done.is_multiple_of(300) {
                freeze_and_save(tied, client);
                for after in [After::Failure, After::Checkpoint] {
                    assert_eq!(tied.plugin.resume(after).unwrap(), []);
                    tied.plugin.running(after).unwrap();
                }
            }
        });
        assert_eq!(outcome, expected, "{kind}");
        assert!(tied.plugin.exit(Reason::Ended).unwrap().success());
    }
}

#[test]
fn a_reply_that_the_job_does_not_read_is_a_veto_on_sockets_and_saved_elsewhere() {
    for kind in Kind::ALL {
        let mut tied = Tied::new(kind, &[("patience", "0")]);
        let mut client = Client::open(&tied.link()).unwrap();
        client.transact(&Request::Step(1)).unwrap();
        client.issue(&Request::Step(5)).unwrap();
        // It has been served: the reply is on its way.
        while tied.server.control("x").cycle(0).unwrap() < 6 {}
        let asked = tied.plugin.ask(Occasion::Presuspend);
        if matches!(kind, Kind::Pty | Kind::Ring) {
            asked.unwrap();
            tied.migrate_by_hand(&mut client);
        } else {
            let fault = asked.unwrap_err();
            assert_eq!(fault.kind(), Some(Code::Veto), "{kind}: {fault}");
            assert!(fault.message.contains(&format!("replies on its {kind} link")), "{fault}");
            tied.plugin.resume(After::Failure).unwrap();
            tied.plugin.running(After::Failure).unwrap();
        }
        assert_eq!(client.reply().unwrap().cycle, 6, "{kind}");
        assert_eq!(client.transact(&Request::Cycle).unwrap().cycle, 6, "{kind}");
    }
}

impl Tied {
    /// From an answered presuspend on.
    fn migrate_by_hand(&mut self, client: &mut Client) {
        let folder = self.images.path().join("by-hand");
        let requirements = self.plugin.precheckpoint(&folder).unwrap();
        let next = Server::start(1);
        let mut there = plugin(&next, &[]);
        self.bindings = there.restart(&saved(&folder, &requirements, &self.bindings)).unwrap().bindings;
        client.replace(&self.link()).unwrap();
        there.running(After::Restart).unwrap();
        (self.server, self.plugin) = (next, there);
    }
}

#[test]
fn requests_sent_after_the_drain_and_the_interrupt_they_raise_go_along() {
    for kind in Kind::ALL {
        let mut tied = Tied::new(kind, &[]);
        let mut client = Client::open(&tied.link()).unwrap();
        client.transact(&Request::Step(200_000)).unwrap();
        for (register, value) in
            [(registers::PENDING, u32::MAX), (registers::PERIOD, 300), (registers::ENABLE, 2)]
        {
            client.transact(&Request::WriteRegister(register, value)).unwrap();
        }
        tied.plugin.ask(Occasion::Presuspend).unwrap();
        // The job still runs: one request that is answered by an interrupt, and one that asks whether it is still up.
        client.issue(&Request::WaitInterrupt(10_000)).unwrap();
        client.issue(&Request::ReadRegister(registers::PENDING)).unwrap();
        tied.migrate_by_hand(&mut client);
        let reply = client.reply().unwrap();
        assert!(reply.interrupt && reply.words == [2], "{kind}: {reply}");
        assert_eq!(client.reply().unwrap().words, [2], "{kind}: once, and still pending");
    }
}

#[test]
fn a_long_transaction_is_a_veto() {
    let mut tied = Tied::new(Kind::Unix, &[("patience", "0")]);
    let mut client = Client::open(&tied.link()).unwrap();
    client.transact(&Request::Step(1)).unwrap();
    client.issue(&Request::Step(u64::MAX / 2)).unwrap();
    while tied.server.control("x").cycle(0).unwrap() < 10 {}
    tied.plugin.deadline = Some(0.5);
    let fault = tied.plugin.ask(Occasion::Presuspend).unwrap_err();
    assert_eq!(fault.kind(), Some(Code::Veto), "{fault}");
    assert!(fault.message.starts_with("slot 0 is in a transaction that has not ended within"), "{fault}");
}

/// A job that has been saved, whose host is gone; servers to try.
fn saved_job(kind: Kind) -> (Tied, ckrun_plugin::Saved) {
    let mut tied = Tied::new(kind, &[]);
    let mut client = Client::open(&tied.link()).unwrap();
    client.transact(&Request::Step(7)).unwrap();
    let requirements = tied.save(&mut client).unwrap();
    let saved = saved(&tied.folder(), &requirements, &tied.bindings);
    (tied, saved)
}

/// The answers to check and restart, which must be the same sentence.
fn refused(plugin: &mut Rehearsal, saved: &ckrun_plugin::Saved, code: Code) -> String {
    let check = plugin.ask(Occasion::Check(saved.clone())).unwrap_err();
    let restart = plugin.restart(saved).unwrap_err();
    assert_eq!((check.kind(), restart.kind()), (Some(code), Some(code)), "{check}; {restart}");
    plugin.ask(Occasion::Exit(Exit { reason: Reason::Failed })).unwrap();
    check.message
}

#[test]
fn another_build_of_the_design_is_refused_by_its_digest() {
    let (_tied, saved) = saved_job(Kind::Pty);
    let larger = Server::with(1, &["--ram", "2048"]);
    let said = refused(&mut plugin(&larger, &[]), &saved, Code::Mismatch);
    for part in ["the job was saved with design ", "(1024 words of RAM", "(2048 words of RAM"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(larger.control("x").list().unwrap().slots[0].owner.is_none(), "nothing is held");
}

#[test]
fn a_slot_that_is_taken_is_refused_and_a_second_try_elsewhere_works() {
    let (_tied, saved) = saved_job(Kind::Unix);
    let server = Server::start(2);
    let claim = Claim { slot: Some(1), ..Claim::default() };
    server.control("somebody else").claim(&claim).unwrap();
    let said = refused(&mut plugin(&server, &[("slot", "1")]), &saved, Code::Unavailable);
    assert!(said.ends_with("is taken by somebody else"), "{said}");
    let said = refused(&mut plugin(&server, &[("slot", "5")]), &saved, Code::Unavailable);
    assert!(said.ends_with("has no slot 5"), "{said}");
    plugin(&server, &[]).restart(&saved).unwrap();
    let said = refused(&mut plugin(&server, &[]), &saved, Code::Unavailable);
    assert!(said.starts_with("no slot is free: slot 0 of ") && said.contains("is taken by tb1@a"), "{said}");
}

#[test]
fn two_restarts_at_once_get_one_slot() {
    let (_tied, saved) = saved_job(Kind::Ring);
    let server = Server::start(1);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let tries: Vec<_> =
            (0..2).map(|_| scope.spawn(|| plugin(&server, &[]).restart(&saved).map(drop))).collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let lost: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert_eq!(lost.len(), 1, "{lost:?}");
    assert_eq!(lost[0].kind(), Some(Code::Unavailable), "{lost:?}");
}

#[test]
fn a_truncated_altered_or_missing_state_is_refused() {
    let (_tied, saved) = saved_job(Kind::Tcp);
    let file = saved.folder.join("slot.state");
    let whole = fs::read(&file).unwrap();
    let server = Server::start(1);
    let mut altered = whole.clone();
    altered[whole.len() / 2] ^= 1;
    for (bytes, why) in [
        (Some(&whole[..whole.len() / 2]), "truncated: "),
        (Some(&whole[..3]), "truncated: "),
        (Some(&[][..]), "truncated: 0 bytes"),
        (Some(&altered[..]), "altered: the checksum does not match"),
        (Some(&b"something else"[..]), "not a state file"),
        (None, "the state that was saved is missing"),
    ] {
        match bytes {
            Some(bytes) => fs::write(&file, bytes).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let said = refused(&mut plugin(&server, &[]), &saved, Code::Mismatch);
        assert!(said.contains(why) && said.contains("slot.state"), "{why}: {said}");
        assert!(server.control("x").list().unwrap().slots[0].owner.is_none(), "{why}: nothing is held");
    }
    // A whole file of another moment.
    fs::write(&file, &whole).unwrap();
    let mut other = saved.clone();
    other.requirements["digest"] = "0".repeat(32).into();
    let fault = plugin(&server, &[]).restart(&other).unwrap_err();
    assert_eq!(fault.kind(), Some(Code::Mismatch), "{fault}");
    plugin(&server, &[]).restart(&saved).unwrap();
}

#[test]
fn a_server_that_dies_here_takes_the_state_along() {
    let mut tied = Tied::new(Kind::Pty, &[]);
    tied.server.kill();
    let fault = tied.plugin.ask(Occasion::Presuspend).unwrap_err();
    assert_eq!(fault.kind(), Some(Code::Lost), "{fault}");
    // It is started again, in the same place, and knows of nothing.
    let again = Server::again(&tied.server.folder, 2);
    for asked in [
        tied.plugin.ask(Occasion::Presuspend),
        tied.plugin.ask(Occasion::Resume(Going { after: After::Failure })),
        tied.plugin.ask(Occasion::Running(Going { after: After::Failure })),
    ] {
        let fault = asked.unwrap_err();
        assert_eq!(fault.kind(), Some(Code::Lost), "{fault}");
        assert!(fault.message.contains("started anew"), "{fault}");
    }
    assert!(tied.plugin.exit(Reason::Failed).unwrap().success(), "there is nothing to release");
    drop(again);
}

#[test]
fn a_server_that_dies_there_is_no_loss() {
    let (tied, saved) = saved_job(Kind::Pty);
    // It takes the claim and dies at the load.
    let dying = Dying::start();
    let mut first = Rehearsal::start(&[SOFTEMU, "plugin"]).unwrap();
    first.hello(&[("server", &dying.path.display().to_string())]).unwrap();
    let fault = first.restart(&saved).unwrap_err();
    assert_eq!(fault.kind(), Some(Code::Unavailable), "{fault}");
    assert!(fault.message.contains("the emulator has gone"), "{fault}");
    dying.join();
    let gone = first.ask(Occasion::Check(saved.clone())).unwrap_err();
    assert_eq!(gone.kind(), Some(Code::Unavailable), "{gone}");
    assert!(gone.message.contains("is the server running?"), "{gone}");
    first.exit(Reason::Failed).unwrap();
    let next = Server::start(1);
    let mut second = plugin(&next, &[]);
    second.restart(&saved).unwrap();
    second.running(After::Restart).unwrap();
    assert_eq!(next.control("x").cycle(0).unwrap(), 7);
    drop(tied);
}

/// A server in front of a real one: it passes on what is asked, and is gone at the first `load`.
struct Dying {
    path: PathBuf,
    thread: std::thread::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Dying {
    fn start() -> Dying {
        use std::io::{BufRead, BufReader, Write};
        use std::os::unix::net::{UnixListener, UnixStream};
        let real = Server::start(1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            loop {
                let (mut asker, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(asker.try_clone().unwrap());
                let mut server =
                    BufReader::new(UnixStream::connect(real.folder.path().join("control")).unwrap());
                let mut line = String::new();
                while lines.read_line(&mut line).unwrap() > 0 {
                    if line.contains("\"load\"") {
                        return;
                    }
                    server.get_mut().write_all(line.as_bytes()).unwrap();
                    line.clear();
                    server.read_line(&mut line).unwrap();
                    asker.write_all(line.as_bytes()).unwrap();
                    line.clear();
                }
            }
        });
        Dying { path, thread, _folder: folder }
    }

    fn join(self) {
        self.thread.join().unwrap();
    }
}

#[test]
fn what_a_killed_ckrun_leaves_is_taken_over() {
    for frozen in [false, true] {
        let mut tied = Tied::new(Kind::Unix, &[]);
        let mut client = Client::open(&tied.link()).unwrap();
        client.transact(&Request::Step(3)).unwrap();
        if frozen {
            // Between save and commit.
            tied.save(&mut client).unwrap();
        }
        let nobody = Rehearsal::start(&["/bin/true"]).unwrap();
        assert!(std::mem::replace(&mut tied.plugin, nobody).part().unwrap().success());
        let slot = &tied.server.control("x").list().unwrap().slots[0];
        assert_eq!((slot.owner.as_deref(), slot.frozen), (Some("tb1@a"), frozen), "it is left as it was");
        let mut next = plugin(&tied.server, &[]);
        let recover = Recover { bindings: tied.bindings.clone() };
        next.ask(Occasion::Recover(recover)).unwrap();
        assert_eq!(client.transact(&Request::Step(4)).unwrap().cycle, 7);
        tied.plugin = next;
        freeze_and_save(&mut tied, &mut client);
        tied.plugin.exit(Reason::Ended).unwrap();
        assert!(tied.server.control("x").list().unwrap().slots[0].owner.is_none());
    }
    let server = Server::start(1);
    let recover = Recover { bindings: vec![Binding::device("/dev/emu0", "/dev/pts/none")] };
    let fault = plugin(&server, &[]).ask(Occasion::Recover(recover)).unwrap_err();
    assert_eq!(fault.kind(), Some(Code::Lost), "{fault}");
}

#[test]
fn all_links_are_bound_to_their_names() {
    let server = Server::start(1);
    let mut plugin = plugin(&server, &[("link", "all"), ("socket", "tcp:board:99"), ("ram", "1024")]);
    let bindings = plugin.init().unwrap().bindings;
    let names: Vec<_> =
        bindings.iter().map(|b| format!("{} {}", b.kind().name(), b.virtual_name())).collect();
    assert_eq!(names, ["device /dev/emu0", "socket tcp:board:99", "memory /dev/shm/ring0"]);
    for binding in &bindings {
        Client::open(&link(binding)).unwrap();
    }
    plugin.exit(Reason::Ended).unwrap();
}

#[test]
fn wrong_options_are_named() {
    let server = Server::start(1);
    let folder = server.folder.path().display().to_string();
    for (options, why) in [
        (&[][..], "option server=: is needed"),
        (&[("server", "run/emu")], "option server=run/emu: must be an absolute path"),
        (&[("slto", "3")], "there is no option \"slto\"; there are server, slot, link"),
        (&[("slot", "first")], "option slot=first: must be any or a number"),
        (&[("link", "usb")], "option link=usb: must be device, socket, memory, jtag or all"),
        (&[("link", "device"), ("ring", "/dev/shm/r")], "leaves out ring"),
        (&[("socket", "emu:4000")], "option socket=emu:4000: must be tcp:HOST:PORT or unix:PATH"),
        (&[("device", "emu0")], "option device=emu0: must be an absolute path"),
        (&[("reconnect", "maybe")], "must be yes or no"),
        (&[("patience", "long")], "must be a number of seconds"),
    ] {
        let mut plugin = Rehearsal::start(&[SOFTEMU, "plugin"]).unwrap();
        let mut all = options.to_vec();
        if !why.starts_with("option server=") {
            all.push(("server", &folder));
        }
        let fault = plugin.hello(&all).unwrap_err();
        assert_eq!(fault.kind(), Some(Code::InvalidParams), "{fault}");
        assert!(fault.message.contains(why), "{fault}");
    }
    let fault = plugin(&server, &[("ram", "4096")]).init().unwrap_err();
    assert_eq!(fault.kind(), Some(Code::Mismatch), "{fault}");
    let mut nowhere = Rehearsal::start(&[Path::new(SOFTEMU)]).unwrap();
    nowhere.hello(&[("server", "/nowhere/control")]).unwrap();
    let fault = nowhere.init().unwrap_err();
    assert_eq!(fault.kind(), Some(Code::Unavailable), "{fault}");
}
