//! protocol.schema.json, PROTOCOL.md and the types of this crate say the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_plugin::binding::*;
use ckrun_plugin::call::*;
use ckrun_plugin::event::*;
use ckrun_plugin::message::{Id, Message};
use ckrun_plugin::number::{Bytes, Hex};
use ckrun_plugin::occasion::*;
use ckrun_plugin::{Code, Fault};
use jsonschema::Validator;
use serde_json::{Value, json};

const TEXT: &str = include_str!("../../PROTOCOL.md");

fn schema() -> Value {
    serde_json::from_str(include_str!("../../protocol.schema.json")).unwrap()
}

/// The schema of single messages, or one of its parts.
fn validator(part: Option<&str>) -> Validator {
    let mut schema = schema();
    if let Some(part) = part {
        assert!(schema["$defs"][part].is_object(), "the schema has no {part}");
        let top = schema.as_object_mut().unwrap();
        top.retain(|name, _| name == "$schema" || name == "$defs");
        top.insert("$ref".into(), json!(format!("#/$defs/{part}")));
    }
    jsonschema::draft202012::new(&schema).unwrap()
}

fn accept(validator: &Validator, value: &Value) {
    if let Err(e) = validator.validate(value) {
        panic!("{e} at {}: {value}", e.instance_path());
    }
}

fn message(text: &str) -> Value {
    let value: Value = serde_json::from_str(text).unwrap();
    accept(&validator(None), &value);
    value
}

/// The blocks of the text that follow a heading, by their language.
fn blocks(heading: &str, language: &str) -> Vec<&'static str> {
    let section = TEXT.split("\n## ").flat_map(|part| part.split("\n### "));
    let section = section.filter(|part| part.lines().next() == Some(heading)).collect::<Vec<_>>();
    assert_eq!(section.len(), 1, "{heading}");
    let fences: Vec<&str> = section[0].split("\n```").collect();
    // Every second part is inside of a fence.
    fences
        .iter()
        .skip(1)
        .step_by(2)
        .filter_map(|block| block.strip_prefix(&format!("{language}\n")))
        .collect()
}

#[test]
fn the_schema_is_one() {
    jsonschema::meta::validate(&schema()).unwrap();
}

#[test]
fn the_whole_exchange_of_the_text_is_valid() {
    let lines: Vec<&str> = blocks("A whole exchange", "").into_iter().flat_map(str::lines).collect();
    let lines: Vec<&str> = lines.into_iter().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 30);
    let mut asked = String::new();
    for line in lines {
        let (by, text) = line.split_at(2);
        let value = message(text);
        let parsed = Message::parse(text.as_bytes()).unwrap();
        // What the types write of what they have read says the same, in their order.
        assert_eq!(serde_json::from_slice::<Value>(&parsed.line()).unwrap(), value);
        match (by, parsed) {
            ("> ", Message::Request { method, params, .. }) => {
                let event = Event::named(&method).unwrap();
                assert_eq!(numbers(Params::parse(event, params.clone()).unwrap().value()), numbers(params));
                asked = method;
            }
            ("< ", Message::Request { method, params, .. }) => {
                assert_eq!(Call::parse(&method, params.clone()).unwrap().request(), (method, params));
            }
            ("< ", Message::Answer { outcome: Ok(result), .. }) => {
                accept(&validator(Some(&format!("result.{asked}"))), &result);
            }
            (_, Message::Answer { .. }) => {}
            (by, other) => panic!("{by} {other:?}"),
        }
    }
}

/// 10 and 10.0 are the same deadline.
fn numbers(mut params: Value) -> Value {
    params["deadline"] = json!(params["deadline"].as_f64().unwrap());
    params
}

#[test]
fn the_examples_of_the_text_are_valid_and_read_as_types() {
    fn check<T: serde::de::DeserializeOwned + serde::Serialize>(part: &str, text: &str) {
        let value: Value = serde_json::from_str(text).unwrap();
        accept(&validator(Some(part)), &value);
        let read: T = serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{part}: {e}"));
        let mut written = serde_json::to_value(read).unwrap();
        if part == "result.hello" {
            written["deadlines"]["precheckpoint"] = json!(600);
        }
        assert_eq!(written, value);
    }
    let mut count = 0;
    let mut each = |heading: &str, index: usize| {
        count += 1;
        blocks(heading, "json")[index]
    };
    check::<Job>("job", each("Events", 0));
    check::<Hello>("hello", each("hello", 0));
    check::<Welcome>("result.hello", each("hello", 1));
    check::<Attachment>("result.init", each("init", 0));
    check::<Ioctl>("ioctl", each("init", 1));
    check::<Requirements>("result.precheckpoint", each("precheckpoint", 0));
    accept(&validator(Some("manifest")), &serde_json::from_str(each("Manifest", 0)).unwrap());
    assert_eq!(count, TEXT.matches("\n```json\n").count(), "an example of the text is not tested");
}

