//! `ckrun ids`: the job's names and the host's, both ways, of running containers and of tables on disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::{Container, Live};
use ckrun_integration::images::{moved, write};
use serde_json::{Value, json};
use std::fs;

/// A shell that shares a file's description with its child, and has the same file open once more.
fn up() -> (Container, Live) {
    let script =
        "exec 5</etc/passwd 6</etc/passwd; sleep 1000000 & until grep -q sleep /proc/$!/comm; do :; done
        echo up $!; read end; kill $!";
    let container = Container::sh(script);
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up 2");
    (container, live)
}

fn table(container: &Container) -> Value {
    serde_json::from_str(&container.ckrun(&["ids", "ID", "--json"]).ok()).unwrap()
}

/// The line of one virtual id.
fn row(table: &Value, id: &str) -> Value {
    let mut found = table["bound"].as_array().unwrap().iter().filter(|row| row["virtual"] == id);
    let row = found.next().unwrap_or_else(|| panic!("{id} is not in {table:#}")).clone();
    assert_eq!(found.next(), None);
    row
}

/// What the kernel says in /proc/PID/status of the container's namespaces.
fn in_job(pid: &str, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().last().unwrap().to_owned()
}

fn state(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.trim_start().chars().next().unwrap()
}

#[test]
fn a_running_job_is_shown_both_ways() {
    let (container, live) = up();
    let host = live.pid.to_string();
    assert_eq!(container.ckrun(&["ids", "ID", "--to-real", "1"]).ok(), host);
    assert_eq!(container.ckrun(&["ids", "ID", "--to-real", "pid:1"]).ok(), format!("pid:{host}"));
    assert_eq!(container.ckrun(&["ids", "ID", "--to-virtual", &host]).ok(), "1");
    assert_eq!(container.ckrun(&["ids", "--to-virtual", &format!("tid:{host}"), "ID"]).ok(), "tid:1");
    assert_eq!(container.ckrun(&["ids", "ID", "--to-real", "fd:1:5"]).ok(), format!("fd:{host}:5"));
    assert_eq!(container.ckrun(&["ids", "ID", "--to-virtual", &format!("fd:{host}:5")]).ok(), "fd:1:5");

    let sleep = container.ckrun(&["ids", "ID", "--to-real", "2"]).ok();
    assert_eq!(fs::read_to_string(format!("/proc/{sleep}/comm")).unwrap(), "sleep\n");
    assert_eq!(in_job(&sleep, "NSpid"), "2");
    let session = in_job(&sleep, "NSsid");
    assert_eq!(
        container.ckrun(&["ids", "ID", "--to-real", &format!("sid:{session}")]).ok(),
        format!("sid:{host}")
    );

    let all = table(&container);
    assert_eq!(all["generations"].as_array().unwrap().len(), 1);
    assert_eq!(
        all["generations"][0]["host"],
        fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim()
    );
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let first = row(&all, "pid:1");
    assert_eq!((&first["boot"], &first["generation"]), (&json!(boot.trim()), &json!(0)));
    assert_eq!(first["real"], format!("pid:{host}"));
    // Whatever is bound leads there and back.
    for row in all["bound"].as_array().unwrap() {
        let (id, real) = (row["virtual"].as_str().unwrap(), row["real"].as_str().unwrap());
        assert_eq!(container.ckrun(&["ids", "ID", "--to-real", id]).ok(), real);
        assert_eq!(container.ckrun(&["ids", "ID", "--to-virtual", real]).ok(), id);
    }
    assert!("SDR".contains(state(live.pid)), "the job goes on");
}

#[test]
fn shared_descriptions_are_one() {
    let (container, _live) = up();
    let all = table(&container);
    let of = |id| row(&all, id)["description"].clone();
    assert_eq!(of("fd:1:5"), of("fd:2:5"), "inherited");
    assert_ne!(of("fd:1:5"), of("fd:1:6"), "the same file, opened twice");
    assert_eq!(row(&all, "fd:1:6")["what"], "/etc/passwd");
    let text = container.ckrun(&["ids", "ID"]).ok();
    let line = text.lines().find(|line| line.starts_with("fd:2:5 ")).unwrap();
    assert!(line.ends_with(", shared)") && line.contains("/etc/passwd"), "{line}");
    let line = text.lines().find(|line| line.starts_with("pid:2 ")).unwrap();
    assert!(line.ends_with("   sleep"), "{line}");
}

