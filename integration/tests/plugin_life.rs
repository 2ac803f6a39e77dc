//! Plugins of a job: what they hear from its first start to its end on another host, and what travels with the job.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::emulator::Emulator;
use ckrun_integration::job::{Job, copy, path};
use ckrun_integration::told::Told;
use serde_json::{Value, json};
use std::fs;

/// A job with an emulator at /dev/emu0.
fn linked() -> (Job, Told) {
    let job = Job::new("link", "device");
    let told = Told::of(&job.container);
    (job, told)
}

fn gives(emulator: &Emulator) -> String {
    format!("a:device={}", emulator.device.display())
}

#[test]
fn two_plugins_hear_of_all_that_happens_to_a_job() {
    let (job, told) = linked();
    let first = Emulator::at_work();
    told.start(&job, &[&gives(&first), "b"]);
    told.hears(&["a hello", "b hello", "a init 0", "b init 0", "a running init", "b running init"]);
    let list = told.list(&job.container);
    assert_eq!(list["supervisor"], "running");
    let row = &list["plugins"][0];
    assert_eq!(
        (&row["name"], &row["version"], &row["state"], &row["owns"], &row["last"]),
        (&json!("a"), &json!("told 7"), &json!("attached"), &json!(["dev:/dev/emu0"]), &json!("running")),
        "{list:#}"
    );
    assert!(row["seconds"].as_f64().unwrap() > 0.0);
    let ids = job.container.ckrun(&["ids", "ID"]).ok();
    assert!(ids.lines().any(|line| line.starts_with("dev:/dev/emu0") && line.ends_with("plugin a")), "{ids}");

    job.leave_running(&job.image("first"));
    job.is_well();
    let checkpoint =
        ["a presuspend", "b presuspend", "a precheckpoint", "b precheckpoint", "a committed", "b committed"];
    let resumed =
        ["b resume checkpoint", "a resume checkpoint", "a running checkpoint", "b running checkpoint"];
    told.hears(&[&checkpoint[..], &resumed].concat());

    let mut last = first;
    for generation in 1..3 {
        let image = job.image(&format!("image-{generation}"));
        job.checkpoint(&image);
        let gone = ["a exit checkpointed", "b exit checkpointed"];
        let heard = told.heard();
        assert_eq!(heard[..6], checkpoint);
        for word in gone {
            assert!(heard.iter().any(|line| line == word), "{heard:?}");
        }
        assert!(last.end() > 0);
        // Another one, of which only the plugin knows.
        last = Emulator::at_work();
        told.restore(&job, &image, &[&gives(&last)]);
        let restarted = [format!("b restart {generation}"), format!("a restart {generation}")];
        let mut expected = vec!["a hello", "b hello", "b check", "a check"];
        expected.extend(restarted.iter().map(String::as_str));
        expected.extend(["a running restart", "b running restart"]);
        told.hears(&expected);
        let real = job.container.ckrun(&["ids", "ID", "--to-real", "dev:/dev/emu0"]).ok();
        assert_eq!(real.trim_end(), format!("dev:{}", last.device.display()));
    }
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
    let heard = told.heard();
    assert_eq!(heard[..2], ["a exit ended", "b exit ended"], "{heard:?}");
    assert!(last.end() > 0);
}

#[test]
fn plugins_hear_of_the_end_of_a_job_that_ends_by_itself() {
    let container = Container::sh("echo $TOLD");
    let told = Told::of(&container);
    let words = [&["run"][..], &told.words(&["a:env=seven", "b"]), &["ID"]].concat();
    let ended = container.ckrun(&words);
    container.no_trace();
    assert_eq!(ended.ok(), "seven");
    let heard = told.heard();
    assert_eq!(heard[..4], ["a hello", "b hello", "a init 0", "b init 0"]);
    for word in ["a exit ended", "b exit ended", "a end", "b end"] {
        assert!(heard.iter().any(|line| line == word), "{heard:?}");
    }
}

#[test]
fn a_job_is_created_and_started_with_the_plugins_of_an_annotation() {
    let container = Container::sh("exec sleep 1000");
    let told = Told::of(&container);
    container.change(|config| config["annotations"] = json!({"dev.ckrun.plugins": "b a:env=1"}));
    let create = [&["create"][..], &told.dir(), &["ID"]].concat();
    ckrun_integration::job::quietly(&container, &create).ok();
    told.hears(&["b hello", "a hello", "b init 0", "a init 0"]);
    container.ckrun(&["start", "ID"]).ok();
    told.hears(&["b running init", "a running init"]);
    container.ckrun(&["delete", "--force", "ID"]).ok();
    container.no_trace();
    assert_eq!(told.heard()[..2], ["b exit ended", "a exit ended"]);
}

