//! A plugin on one end of the socket, the test in ckrun's place on the other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_plugin::binding::Name;
use ckrun_plugin::call::{Answer, Call, Space, Task, Translate};
use ckrun_plugin::message::{Id, Message};
use ckrun_plugin::number::{Bytes, Hex};
use ckrun_plugin::wire::{Incoming, Wire};
use ckrun_plugin::*;
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// Does at `running` what the test gives it to do.
struct Acting<F>(F);

impl<F: FnMut(&mut Ckrun) -> Result<(), Fault>> Plugin for Acting<F> {
    fn version(&self) -> String {
        "acting 1".into()
    }

    fn init(&mut self, ckrun: &mut Ckrun) -> Result<Attachment, Fault> {
        let real = ckrun.pass(std::fs::File::open("/dev/null")?.into());
        Ok(Attachment { bindings: vec![Binding::memory("/dev/shm/ring0", real)], ..Attachment::default() })
    }

    fn running(&mut self, ckrun: &mut Ckrun, _: After) -> Result<(), Fault> {
        (self.0)(ckrun)
    }
}

struct Host {
    wire: Wire,
    plugin: JoinHandle<()>,
    id: u64,
}

impl Host {
    fn new(act: impl FnMut(&mut Ckrun) -> Result<(), Fault> + Send + 'static) -> Host {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let plugin = std::thread::spawn(move || serve_on(Acting(act), theirs.into()).unwrap());
        Host { wire: Wire::new(ours.into()), plugin, id: 0 }
    }

    fn send(&mut self, message: &Message) {
        self.wire.queue(message, Vec::new()).unwrap();
        assert!(self.wire.flush(true).unwrap());
    }

    fn ask(&mut self, method: &str, more: Value) -> Id {
        self.id += 1;
        let mut params =
            json!({"deadline": 10, "job": {"id": "tb", "generation": 3, "host": "b", "bundle": "/b"}});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let id = Id::Number(self.id);
        self.send(&Message::Request { id: id.clone(), method: method.into(), params, fds: 0 });
        id
    }

    fn answer(&mut self, asked: &Id) -> (Result<Value, Fault>, usize) {
        match self.wire.receive().unwrap() {
            Incoming { message: Message::Answer { id, outcome, .. }, fds } if id == *asked => {
                (outcome, fds.len())
            }
            other => panic!("{other:?}"),
        }
    }

    /// The next call, answered.
    fn call(&mut self, outcome: Result<Answer, Fault>) -> Call {
        let Message::Request { id, method, params, .. } = self.wire.receive().unwrap().message else {
            panic!()
        };
        self.send(&Message::Answer { id, outcome: outcome.map(|answer| answer.value()), fds: 0 });
        Call::parse(&method, params).unwrap()
    }
}

