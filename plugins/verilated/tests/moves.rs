//! The Verilated design behind softemu's links: what a testbench sees of it is what it sees of softemu's own design, bit for
//! bit; and softemu's plugin takes it from server to server. `make test` builds it with the sizes below.

use ckrun_plugin::occasion::Occasion;
use ckrun_plugin::rehearsal::{Rehearsal, saved};
use ckrun_plugin::{After, Binding, Code, Real, Reason};
use ckrun_softemu::client::Client;
use ckrun_softemu::control::{Claim, Control, Fault, When};
use ckrun_softemu::design::{Design, Parameters};
use ckrun_softemu::hardware::Hardware;
use ckrun_softemu::link::{Kind, Name};
use ckrun_softemu::testbench::{self, Options, Outcome};
use ckrun_softemu::transaction::{Request, execute};
use ckrun_verilated::Model;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ckrun-verilated");
const SMALL: Parameters = Parameters { ram: 1024, fifo: 16, boot: 20_000 };
const TRANSACTIONS: u64 = 1000;

struct Server {
    folder: tempfile::TempDir,
    child: Child,
}

impl Server {
    fn start(boot: &str) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--ram", "1024", "--fifo", "16", "--boot", boot, "--directory"]);
        let mut child = command.arg(folder.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("serving at "), "{line}");
        Server { folder, child }
    }

    fn plugin(&self, link: &str) -> Rehearsal {
        let mut plugin = Rehearsal::start(&[PROGRAM]).unwrap();
        let folder = self.folder.path().display().to_string();
        plugin.hello(&[("server", folder.as_str()), ("link", link), ("patience", "0")]).unwrap();
        plugin
    }

    fn control(&self, owner: &str) -> Control {
        Control::connect(&self.folder.path().join("control"), owner).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ring = fs::read_link(self.folder.path().join("slot0.ring"));
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = ring.map(fs::remove_file);
    }
}

fn link(binding: &Binding) -> Name {
    let Some(Real::Name(real)) = binding.real() else { panic!("{binding:?}") };
    match binding {
        Binding::Device { .. } => format!("dev:{real}"),
        Binding::Memory { .. } => format!("shm:{real}"),
        _ => real.clone(),
    }
    .parse()
    .unwrap()
}

/// What a testbench says after this, over a link of softemu's own server in this process: none, the design itself.
fn reference() -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let options = ckrun_softemu::server::Options {
        directory: folder.path().join("server"),
        slots: 1,
        listen: "127.0.0.1".into(),
        memory: folder.path().into(),
        parameters: SMALL,
    };
    let control = options.directory.join("control");
    let (ready, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut server = ckrun_softemu::server::Server::<Design>::start(options).unwrap();
        ready.send(()).unwrap();
        server.run()
    });
    started.recv().unwrap();
    let claim = Claim { links: vec![Kind::Unix], ..Claim::default() };
    let link = Control::connect(&control, "me").unwrap().claim(&claim).unwrap().links[0].clone();
    run(&link, |_, _| ())
}

fn run(link: &Name, mut at: impl FnMut(&mut Client, u64)) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        link: link.clone(),
        seed: 5,
        transactions: TRANSACTIONS,
        log: folder.path().join("log"),
        outstanding: 16,
        progress: 0,
    };
    testbench::run(&options, &mut std::io::sink(), &mut |client, done| {
        at(client, done);
        Ok(())
    })
    .unwrap()
}

/// Freezes and saves; a job that has not read its replies reads them.
fn save(
    plugin: &mut Rehearsal,
    client: &mut Client,
    folder: &std::path::Path,
) -> serde_json::Map<String, serde_json::Value> {
    loop {
        client.read_ahead().unwrap();
        match plugin.ask(Occasion::Presuspend).and_then(|_| plugin.precheckpoint(folder)) {
            Ok(requirements) => return requirements,
            Err(fault) => assert_eq!(fault.kind(), Some(Code::Veto), "{fault}"),
        }
        plugin.resume(After::Failure).unwrap();
        plugin.running(After::Failure).unwrap();
    }
}

#[test]
fn every_transaction_has_the_same_reply_and_the_same_state() {
    let mut model = Model::power_on(Parameters { boot: 700, ..SMALL }).unwrap();
    let mut design = Design::new(Parameters { boot: 700, ..SMALL });
    let mut random = 1u32;
    for n in 0..3000 {
        let mut next = |limit: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) % limit
        };
        let words: Vec<u32> = (0..next(20)).map(|_| next(1 << 24) << 8 | next(256)).collect();
        let request = match next(10) {
            0 => Request::ReadRegister(next(40)),
            1 | 2 => Request::WriteRegister(next(40), next(1 << 24)),
            3 => Request::ReadRam(next(1030), next(20)),
            4 => Request::WriteRam(next(1030), words),
            5 | 6 => Request::Push(words),
            7 => Request::Pop(next(20)),
            8 => Request::Step(next(60).into()),
            _ => Request::WaitInterrupt(next(200).into()),
        };
        assert_eq!(execute(&mut model, &request), execute(&mut design, &request), "{n}: {request}");
        if n % 100 == 0 {
            assert_eq!(model.digest(), design.digest(), "{n}: {request}");
            model = Model::resume(model.parameters(), &model.state()).unwrap();
            let fault = ["stage", "shadow", "ram:9", "in:3", "out:15", "scratch:7", "random"][n / 100 % 7];
            for bit in [n as u32 % 5, n as u32 % 5] {
                model.flip(&fault.parse().unwrap(), bit).unwrap();
                design.flip(&fault.parse().unwrap(), bit).unwrap();
                assert_eq!(model.digest(), design.digest(), "{n}: {fault}");
            }
        }
    }
}

