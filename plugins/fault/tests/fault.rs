//! The plugin with a job that is not there and an emulator that is.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_plugin::call::{Answer, Call};
use ckrun_plugin::number::{Bytes, Hex};
use ckrun_plugin::occasion::{Exit, Occasion};
use ckrun_plugin::rehearsal::{Rehearsal, saved};
use ckrun_plugin::{After, Code, Fault, Reason};
use ckrun_softemu::Control;
use ckrun_softemu::client::Client;
use ckrun_softemu::control::Claim;
use ckrun_softemu::design::{Design, Parameters, interrupt, registers};
use ckrun_softemu::link::Kind;
use ckrun_softemu::server::{self, Server};
use ckrun_softemu::transaction::Request;
use serde_json::Map;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

const FAULT: &str = env!("CARGO_BIN_EXE_ckrun-fault");

fn plugin(options: &[(&str, &str)]) -> Result<Rehearsal, Fault> {
    let mut plugin = Rehearsal::start(&[FAULT]).unwrap();
    plugin.hello(options).map(|_| plugin)
}

/// A restart without anything saved, and `running`.
fn strike(plugin: &mut Rehearsal) -> Result<(), Fault> {
    let nothing = saved(Path::new("/nowhere"), &Map::new(), &[]);
    plugin.ask(Occasion::Check(nothing.clone()))?;
    plugin.restart(&nothing)?;
    plugin.running(After::Restart)
}

#[test]
fn registers_and_memory_of_the_job_are_changed() {
    let memory = Rc::new(RefCell::new(vec![0u8; 16]));
    let rax = Rc::new(RefCell::new(0x1234u64));
    let faults =
        [("register", "rax@7:xor=0x30+rax@7:xor=0x1"), ("memory", "3:0x1002:xor=ff01+3:1008:set=aabb")];
    let mut plugin = plugin(&faults).unwrap();
    let (theirs, their_rax) = (memory.clone(), rax.clone());
    plugin.answers = Box::new(move |call| {
        let at = |address: &Hex| usize::try_from(address.0 - 0x1000).unwrap();
        match call {
            Call::Read(read) if read.pid == 3 => {
                let bytes = theirs.borrow()[at(&read.address)..][..read.length as usize].to_vec();
                Ok(Answer::Data { data: Bytes(bytes) })
            }
            Call::Write(write) if write.pid == 3 => {
                theirs.borrow_mut()[at(&write.address)..][..write.data.0.len()]
                    .copy_from_slice(&write.data.0);
                Ok(Answer::Nothing {})
            }
            Call::Registers(of) if of.tid == 7 => {
                if let Some(value) = of.set.get("rax") {
                    *their_rax.borrow_mut() = value.0;
                }
                Ok(Answer::Registers { registers: [("rax".into(), Hex(*their_rax.borrow()))].into() })
            }
            other => Err(Fault::new(Code::Unknown, format!("{}: there is no such task", other.name()))),
        }
    });
    strike(&mut plugin).unwrap();
    assert_eq!(memory.borrow()[..], [0, 0, 0xff, 1, 0, 0, 0, 0, 0xaa, 0xbb, 0, 0, 0, 0, 0, 0]);
    assert_eq!(plugin.logs[0], "rax of thread 7: 0x1234 is 0x1204 now");
    assert_eq!(plugin.logs[2], "process 3 at 0x1002: 0000 is ff01 now");
    plugin.ask(Occasion::Exit(Exit { reason: Reason::Ended })).unwrap();
}

#[test]
fn a_target_that_is_not_there_spares_the_others() {
    let mut plugin = plugin(&[("register", "rax@7:0"), ("memory", "4:0x1002:xor=ff")]).unwrap();
    plugin.answers = Box::new(|call| match call {
        Call::Registers(of) if of.set.is_empty() => {
            Ok(Answer::Registers { registers: [("rax".into(), Hex(1))].into() })
        }
        Call::Registers(_) | Call::Write(_) => panic!("nothing is to be struck"),
        other => Err(Fault::new(Code::Unknown, format!("{}: there is no such task", other.name()))),
    });
    let fault = strike(&mut plugin).unwrap_err();
    assert_eq!(fault.message, "read: there is no such task");
}

#[test]
fn faults_strike_at_their_event_only() {
    let mut plugin = plugin(&[("register", "rax@7:0"), ("at", "checkpoint")]).unwrap();
    plugin.answers = Box::new(|call| panic!("{call:?}"));
    strike(&mut plugin).unwrap();
    plugin.running(After::Failure).unwrap();
}

/// A server in a thread of the test, a job that has been saved in the middle of its work, and one restart after another.
struct Campaign {
    folder: tempfile::TempDir,
    state: PathBuf,
}