#[test]
fn every_call_is_made_and_answered() {
    let mut host = Host::new(|ckrun| {
        assert_eq!((ckrun.job().unwrap().generation, ckrun.event()), (3, Some(Event::Running)));
        let name = Translate {
            kind: Space::Pid,
            virtual_name: Some(Name::Number(7)),
            real: None,
            space: None,
            pid: None,
            number: None,
        };
        assert_eq!(ckrun.translate(name)?, (Name::Number(7), Name::Number(48211)));
        ckrun.bind(Binding::handle("session", 1, 2))?;
        ckrun.unbind("session", 1)?;
        ckrun.put("cycle", Some(json!(4711)))?;
        assert_eq!(ckrun.get("cycle")?, Some(json!(4711)));
        assert_eq!(ckrun.get("none")?, None);
        assert_eq!(ckrun.tasks()?[0].tid, 8);
        assert_eq!(ckrun.read(7, 0x1000, 3)?, b"emu");
        ckrun.write(7, 0x1000, b"EMU".to_vec())?;
        assert_eq!(ckrun.registers(8, [("rip".to_owned(), Hex(1))].into())?["rip"], Hex(1));
        assert_eq!(ckrun.signal(7, 10).unwrap_err().kind(), Some(Code::Denied));
        ckrun.barrier("armed")?;
        ckrun.log(Level::Info, "done");
        Err(Fault::veto("enough"))
    });
    let asked = host.ask("running", json!({"after": "restart"}));
    let fault = |code| Err(Fault::new(code, "no"));
    let nothing = || Ok(Answer::Nothing {});
    let task = Task { pid: 7, tid: 8, command: "tb".into() };
    let answers = [
        Ok(Answer::Names { r#virtual: Name::Number(7), real: Name::Number(48211) }),
        nothing(),
        nothing(),
        nothing(),
        Ok(Answer::Value { value: json!(4711) }),
        fault(Code::Unknown),
        Ok(Answer::Tasks { tasks: vec![task] }),
        Ok(Answer::Data { data: Bytes(b"emu".into()) }),
        nothing(),
        Ok(Answer::Registers { registers: [("rip".to_owned(), Hex(1))].into() }),
        fault(Code::Denied),
        nothing(),
    ];
    let made: Vec<&str> = answers.into_iter().map(|answer| host.call(answer).name()).collect();
    let expected = [
        "translate",
        "bind",
        "unbind",
        "put",
        "get",
        "get",
        "tasks",
        "read",
        "write",
        "registers",
        "signal",
        "barrier",
    ];
    assert_eq!(made, expected);
    assert!(
        matches!(host.wire.receive().unwrap().message, Message::Notification { method, .. } if method == "log")
    );
    assert_eq!(host.answer(&asked).0.unwrap_err(), Fault::veto("enough"));
    drop(host.wire);
    host.plugin.join().unwrap();
}

#[test]
fn descriptors_go_with_an_answer() {
    let mut host = Host::new(|_| Ok(()));
    let hello =
        json!({"protocol": "1.9", "ckrun": "9", "plugin": {"name": "emu", "options": {}}, "granted": []});
    let asked = host.ask("hello", hello);
    assert_eq!(host.answer(&asked).0.unwrap(), json!({"protocol": "1.0", "version": "acting 1"}));
    let asked = host.ask("init", json!({}));
    let (result, fds) = host.answer(&asked);
    let binding = json!({"kind": "memory", "virtual": "/dev/shm/ring0", "fd": 0});
    assert_eq!((result.unwrap(), fds), (json!({"bindings": [binding]}), 1));
    let asked = host.ask("exit", json!({"reason": "ended"}));
    assert_eq!(host.answer(&asked).0.unwrap(), json!({}));
    // It has ended without an end of the file.
    host.plugin.join().unwrap();
}

#[test]
fn what_cannot_be_answered_is_refused() {
    let mut host = Host::new(|_| Ok(()));
    let hello =
        json!({"protocol": "2.0", "ckrun": "9", "plugin": {"name": "emu", "options": {}}, "granted": []});
    for (method, more, code) in [
        ("hello", hello, Code::Mismatch),
        ("hibernate", json!({}), Code::NoSuchMethod),
        ("running", json!({}), Code::InvalidParams),
    ] {
        let asked = host.ask(method, more);
        assert_eq!(host.answer(&asked).0.unwrap_err().kind(), Some(code), "{method}");
    }
}

#[test]
fn a_plugin_learns_that_nobody_waits_any_more() {
    let mut host = Host::new(|ckrun| {
        // The cancel comes before the answer to this call, and so does the next event.
        let before = ckrun.cancelled();
        ckrun.put("k", Some(json!(1)))?;
        assert_eq!((before, ckrun.cancelled()), (false, true));
        Ok(())
    });
    let first = host.ask("running", json!({"after": "init"}));
    let Message::Request { id, .. } = host.wire.receive().unwrap().message else { panic!() };
    let params = json!({"event": "running"});
    host.send(&Message::Notification { method: "cancel".into(), params });
    let second = host.ask("presuspend", json!({}));
    host.send(&Message::Answer { id, outcome: Ok(json!({})), fds: 0 });
    for asked in [first, second] {
        assert_eq!(host.answer(&asked).0.unwrap(), json!({}));
    }
}
