//! Images that no job was needed for.

use ckrun_virt::image::{Manifest, Owner, PAGE, PageRun, Writer};
use serde_json::{Value, json};
use std::path::Path;

/// Writes an image of these JSON files, and of three pages: two of process 1, one of a shared object.
pub fn write(dir: &Path, files: &[(&str, &Value)]) {
    let mut image = Writer::create(dir).expect("begin an image");
    for (name, value) in files {
        image.json(name, value).expect("write a file of an image");
    }
    image.bytes("files/1", b"content").expect("write a file of an image");
    let mut pages = image.pages(0).expect("begin the pages");
    let bytes = vec![7; 3 * PAGE as usize];
    let offset = pages.write(&bytes).expect("write pages");
    let run = |vaddr, first: usize, count: u32| PageRun {
        vaddr,
        pages: count,
        file: pages.number(),
        flags: 0,
        offset: offset + first as u64 * PAGE,
        digest: PageRun::digest_of(&bytes[..count as usize * PAGE as usize]),
    };
    let sections = [(Owner::Process(1), vec![run(0x10000, 0, 2)]), (Owner::Shared(4), vec![run(0, 2, 1)])];
    image.index(&sections).expect("write the index");
    image.commit(Manifest::new(1).expect("a manifest")).expect("commit the image");
}

/// The table of a job that was moved once, with its emulator, and whose first process is the host's `host` now.
pub fn moved(host: i32) -> Value {
    let generation = |number: u32, host: &str| json!({"number": number, "host": host, "boot": format!("boot of {host}"), "since": format!("2026-03-0{}T12:00:00Z", number + 1)});
    let (mut first, second) = (generation(0, "emu-a"), generation(1, "emu-b"));
    first["until"] = "2026-03-01T18:00:00Z".into();
    let binding = |id: Value, real: Value, generation: u32| json!({"virtual": id, "real": real, "generation": generation, "since": format!("2026-03-0{}T12:00:00.250Z", generation + 1)});
    let task = |id: i32| json!({"id": id, "started": 11});
    let former = |mut binding: Value| {
        binding["until"] = "2026-03-01T18:00:00Z".into();
        binding
    };
    let none = json!({"bound": [], "former": [], "forgotten": 0});
    json!({
        "format": 1,
        "observed": "2026-03-02T18:00:00Z",
        "generations": [first, second],
        "forgotten-generations": 0,
        "tasks": {
            "bound": [binding(json!(1), task(host), 1)],
            "former": [former(binding(json!(1), task(9), 0))],
            "forgotten": 0,
        },
        "sessions": none,
        "groups": none,
        "processes": {"1": [1]},
        "descriptors": {"1": {"3": 7}},
        "descriptions": {"7": "/dev/pts/4"},
        "sockets": none,
        "devices": {
            "bound": [binding(json!("/dev/emu0"), json!("/dev/pts/4"), 1)],
            "former": [former(binding(json!("/dev/emu0"), json!("/dev/pts/9"), 0))],
            "forgotten": 5,
        },
        "handles": {"veloce": {"bound": [binding(json!(3), json!(77), 1)], "former": [], "forgotten": 0}},
    })
}