impl Campaign {
    fn new() -> Campaign {
        let folder = tempfile::tempdir().unwrap();
        let options = server::Options {
            directory: folder.path().join("server"),
            slots: 1,
            listen: "127.0.0.1".into(),
            memory: folder.path().into(),
            parameters: Parameters { ram: 1024, fifo: 16, boot: 1000 },
        };
        let (ready, started) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut server = Server::<Design>::start(options).unwrap();
            ready.send(()).unwrap();
            server.run()
        });
        started.recv().unwrap();
        let campaign = Campaign { state: folder.path().join("state"), folder };
        let mut control = campaign.control();
        // Over a link of its own, since each restart counts its requests from 0.
        let claim = Claim { links: vec![Kind::Tcp, Kind::Unix], ..Claim::default() };
        let link = control.claim(&claim).unwrap().links[0].clone();
        let mut client = Client::open(&link).unwrap();
        client.transact(&Request::Step(2000)).unwrap();
        client.transact(&Request::WriteRegister(registers::SCRATCH, 7)).unwrap();
        control.freeze(0).unwrap();
        control.save(0, &campaign.state).unwrap();
        control.release(0).unwrap();
        campaign
    }

    fn control(&self) -> Control {
        Control::connect(&self.folder.path().join("server/control"), "tb1@a").unwrap()
    }

    /// A restart with a fault: what comes out of the pipeline, whether a fault was detected, and the scratch register.
    fn restart(&self, fault: Option<(&str, &str)>, first: bool) -> Result<(Vec<u32>, bool, u32), Fault> {
        let mut control = self.control();
        let claim = Claim { links: vec![Kind::Tcp, Kind::Unix], frozen: true, ..Claim::default() };
        let link = control.claim(&claim).unwrap().links[1].clone();
        control.load(0, &self.state).unwrap();
        if !first {
            control.thaw(0).unwrap();
        }
        let struck = fault.map_or(Ok(()), |(element, after)| {
            let server = self.folder.path().join("server").display().to_string();
            let mut plugin = plugin(&[("emulator", element), ("after", after), ("server", &server)])?;
            strike(&mut plugin)
        });
        control.thaw(0).unwrap();
        let mut client = Client::open(&link).unwrap();
        client.transact(&Request::Push(vec![1, 2, 3])).unwrap();
        client.transact(&Request::Step(100)).unwrap();
        let words = client.transact(&Request::Pop(3)).unwrap().words;
        let pending = client.transact(&Request::ReadRegister(registers::PENDING)).unwrap().words[0];
        let scratch = client.transact(&Request::ReadRegister(registers::SCRATCH)).unwrap().words[0];
        control.release(0).unwrap();
        struck.map(|()| (words, pending & interrupt::FAULT != 0, scratch))
    }
}

#[test]
fn one_image_has_many_different_restarts() {
    let campaign = Campaign::new();
    let good = campaign.restart(None, true).unwrap();
    assert_eq!((good.0.len(), good.1, good.2), (3, false, 7));
    let (words, detected, _) = campaign.restart(Some(("accumulator:3", "0")), true).unwrap();
    assert!(words != good.0 && detected, "detected");
    let (words, detected, _) = campaign.restart(Some(("key:5", "1")), true).unwrap();
    assert!(words != good.0 && !detected, "silent");
    let (words, ..) = campaign.restart(Some(("stage:1", "0")), true).unwrap();
    assert!(words.is_empty(), "it hangs");
    assert_eq!(campaign.restart(Some(("word:9", "0")), true).unwrap(), good, "masked");
    // Before the last transaction, which reads it, or after it.
    assert_eq!(campaign.restart(Some(("scratch:0:3", "4")), true).unwrap().2, 7 ^ 8);
    assert_eq!(campaign.restart(Some(("scratch:0:3", "5")), true).unwrap(), good);
    assert_eq!(campaign.restart(None, true).unwrap(), good, "nothing is left of a fault");
    let late = campaign.restart(Some(("accumulator:3", "0")), false).unwrap_err();
    assert!(late.message.contains("name this plugin before the emulator's"), "{late}");
}

#[test]
fn wrong_options_are_named_before_there_is_a_job() {
    for (options, why) in [
        (&[][..], "there is no fault"),
        (&[("registers", "rax@1:0")], "there is no option \"registers\""),
        (&[("register", "rax:0")], "option register=rax:0: must be NAME@TID:VALUE"),
        (&[("register", "eax@1:0")], "there is no register \"eax\"; there are r15"),
        (&[("memory", "1:10:0")], "option memory=1:10:0: must be PID:ADDRESS:xor=BYTES"),
        (&[("register", "rax@1:0"), ("at", "init")], "at=init there is no process yet"),
        (
            &[("register", "rax@1:0"), ("at", "running")],
            "option at=running: must be restart, init or checkpoint",
        ),
        (&[("emulator", "shadow:3")], "needs the absolute path of the emulator's server"),
        (&[("emulator", "shade:3"), ("server", "/s")], "must be ram:N"),
        (
            &[("emulator", "ram:3:1"), ("server", "/s"), ("after", "soon")],
            "option after=soon: must be a number",
        ),
        (
            &[("emulator", "ram:3:1"), ("server", "/s"), ("after", "1"), ("cycle", "2")],
            "together with after=",
        ),
    ] {
        let fault = plugin(options).unwrap_err();
        assert_eq!(fault.kind(), Some(Code::InvalidParams), "{fault}");
        assert!(fault.message.contains(why), "{why}: {fault}");
    }
    let mut nowhere = plugin(&[("emulator", "ram:3:1"), ("server", "/nowhere")]).unwrap();
    assert_eq!(nowhere.init().unwrap_err().kind(), Some(Code::Unavailable));
    let campaign = Campaign::new();
    let server = campaign.folder.path().join("server").display().to_string();
    let mut outside = plugin(&[("emulator", "ram:1024:1"), ("server", &server)]).unwrap();
    let fault = strike(&mut outside).unwrap_err();
    assert!(fault.message.contains("there are 1024, from 0"), "{fault}");
    let fault = strike(&mut plugin(&[("emulator", "ram:1:1"), ("server", &server)]).unwrap()).unwrap_err();
    assert!(fault.message.contains("is this job's (tb1@a)"), "{fault}");
}