#[test]
fn a_process_that_joined_is_shown_and_a_namespace_of_the_host_too() {
    let container = Container::sh("echo up; read end").with(|c| {
        let namespaces = c["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    let host = live.pid.to_string();
    assert_eq!(container.ckrun(&["ids", "ID", "--to-real", &host]).ok(), host);
    let mut joined = container.start(&["exec", "ID", "sh", "-c", "echo $$; read end"]);
    let pid = joined.stdout.line();
    assert_eq!(container.ckrun(&["ids", "ID", "--to-virtual", &pid]).ok(), pid);
}

#[test]
fn what_is_not_there_is_told() {
    let (container, mut live) = up();
    let id = container.id().to_owned();
    container.ckrun(&["ids", "ID", "--to-real", "pid:77"]).fails(1, &[&id, "no binding of pid:77"]);
    container.ckrun(&["ids", "ID", "--to-virtual", "pid:1"]).fails(1, &["no binding of the host's pid:1"]);
    container.ckrun(&["ids", "ID", "--to-real", "fd:1:99"]).fails(1, &["no binding of fd:1:99"]);
    container
        .ckrun(&["ids", "ID", "--to-real", "x:1"])
        .fails(1, &["--to-real", "\"x:1\" names nothing", "dev:/dev/emu0"]);
    live.say("end");
    live.await_end();
    container.ckrun(&["ids", "ID"]).fails(1, &["container not running"]);
    container.ckrun(&["ids", "other"]).fails(1, &["does not exist"]);
    container.ckrun(&["ids", "--image", "/nowhere"]).fails(1, &["/nowhere: no such file or directory"]);
}

#[test]
fn an_image_tells_which_emulator_held_the_job_when() {
    let container = Container::new();
    let dir = container.file("image");
    write(&dir, &[("table.json", &moved(48211))]);
    let image = dir.to_str().unwrap();
    let ids = |words: &[&str]| container.ckrun(&[&["ids", "--image", image], words].concat());
    assert_eq!(ids(&["--to-real", "dev:/dev/emu0"]).ok(), "dev:/dev/pts/4");
    assert_eq!(ids(&["--to-virtual", "dev:/dev/pts/4"]).ok(), "dev:/dev/emu0");
    assert_eq!(ids(&["--to-real", "handle:veloce:3"]).ok(), "handle:veloce:77");
    assert_eq!(ids(&["--to-real", "fd:1:3"]).ok(), "fd:48211:3");
    let one: Value = serde_json::from_str(&ids(&["--json", "--to-real", "dev:/dev/emu0"]).ok()).unwrap();
    assert_eq!((&one["host"], &one["since"]), (&json!("emu-b"), &json!("2026-03-02T12:00:00.250Z")));
    let text = ids(&[]).ok();
    assert!(text.starts_with(
        "generation 0: host emu-a, boot boot of emu-a, since 2026-03-01T12:00:00.000Z until 2026-03-01T18"
    ));
    let words = |start: &str| {
        let line = text.lines().rfind(|line| line.starts_with(start)).unwrap();
        line.split("   ")
            .map(str::trim)
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (since, until) = ("2026-03-01T12:00:00.250Z", "2026-03-01T18:00:00.000Z");
    assert_eq!(words("dev:/dev/emu0 "), ["dev:/dev/emu0", "dev:/dev/pts/9", "0", "emu-a", since, until]);
    assert!(text.ends_with("and 5 older ones, which are no longer kept"), "{text}");

    let mut bad = moved(48211);
    bad["devices"]["unbound"] = json!([]);
    let dir = container.file("bad");
    write(&dir, &[("table.json", &bad)]);
    let refused = container.ckrun(&["ids", "--image", dir.to_str().unwrap()]);
    refused.fails(1, &["table.json: unknown field `unbound`", "the image is damaged"]);
}

#[test]
fn a_restored_job_keeps_its_history_and_is_looked_at_anew() {
    let (container, live) = up();
    // Its past, as a restart would have left it.
    let path = container.store().join(container.id()).join("table.json");
    fs::write(&path, moved(5).to_string()).unwrap();
    let all = table(&container);
    assert_eq!(row(&all, "pid:1")["real"], format!("pid:{}", live.pid));
    assert_eq!(row(&all, "pid:1")["generation"], 1);
    assert_eq!(row(&all, "dev:/dev/emu0")["host"], "emu-b");
    let held: Vec<_> =
        all["former"].as_array().unwrap().iter().map(|row| (&row["real"], &row["host"])).collect();
    assert_eq!(held, [(&json!("pid:9"), &json!("emu-a")), (&json!("dev:/dev/pts/9"), &json!("emu-a"))]);
    assert_eq!(all["forgotten"], 5);
    // The look itself writes nothing down.
    let kept: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(kept["tasks"]["bound"][0]["real"]["id"], 5);
}

#[test]
fn a_restart_gives_the_same_names_new_meanings() {
    let container = Container::sh("while :; do sleep 1000000; done & echo up; wait");
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    let dir = container.file("image");
    let image = dir.to_str().unwrap();
    container.ckrun(&["checkpoint", "--image-path", image, "ID"]).ok();
    live.await_end();
    container.ckrun(&["restore", "--detach", "--image-path", image, "ID"]).ok();
    let pid = container.pid();
    let all = table(&container);
    let numbers: Vec<_> =
        all["generations"].as_array().unwrap().iter().map(|g| g["number"].clone()).collect();
    assert_eq!(numbers, [0, 1]);
    assert_eq!(row(&all, "pid:1")["real"], format!("pid:{pid}"));
    assert_eq!(row(&all, "pid:1")["generation"], 1);
    let former = all["former"].as_array().unwrap();
    let before = former.iter().find(|row| row["virtual"] == "pid:1").unwrap();
    assert_eq!((&before["real"], &before["generation"]), (&json!(format!("pid:{}", live.pid)), &json!(0)));
    assert!(before["started"].as_u64() < row(&all, "pid:1")["started"].as_u64());
    // The table that the restart has kept is that of this host and this life.
    let path = container.store().join(container.id()).join("table.json");
    let kept: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let real = |of: &str, n: usize| kept[of]["bound"][n]["real"]["id"].clone();
    assert_eq!(real("tasks", 0), pid);
    let second = container.ckrun(&["ids", "ID", "--to-real", "2"]).ok();
    assert_eq!(real("tasks", 1).to_string(), second);
}