#[test]
fn what_a_plugin_saves_travels_with_the_job() {
    let (job, told) = linked();
    let emulator = Emulator::at_work();
    told.start(&job, &[&format!("{},text=wave,design=d1", gives(&emulator))]);
    let image = job.image("image");
    job.checkpoint(&image);
    assert!(emulator.end() > 0);
    let elsewhere = job.image("elsewhere");
    copy(&image, &elsewhere);
    fs::remove_dir_all(&image).unwrap();

    let said = job.container.ckrun(&["inspect", path(&elsewhere)]).ok();
    assert!(said.contains("plugin    a") && said.contains("needs design \"d1\""), "{said}");
    let said: Value =
        serde_json::from_str(&job.container.ckrun(&["inspect", "--json", path(&elsewhere)]).ok()).unwrap();
    assert_eq!(said["plugins"][0]["requirements"]["design"], "d1");
    assert_eq!(said["plugins"][0]["area"]["text"], "wave");

    told.heard();
    let emulator = Emulator::at_work();
    let other = format!("{},design=d2", gives(&emulator));
    let restore = ["restore", "--detach", "--image-path", path(&elsewhere)];
    let words = |plugin, more: &[&'static str]| -> Vec<String> {
        let all = [&restore[..], more, &told.words(&[plugin]), &["ID"]].concat();
        all.into_iter().map(str::to_owned).collect()
    };
    let ckrun =
        |words: Vec<String>| job.container.ckrun(&words.iter().map(String::as_str).collect::<Vec<_>>());
    ckrun(words(&other, &[])).fails(1, &["plugin a: check: mismatch: the image needs design d1"]);
    job.container.no_trace();
    // Nothing was done in earnest.
    told.hears(&["a hello", "a check", "a end"]);
    let dry = ckrun(words(&other, &["--dry-run"])).exits(1);
    assert!(dry.stdout.contains("the image needs design d1"), "{dry:?}");
    ckrun(words(&gives(&emulator), &["--dry-run"])).ok();
    job.container.no_trace();
    let lost = job.container.ckrun(&[&restore[..], &["ID"]].concat());
    lost.fails(1, &["plugin a", "a.json", "--plugin"]);
    job.container.no_trace();

    told.restore(&job, &elsewhere, &[&gives(&emulator)]);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    assert!(emulator.end() > 0);
}

/// An image does not decide which programs root runs on a host.
#[test]
fn a_plugin_given_by_its_path_is_given_again() {
    let (job, told) = linked();
    let emulator = Emulator::at_work();
    let device = emulator.device.display();
    let given = format!("{}:device={device}", told.program());
    job.start_with(&["--plugin", &given]);
    let image = job.image("image");
    job.checkpoint(&image);
    assert!(emulator.end() > 0);
    let restore = ["restore", "--detach", "--image-path", path(&image), "ID"];
    job.container.ckrun(&restore).fails(1, &["plugin told.py", "--plugin /"]);
    job.container.no_trace();
    let emulator = Emulator::at_work();
    let given = format!("{}:device={}", told.program(), emulator.device.display());
    job.restore_with(&image, &["--plugin", &given]);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    assert!(emulator.end() > 0);
}

/// One image, many different restarts: a plugin that only the restart has changes the job before it goes on.
#[test]
fn a_plugin_of_the_restart_changes_the_job() {
    let job = Job::up("memory", "private");
    let told = Told::of(&job.container);
    let image = job.image("image");
    let stat = fs::read_to_string(format!("/proc/{}/stat", job.container.pid())).unwrap();
    // arg_start, proc_pid_stat(5): the words of its command line.
    let address: u64 = stat.rsplit(')').next().unwrap().split_whitespace().nth(45).unwrap().parse().unwrap();
    job.checkpoint(&image);
    let plugin = format!("b:how=poke,on=running,poke={address:#x}");
    let words = [&told.words(&[&plugin])[..], &["--plugin-grant", "b=memory,registers"]].concat();
    job.restore_with(&image, &words);
    let heard = told.heard();
    let found =
        heard.iter().find_map(|line| line.strip_prefix("b found ")).unwrap_or_else(|| panic!("{heard:?}"));
    let line = fs::read(format!("/proc/{}/cmdline", job.container.pid())).unwrap();
    let now = u64::from_le_bytes(line[..8].try_into().unwrap());
    assert_eq!(now, found.parse::<u64>().unwrap() + 1000);
    assert!(heard.iter().any(|line| line == "b registers True"), "{heard:?}");
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
}