fn job() -> Job {
    Job { id: "tb1".into(), generation: 2, host: "b".into(), bundle: "/srv/tb1".into() }
}

fn bindings() -> Vec<Binding> {
    vec![
        Binding::device("/dev/emu0", "/dev/pts/9"),
        Binding::memory("/dev/shm/ring0", Real::Fd(0)),
        Binding::socket(Address::Tcp("emu".into(), 4000), Address::Abstract("emu".into())),
        Binding::socket(Address::Unix("/run/emu".into()), Real::Fd(15)),
        Binding::handle("session", 1, (1 << 53) - 1),
    ]
}

#[test]
fn every_event_that_the_types_write_is_valid() {
    let saved = Saved {
        folder: "/i/plugins/emu".into(),
        requirements: [("gates".to_owned(), json!(7))].into_iter().collect(),
        bindings: bindings(),
    };
    let named = Named { name: "emu".into(), options: [("slot".to_owned(), "3".to_owned())].into() };
    let hello =
        Hello { protocol: PROTOCOL.into(), ckrun: "0.1.0".into(), plugin: named, granted: Grant::ALL.into() };
    let mut occasions = vec![
        Occasion::Hello(hello),
        Occasion::Init,
        Occasion::Presuspend,
        Occasion::Precheckpoint(Precheckpoint { folder: "/i".into() }),
        Occasion::Committed(Committed { image: "/i".into() }),
        Occasion::Check(saved.clone()),
        Occasion::Restart(saved),
        Occasion::Recover(Recover { bindings: bindings() }),
    ];
    for after in [After::Checkpoint, After::Failure] {
        occasions.push(Occasion::Resume(Going { after }));
    }
    for after in [After::Init, After::Checkpoint, After::Failure, After::Restart] {
        occasions.push(Occasion::Running(Going { after }));
    }
    for reason in [Reason::Ended, Reason::Checkpointed, Reason::Failed] {
        occasions.push(Occasion::Exit(Exit { reason }));
    }
    for event in Event::ALL {
        assert!(occasions.iter().any(|occasion| occasion.event() == event), "{event} is not tested");
    }
    for occasion in occasions {
        let event = occasion.event();
        let params = Params { deadline: 0.5, job: job(), occasion };
        assert_eq!(Params::parse(event, params.value()).unwrap(), params);
        let request = Message::Request {
            id: Id::Number(1),
            method: event.name().into(),
            params: params.value(),
            fds: 1,
        };
        message(std::str::from_utf8(&request.line()).unwrap());
    }
}