#[test]
fn three_moves_over_each_link_change_nothing() {
    let expected = reference();
    for (kind, point) in [("device", 120), ("socket", 333), ("memory", 290)] {
        let images = tempfile::tempdir().unwrap();
        let mut server = Server::start("20000");
        let mut plugin = server.plugin(kind);
        let mut bindings = plugin.init().unwrap().bindings;
        plugin.running(After::Init).unwrap();
        let mut moves = 0;
        let outcome = run(&link(&bindings[0]), |client, done| {
            if done % point != 0 || moves == 3 {
                return;
            }
            moves += 1;
            let folder = images.path().join(moves.to_string());
            let requirements = save(&mut plugin, client, &folder);
            let next = Server::start("20000");
            let mut there = next.plugin(kind);
            let saved = saved(&folder, &requirements, &bindings);
            there.ask(Occasion::Check(saved.clone())).unwrap();
            bindings = there.restart(&saved).unwrap().bindings;
            client.replace(&link(&bindings[0])).unwrap();
            there.running(After::Restart).unwrap();
            std::mem::replace(&mut plugin, there).exit(Reason::Checkpointed).unwrap();
            server = next;
        });
        assert_eq!(moves, 3);
        assert_eq!(outcome, expected, "{kind}");
    }
}

#[test]
fn another_model_and_a_damaged_state_are_refused_before_anything_is_restored() {
    let images = tempfile::tempdir().unwrap();
    let server = Server::start("20000");
    let mut plugin = server.plugin("device");
    let bindings = plugin.init().unwrap().bindings;
    let mut client = Client::open(&link(&bindings[0])).unwrap();
    client.transact(&Request::Step(7)).unwrap();
    let folder = images.path().join("image");
    let requirements = save(&mut plugin, &mut client, &folder);
    let saved = saved(&folder, &requirements, &bindings);
    let refused = |server: &Server| {
        let mut plugin = server.plugin("device");
        let check = plugin.ask(Occasion::Check(saved.clone())).unwrap_err();
        let restart = plugin.restart(&saved).unwrap_err();
        assert_eq!((check.kind(), restart.kind()), (Some(Code::Mismatch), Some(Code::Mismatch)));
        assert!(server.control("x").list().unwrap().slots.iter().all(|slot| slot.owner.is_none()));
        check.message
    };
    let other = Server::start("30000");
    let said = refused(&other);
    assert!(said.contains("the job was saved with design "), "{said}");
    let file = folder.join("slot.state");
    let whole = fs::read(&file).unwrap();
    let next = Server::start("20000");
    fs::write(&file, &whole[..whole.len() - 9]).unwrap();
    assert!(refused(&next).contains("truncated: "));
    let mut altered = whole.clone();
    altered[300] ^= 4;
    fs::write(&file, altered).unwrap();
    assert!(refused(&next).contains("altered: "));
    fs::write(&file, whole).unwrap();
    next.plugin("device").restart(&saved).unwrap();
    assert_eq!(next.control("x").cycle(0).unwrap(), 7);
    // What Verilator itself would end the process for.
    let state = Model::power_on(SMALL).unwrap().state();
    for at in [0, 20, state.len() - 1] {
        let mut lie = state.clone();
        lie[at] ^= 1;
        assert!(Model::resume(SMALL, &lie).is_err(), "byte {at}");
    }
    assert!(Model::resume(SMALL, &state[1..]).is_err());
}

#[test]
fn faults_strike_the_model_too() {
    let server = Server::start("1000");
    let mut control = server.control("me");
    let claim = Claim { links: vec![Kind::Unix], ..Claim::default() };
    let name = control.claim(&claim).unwrap().links[0].clone();
    let at = When::Transactions(2);
    control.fault(0, &Fault { element: "scratch:0".parse().unwrap(), bit: 3, at }).unwrap();
    let mut client = Client::open(&name).unwrap();
    client.transact(&Request::WriteRegister(16, 1)).unwrap();
    assert_eq!(client.transact(&Request::ReadRegister(16)).unwrap().words, [1]);
    assert_eq!(client.transact(&Request::ReadRegister(16)).unwrap().words, [9]);
}