#[test]
fn a_move_takes_the_plugins_along() {
    let (job, told) = linked();
    let first = Emulator::at_work();
    told.start(&job, &[&format!("{},text=wave", gives(&first)), "b"]);
    let there = job.elsewhere();
    let cgroups = format!("/{}-b", job.container.id());
    there.container.change(|config| config["linux"]["cgroupsPath"] = json!(cgroups));
    let far = Told::of(&there.container);
    let second = Emulator::at_work();
    let ckrun = format!(
        "{} --root {}",
        ckrun_integration::run::binary().display(),
        there.container.store().display()
    );
    let (bundle, plugin) = (there.container.bundle(), gives(&second));
    let mut words = vec!["migrate", "--to", "CKRUN_HOST=b", "--via", "env", "--ckrun", &ckrun, "ID", "--"];
    words.extend(["--bundle", path(&bundle), "--changed-files", "ignore"]);
    let (refused, moved) = ([&words[..], &["--plugin-dir", "/nowhere"]].concat(), far.words(&[&plugin]));
    told.heard();
    job.container.ckrun(&refused).fails(1, &["plugin b", "goes on here"]);
    job.is_well();
    let heard = told.heard();
    assert_eq!(
        heard[4..],
        [
            "a committed",
            "b committed",
            "b resume checkpoint",
            "a resume checkpoint",
            "a running checkpoint",
            "b running checkpoint",
        ]
    );
    job.container.ckrun(&[&words[..], &moved].concat()).ok();
    far.hears(&[
        "a hello",
        "b hello",
        "b check",
        "a check",
        "b restart 1",
        "a restart 1",
        "a running restart",
        "b running restart",
    ]);
    second.answers();
    let mut delete = std::process::Command::new(ckrun_integration::run::binary());
    delete.arg("--root").arg(there.container.store()).args(["delete", "--force"]).arg(job.container.id());
    ckrun_integration::run::finish(delete).ok();
    job.container.no_trace();
    assert!(first.end() > 0);
    assert!(second.end() > 0);
}

#[test]
fn a_plugin_asks_for_names_and_keeps_handles() {
    let (job, told) = linked();
    let emulator = Emulator::at_work();
    let device = emulator.device.display().to_string();
    // Asked when the job stands still, and its image is being written.
    let questions = json!([
        {"method": "translate", "kind": "device", "virtual": "/dev/emu0"},
        {"method": "translate", "kind": "device", "real": device},
        {"method": "translate", "kind": "device", "virtual": "/dev/other"},
        {"method": "translate", "kind": "pid", "virtual": 1},
        {"method": "bind", "kind": "handle", "space": "session", "virtual": 1, "real": 48211},
        {"method": "translate", "kind": "handle", "space": "session", "real": 48211},
        {"method": "unbind", "kind": "handle", "space": "session", "virtual": 2},
        {"method": "write", "pid": 1, "address": "0x1000", "data": ""},
        {"method": "signal", "pid": 1, "signal": 0},
        {"method": "signal", "pid": 4711, "signal": 0},
    ]);
    let ask = base64(&questions.to_string());
    let grant = ["--plugin-grant", "a=signals,memory"];
    let plugin = format!("{},how=ask,on=precheckpoint,ask={ask}", gives(&emulator));
    job.start_with(&[&told.words(&[&plugin])[..], &grant].concat());
    let init = job.container.pid();
    told.heard();
    let image = job.image("image");
    job.leave_running(&image);
    let heard = told.heard();
    let said: Vec<&str> = heard.iter().filter_map(|line| line.strip_prefix("a said ")).collect();
    let names = format!("{{\"real\": \"{device}\", \"virtual\": \"/dev/emu0\"}}");
    assert_eq!(said[..2], [&names, &names]);
    assert!(said[2].contains("nothing is bound"), "{said:?}");
    assert_eq!(said[3], format!("{{\"real\": {init}, \"virtual\": 1}}"));
    assert_eq!((said[4], said[5]), ("{}", "{\"real\": 48211, \"virtual\": 1}"));
    assert!(said[6].contains("there is no handle session 2"), "{said:?}");
    assert!(said[7].contains("not in its image"), "{said:?}");
    assert_eq!(said[8], "{}");
    assert!(said[9].contains("there is no process 4711"), "{said:?}");
    // A person sees the same, and the image has it.
    let real = job.container.ckrun(&["ids", "ID", "--to-real", "handle:session:1"]).ok();
    assert_eq!(real.trim_end(), "handle:session:48211");
    let said: Value =
        serde_json::from_str(&job.container.ckrun(&["inspect", "--json", path(&image)]).ok()).unwrap();
    assert_eq!(said["plugins"][0]["bindings"][1]["real"], 48211, "{:#}", said["plugins"]);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    assert!(emulator.end() > 0);
}

fn base64(text: &str) -> String {
    let mut command = std::process::Command::new("base64");
    command.arg("-w0").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}
