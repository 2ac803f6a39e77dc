use super::*;

const HOP_FIELDS: &[Field] = &[field(5, "gateway", Kind::Ip)];
const LAYOUT: Layout = Layout {
    size: 8,
    fields: &[field(0, "family", Kind::U8), field(4, "link", Kind::Link)],
    attributes: &[
        field(1, "address", Kind::Ip),
        field(2, "label", Kind::Text),
        field(3, "hardware", Kind::Mac),
        field(4, "packets", Kind::Be64),
        field(5, "life", Kind::Struct(8, &[field(4, "left", Kind::U32)])),
        field(6, "inner", Kind::Nest(&[field(1, "port", Kind::Be16)])),
        field(7, "each", Kind::Each(1, &[field(1, "name", Kind::Text), field(2, "data", Kind::Bytes)])),
        field(8, "hops", Kind::Hops(HOP_FIELDS)),
        field(9, "statistics", Kind::Skip),
    ],
};

fn names() -> Names {
    let mut names = Names::default();
    names.insert(7, "eth0");
    names
}

fn record(json: serde_json::Value) -> Record {
    serde_json::from_value(json).unwrap()
}

#[test]
fn what_is_written_is_read_again_and_reads_well() {
    let all = record(serde_json::json!({
        "family": 10, "link": "eth0", "address": "2001:db8::1", "label": "eth0:1", "hardware": "02:00:00:0a:0b:0c",
        "packets": u64::MAX, "life": {"left": 77}, "inner": {"port": 443},
        "each": [{"name": "cmp", "data": "00ff"}, {"name": "counter"}],
        "hops": [{"link": "eth0", "weight": 2, "gateway": "192.0.2.1"}, {"link": "eth0"}],
    }));
    let bytes = LAYOUT.write(&all, &names()).unwrap();
    assert_eq!(LAYOUT.read(&bytes, &names()).unwrap(), all);
    // The link has another index elsewhere.
    let mut there = Names::default();
    there.insert(9, "eth0");
    assert_eq!(LAYOUT.read(&LAYOUT.write(&all, &there).unwrap(), &there).unwrap(), all);
    assert_ne!(LAYOUT.write(&all, &there).unwrap(), bytes);
}

#[test]
fn zeroes_of_the_header_and_what_nobody_needs_are_left_out() {
    let mut message = Attributes::behind(&[0; 8]);
    message.put(9, &[1, 2, 3]);
    assert_eq!(LAYOUT.read(message.bytes(), &names()).unwrap(), Record::new());
}

#[test]
fn what_is_not_understood_is_said() {
    let mut message = Attributes::behind(&[0; 8]);
    message.put(77, &[1]);
    assert!(LAYOUT.read(message.bytes(), &names()).unwrap_err().contains("attribute 77"));
    for (number, value) in
        [(1, &[1, 2, 3][..]), (2, b"\xff\0"), (4, &[0; 4]), (5, &[0; 4]), (8, &[4, 0, 0, 0])]
    {
        let mut message = Attributes::behind(&[0; 8]);
        message.put(number, value);
        LAYOUT.read(message.bytes(), &names()).unwrap_err();
    }
    LAYOUT.read(&[0; 7], &names()).unwrap_err();
    // A link that is not there.
    LAYOUT.read(&[0, 0, 0, 0, 8, 0, 0, 0], &names()).unwrap_err();
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_stumble(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        if let Ok(record) = LAYOUT.read(&bytes, &names()) {
            let written = LAYOUT.write(&record, &names()).unwrap();
            proptest::prop_assert_eq!(LAYOUT.read(&written, &names()), Ok(record));
        }
    }
}

#[test]
fn hostile_values_are_refused() {
    for json in [
        serde_json::json!({"family": 256}),
        serde_json::json!({"family": "10"}),
        serde_json::json!({"nothing": 1}),
        serde_json::json!({"link": "eth1"}),
        serde_json::json!({"address": "nowhere"}),
        serde_json::json!({"label": "a\0b"}),
        serde_json::json!({"hardware": "0"}),
        serde_json::json!({"hardware": "é"}),
        serde_json::json!({"inner": {"port": 65536}}),
        serde_json::json!({"inner": {"other": 1}}),
        serde_json::json!({"each": {"name": "x"}}),
        serde_json::json!({"each": [{"data": "0"}]}),
        serde_json::json!({"hops": [{"gateway": 1}]}),
        serde_json::json!({"statistics": 1}),
        serde_json::json!({"label": "x".repeat(70_000)}),
    ] {
        LAYOUT.write(&record(json.clone()), &names()).expect_err(&json.to_string());
    }
}
