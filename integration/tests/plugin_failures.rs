//! Plugins that veto, hang, end, and break the protocol, at any event: the job is not harmed, and the error names the plugin,
//! the event and the seconds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::job::{Job, path};
use ckrun_integration::told::Told;

/// What a plugin can do wrong, and what is said of it then.
const WRONGS: [(&str, &str); 8] = [
    ("veto", "veto: a bad moment"),
    ("hang", "it did not answer within its deadline of 1 s"),
    ("crash", "it ended (killed by SIGABRT)"),
    ("lie", "it answered request 4711, which was never made"),
    ("flood", "it did not answer within its deadline of 1 s"),
    ("json", "it sent a line that is no JSON"),
    ("long", "it sent a line of more than 1048576 bytes"),
    ("fd", "it announced 2 descriptors by \"fds\" and sent 1"),
];

/// Only for one that will not answer there is a time that is over soon.
fn wrong(plugin: &str, how: &str, event: &str) -> String {
    let seconds = if ["hang", "flood"].contains(&how) { "1" } else { "60" };
    format!("{plugin}:how={how},on={event},seconds={seconds}")
}

/// A job with plugins, of which `b` does something wrong at an event.
fn job(how: &str, event: &str) -> (Job, Told) {
    let job = Job::new("registers", "general");
    let told = Told::of(&job.container);
    told.start(&job, &["a", &wrong("b", how, event)]);
    told.heard();
    (job, told)
}

fn end(job: &Job) {
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
}

/// A checkpoint in which `b` does something wrong before the image is complete.
fn spoils(how: &str, why: &str, event: &str) {
    let (job, told) = job(how, event);
    let image = job.image("image");
    let said = job.container.ckrun(&["checkpoint", "--image-path", path(&image), "ID"]);
    let said = said.exits(1);
    // Before it there may be what came of it.
    let last = said.stderr.lines().last().unwrap();
    assert!(last.starts_with(&format!("error: plugin b: {event}: {why}")), "{how} at {event}: {last}");
    assert!(last.contains(" (after ") && last.ends_with(" s)"), "{last}");
    job.is_unharmed(&image);
    let heard = told.heard();
    for word in ["a resume failure", "a running failure"] {
        assert!(heard.iter().any(|line| line == word), "{how} at {event}: {heard:?}");
    }
    // One that can still be spoken to hears it too, and first.
    if how == "veto" {
        let last = ["b resume failure", "a resume failure", "a running failure", "b running failure"];
        assert_eq!(heard[heard.len() - 4..], last);
    }
    end(&job);
}

#[test]
fn nothing_is_lost_at_presuspend() {
    WRONGS.into_iter().for_each(|(how, why)| spoils(how, why, "presuspend"));
}

#[test]
fn nothing_is_lost_at_precheckpoint() {
    WRONGS.into_iter().for_each(|(how, why)| spoils(how, why, "precheckpoint"));
}

/// What happens when the image is complete changes nothing, and is said.
fn is_only_told(event: &str) {
    let stays = ["resume", "running"].contains(&event);
    for (how, why) in WRONGS {
        let job = Job::new("registers", "general");
        let told = Told::of(&job.container);
        let when = if stays { ",when=checkpoint" } else { "" };
        told.start(&job, &["a", &format!("{}{when}", wrong("b", how, event))]);
        let image = job.image("image");
        let mut words = vec!["checkpoint", "--image-path", path(&image), "ID"];
        if stays {
            words.push("--leave-running");
        }
        let said = job.container.ckrun(&words).exits(0);
        assert!(said.stderr.contains(&format!("plugin b: {event}: {why}")), "{how} at {event}: {said:?}");
        assert!(image.join("manifest.json").exists());
        if stays {
            job.is_well();
            end(&job);
        }
        job.container.no_trace();
    }
}

#[test]
fn a_failure_at_committed_is_only_told() {
    is_only_told("committed");
}

#[test]
fn a_failure_at_resume_is_only_told() {
    is_only_told("resume");
}

#[test]
fn a_failure_at_running_after_a_checkpoint_is_only_told() {
    is_only_told("running");
}

#[test]
fn a_failure_at_exit_is_only_told() {
    is_only_told("exit");
}

/// A job whose plugin can't take part is not made, and nothing of it stays.
#[test]
fn no_job_is_made_without_its_plugins() {
    for event in ["hello", "init", "running"] {
        for (how, why) in WRONGS {
            if event == "hello" {
                // It does not know its options before.
                continue;
            }
            let container = Container::sh("exec sleep 1000");
            let told = Told::of(&container);
            let plugin = wrong("b", how, event);
            let words = [&["run", "--detach"][..], &told.words(&["a", &plugin]), &["ID"]].concat();
            let said = container.ckrun(&words);
            said.fails(1, &[&format!("plugin b: {event}: {why}")]);
            container.no_trace();
            let heard = told.heard();
            assert!(heard.iter().any(|line| line == "a exit failed"), "{how} at {event}: {heard:?}");
        }
    }
}

/// A restart that a plugin spoils leaves nothing, and can be tried again.
#[test]
fn no_job_is_restored_without_its_plugins() {
    let job = Job::new("registers", "general");
    let told = Told::of(&job.container);
    told.start(&job, &["a", "b"]);
    let image = job.image("image");
    job.checkpoint(&image);
    for event in ["check", "restart", "running"] {
        for (how, why) in WRONGS {
            told.heard();
            let plugin = wrong("b", how, event);
            let words = [
                &["restore", "--detach", "--image-path", path(&image)][..],
                &told.words(&[&plugin]),
                &["ID"],
            ];
            job.container.ckrun(&words.concat()).fails(1, &[&format!("plugin b: {event}: {why}")]);
            job.container.no_trace();
            let heard = told.heard();
            let failed = heard.iter().any(|line| line == "a exit failed");
            // In the reverse order `b` is the first, so that `a` has heard of nothing else.
            assert_eq!(failed, event == "running", "{how} at {event}: {heard:?}");
        }
    }
    told.restore(&job, &image, &[]);
    end(&job);
}

#[test]
fn a_plugin_that_was_killed_is_started_again_and_named_by_the_next_verb() {
    let (job, told) = job("none", "none");
    let list = told.list(&job.container);
    let pid = i32::try_from(list["plugins"][1]["pid"].as_i64().unwrap()).unwrap();
    let process = ckrun_integration::pipes::pidfd(pid);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    ckrun_integration::pipes::await_end(process);
    job.is_well();
    let image = job.image("image");
    assert_eq!(told.list(&job.container)["plugins"][1]["state"], "failed: it ended (killed by SIGKILL)",);
    let words = ["checkpoint", "--leave-running", "--image-path", path(&image), "ID"];
    let said = job.container.ckrun(&words).exits(0);
    let why = "plugin b had gone: it ended (killed by SIGKILL); it was started again";
    assert!(said.stderr.contains(why), "{said:?}");
    job.is_well();
    let list = told.list(&job.container);
    assert!(list["plugins"].as_array().unwrap().iter().all(|plugin| plugin["state"] == "attached"));
    end(&job);
}