#[test]
fn every_call_that_the_types_write_is_valid() {
    let translate =
        |kind| Translate { kind, virtual_name: None, real: None, space: None, pid: None, number: None };
    let text = |text: &str| Some(Name::Text(text.into()));
    let set: Registers = [("rip".to_owned(), Hex(0x40_1000))].into();
    let calls = [
        Call::Translate(Translate { virtual_name: text("/dev/emu0"), ..translate(Space::Device) }),
        Call::Translate(Translate { real: text("/dev/shm/x"), ..translate(Space::Memory) }),
        Call::Translate(Translate { virtual_name: text("tcp:emu:4000"), ..translate(Space::Socket) }),
        Call::Translate(Translate {
            real: Some(Name::Number(48211)),
            space: Some("session".into()),
            ..translate(Space::Handle)
        }),
        Call::Translate(Translate { virtual_name: Some(Name::Number(7)), ..translate(Space::Pid) }),
        Call::Translate(Translate { real: Some(Name::Number(7)), ..translate(Space::Tid) }),
        Call::Translate(Translate { pid: Some(7), number: Some(5), ..translate(Space::Fd) }),
        Call::Bind(Binding::handle("session", 1, 2)),
        Call::Unbind(Unbind { kind: Kind::Handle, space: "session".into(), virtual_number: 1 }),
        Call::Put(Put { key: "cycle".into(), value: Some(json!(4711)) }),
        Call::Put(Put { key: "cycle".into(), value: Some(Value::Null) }),
        Call::Put(Put { key: "cycle".into(), value: None }),
        Call::Get(Get { key: "cycle".into() }),
        Call::Tasks {},
        Call::Read(Read { pid: 1, address: Hex(u64::MAX), length: MEMORY }),
        Call::Write(Write { pid: 1, address: Hex(0), data: Bytes(b"emul".into()) }),
        Call::Registers(RegistersOf { tid: 1, set: set.clone() }),
        Call::Registers(RegistersOf { tid: 1, set: Registers::new() }),
        Call::Signal(Signal { pid: 1, signal: 64 }),
        Call::Barrier(Barrier { name: "saved".into() }),
    ];
    for name in Call::NAMES {
        assert!(calls.iter().any(|call| call.name() == name), "{name} is not tested");
    }
    for call in calls {
        let (method, params) = call.request();
        assert_eq!(method, call.name());
        assert_eq!(Call::parse(&method, params.clone()).unwrap(), call);
        let request = Message::Request { id: Id::Text("a".into()), method, params, fds: 0 };
        message(std::str::from_utf8(&request.line()).unwrap());
    }
    let task = Task { pid: 7, tid: 8, command: "tb".into() };
    for (name, answer) in [
        ("translate", Answer::Names { r#virtual: Name::Number(1), real: Name::Text("/dev/pts/9".into()) }),
        ("get", Answer::Value { value: json!({"any": null}) }),
        ("tasks", Answer::Tasks { tasks: vec![task] }),
        ("read", Answer::Data { data: Bytes(vec![0; 5]) }),
        ("registers", Answer::Registers { registers: set }),
        ("put", Answer::Nothing {}),
    ] {
        accept(&validator(Some(&format!("result.{name}"))), &answer.value());
        assert_eq!(serde_json::from_value::<Answer>(answer.value()).unwrap(), answer);
    }
}

#[test]
fn every_answer_that_the_types_write_is_valid() {
    let handle = |place, direction| Handle { space: "session".into(), place, direction };
    let handles = vec![
        handle(Place::Within { offset: 0, size: 8 }, Direction::Both),
        handle(Place::Argument { size: 4 }, Direction::In),
        handle(Place::Result, Direction::Out),
    ];
    let mount = Mount { source: "/opt".into(), destination: "/opt".into(), options: vec!["ro".into()] };
    let attachment = Attachment {
        bindings: bindings(),
        env: [("EMU".to_owned(), "1".to_owned())].into(),
        mounts: vec![mount],
        ioctls: vec![Ioctl { device: "/dev/emu0".into(), command: Hex(0xc008_4501), handles }],
    };
    let welcome = Welcome {
        protocol: PROTOCOL.into(),
        version: "echo 1".into(),
        deadlines: [(Event::Init, 0.5)].into(),
        events: Some(vec![Event::Init]),
    };
    let requirements =
        Requirements { requirements: [("design".to_owned(), json!("x"))].into_iter().collect() };
    for (event, result) in [
        ("hello", json!(welcome)),
        ("init", json!(attachment)),
        ("init", json!(Attachment::default())),
        ("restart", json!(attachment)),
        ("resume", json!(Rebinding { bindings: bindings() })),
        ("recover", json!(Rebinding::default())),
        ("precheckpoint", json!(requirements)),
        ("presuspend", json!({})),
    ] {
        accept(&validator(Some(&format!("result.{event}"))), &result);
        let answer = Message::Answer { id: Id::Number(1), outcome: Ok(result), fds: 16 };
        message(std::str::from_utf8(&answer.line()).unwrap());
    }
    for code in Code::ALL {
        let mut fault = Fault::new(code, "why");
        fault.data = Some(json!([1]));
        let answer = Message::Answer { id: Id::Number(1), outcome: Err(fault), fds: 0 };
        message(std::str::from_utf8(&answer.line()).unwrap());
    }
    for (method, params) in [
        ("log", json!(Log { level: Level::Warn, message: "slow".into() })),
        ("cancel", json!(Cancel { event: Event::Presuspend })),
    ] {
        let notification = Message::Notification { method: method.into(), params };
        message(std::str::from_utf8(&notification.line()).unwrap());
    }
}

#[test]
fn the_schema_refuses_what_the_types_refuse() {
    let bindings = [
        json!({"kind": "device", "virtual": "dev/emu0", "real": "/dev/pts/9"}),
        json!({"kind": "device", "virtual": "/dev/emu0"}),
        json!({"kind": "device", "virtual": "/dev/emu0", "real": "/dev/pts/9", "fd": 0}),
        json!({"kind": "memory", "virtual": 7, "fd": 0}),
        json!({"kind": "socket", "virtual": "emu:4000", "real": "tcp:a:1"}),
        json!({"kind": "socket", "virtual": "unix:@", "real": "tcp:a:1"}),
        json!({"kind": "handle", "virtual": 1, "real": 2}),
        json!({"kind": "handle", "space": "s", "virtual": 1, "real": 9_007_199_254_740_992_u64}),
        json!({"kind": "handle", "space": "s", "virtual": "1", "real": 2}),
        json!({"kind": "gpu", "virtual": "/dev/emu0", "real": "/dev/pts/9"}),
    ];
    let validator = validator(Some("binding"));
    for binding in bindings {
        assert!(!validator.is_valid(&binding), "{binding}");
        assert!(serde_json::from_value::<Binding>(binding.clone()).is_err(), "{binding}");
    }
}

#[test]
fn what_later_versions_add_is_ignored() {
    let welcome =
        json!({"protocol": "1.7", "events": ["init", "hibernate"], "deadlines": {"hibernate": 5}, "x": 1});
    let welcome: Welcome = serde_json::from_value(welcome).unwrap();
    assert_eq!((welcome.events, welcome.deadlines.len()), (Some(vec![Event::Init]), 0));
}
