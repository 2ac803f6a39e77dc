//! What a checkpoint may refuse: either it is kept, or it is named before the job is stopped, and the job goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::guests::modes;
use ckrun_integration::job::{Job, path};
use serde_json::Value;

macro_rules! kept_or_refused {
    ($($mode:ident: $($word:literal)*;)*) => {
        $(
            #[test]
            fn $mode() {
                Job::up("others", &stringify!($mode).replace('_', "-")).survives_or_is_refused(&["(guest)", $($word),*]);
            }
        )*

        #[test]
        fn no_mode_is_forgotten() {
            let mut tested = vec![$(stringify!($mode).replace('_', "-"),)* "several".to_owned(), "landlock".to_owned()];
            let mut known = modes("others");
            tested.sort();
            known.sort();
            assert_eq!(tested, known);
        }
    };
}

kept_or_refused! {
    io_uring: "fd" "io_uring";
    userfaultfd: "fd" "userfaultfd";
    unix_pair: "fd" "socket";
    tcp_listener: "fd" "socket";
    inotify: "fd" "inotify";
    pidfd: "fd" "pidfd";
    message_queue: "fd" "queue";
}

/// Whether a task is confined can only be seen from inside it, so that a look at the running job does not tell.
#[test]
fn landlock() {
    Job::up("others", "landlock").is_refused(&["(guest)", "Landlock"]);
}

/// A list on stdout, one line for each thing in the way, of whichever process it is; and nothing happens.
#[test]
fn a_dry_run_names_everything_at_once() {
    let job = Job::up("others", "several");
    let image = job.image("image");
    let words = |more: &'static str| {
        ["checkpoint", "--image-path", path(&image), "--dry-run", more, "ID"].map(str::to_owned)
    };
    let run = |words: [String; 6]| {
        let words: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
        job.container.ckrun(&words)
    };
    let said = run(words("")).exits(1);
    assert_eq!(said.stderr, "");
    let lines: Vec<_> = said.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", said.stdout);
    assert!(lines[0].contains("process 1 ") && lines[0].contains("io_uring"), "{}", lines[0]);
    assert!(lines[1].contains("process 2 ") && lines[1].contains("userfaultfd"), "{}", lines[1]);
    let json: Value = serde_json::from_str(&run(words("--json")).exits(1).stdout).unwrap();
    let blockers = json["blockers"].as_array().unwrap();
    assert_eq!(blockers.len(), 2, "{json}");
    assert_eq!((&blockers[0]["pid"], &blockers[1]["pid"]), (&Value::from(1), &Value::from(2)));
    // And the same in one error.
    job.is_refused(&["io_uring", "userfaultfd"]);
}

#[test]
fn a_dry_run_that_finds_nothing_does_nothing() {
    let job = Job::up("processes", "tree");
    let image = job.image("image");
    let said = job.container.ckrun(&["checkpoint", "--dry-run", "--image-path", path(&image), "ID"]).ok();
    assert!(said.contains("nothing stands in the way"), "{said}");
    job.is_unharmed(&image);
}
