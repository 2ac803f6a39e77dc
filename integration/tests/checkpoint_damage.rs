//! Images that are not what they were: every file of an image, damaged in every way. A restore refuses them by name,
//! and leaves nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::{Job, copy, path};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The files of an image, relative to it; logs are none.
fn files(image: &Path) -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), found);
            } else {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    walk(image, &mut found);
    let inner = found.into_iter().map(|file| file.strip_prefix(image).unwrap().to_owned());
    let mut inner: Vec<_> = inner.filter(|file| file.extension().is_none_or(|e| e != "log")).collect();
    inner.sort();
    inner
}

fn flip(file: &Path, at: f64) {
    let mut bytes = fs::read(file).unwrap();
    if !bytes.is_empty() {
        let at = ((bytes.len() - 1) as f64 * at) as usize;
        bytes[at] ^= 1 << (at % 8);
    }
    fs::write(file, bytes).unwrap();
}

fn resize(file: &Path, size: impl Fn(u64) -> u64) {
    let open = OpenOptions::new().write(true).open(file).unwrap();
    open.set_len(size(open.metadata().unwrap().len())).unwrap();
}

type Damage = (&'static str, fn(&Path));

const DAMAGES: &[Damage] = &[
    ("cut to nothing", |file| resize(file, |_| 0)),
    ("cut in half", |file| resize(file, |size| size / 2)),
    ("cut by a byte", |file| resize(file, |size| size.saturating_sub(1))),
    ("longer by a byte", |file| resize(file, |size| size + 1)),
    ("huge", |file| resize(file, |_| 1 << 40)),
    ("a bit at the beginning", |file| flip(file, 0.0)),
    ("a bit in the middle", |file| flip(file, 0.5)),
    ("a bit at the end", |file| flip(file, 1.0)),
    ("missing", |file| fs::remove_file(file).unwrap()),
    ("a directory", |file| {
        fs::remove_file(file).unwrap();
        fs::create_dir(file).unwrap();
    }),
    ("a link", |file| {
        fs::remove_file(file).unwrap();
        symlink("/dev/zero", file).unwrap();
    }),
    ("a FIFO", |file| {
        fs::remove_file(file).unwrap();
        nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }),
];

/// Every `step`th of all cases.
fn refuses_every_damage(guest: &str, mode: &str, step: usize) {
    let job = Job::up(guest, mode);
    let image = job.image("image");
    job.checkpoint(&image);
    let files = files(&image);
    assert!(files.len() > 5, "{files:?}");
    for (at, file) in files.iter().enumerate() {
        for (_, (name, damage)) in DAMAGES.iter().enumerate().filter(|(turn, _)| (at + turn) % step == 0) {
            let case = format!("{} {name}", file.display());
            let damaged = job.image("damaged");
            copy(&image, &damaged);
            let empty = fs::metadata(damaged.join(file)).unwrap().len() == 0;
            if empty && (name.starts_with("cut") || name.starts_with("a bit")) {
                fs::remove_dir_all(&damaged).unwrap();
                continue;
            }
            damage(&damaged.join(file));
            let restore = ["restore", "--detach", "--image-path", path(&damaged), "ID"];
            let ended = job.container.ckrun(&restore);
            assert_ne!(ended.code, 0, "{case}: restored");
            assert_eq!(ended.code, 1, "{case}: {}", ended.stderr);
            assert_eq!(ended.stderr.matches('\n').count(), 1, "{case}: {}", ended.stderr);
            assert!(!ended.stderr.contains("panicked"), "{case}: {}", ended.stderr);
            // Which file, or at least which image.
            assert!(ended.stderr.contains("damaged"), "{case}: {}", ended.stderr);
            job.container.no_trace();
            fs::remove_dir_all(&damaged).unwrap();
        }
    }
    job.restore(&image);
}

#[test]
fn a_choice_of_damages() {
    refuses_every_damage("files", "deleted-in-two", 6);
}

#[test]
#[ignore = "heavy: make test-all"]
fn an_image_of_processes() {
    refuses_every_damage("processes", "threads-in-tree", 1);
}

#[test]
#[ignore = "heavy: make test-all"]
fn an_image_with_memory_in_common() {
    refuses_every_damage("memory", "sysv", 1);
}

#[test]
#[ignore = "heavy: make test-all"]
fn an_image_with_contents_of_files() {
    refuses_every_damage("files", "deleted-in-two", 1);
}

#[test]
#[ignore = "heavy: make test-all"]
fn an_image_with_a_file_system() {
    refuses_every_damage("files", "tmpfs", 1);
}

#[test]
fn what_is_no_image() {
    let job = Job::new("processes", "tree");
    let empty = job.image("empty");
    fs::create_dir(&empty).unwrap();
    fs::write(job.image("file"), "").unwrap();
    for place in [&empty, &job.image("file"), &job.image("nothing")] {
        let restore = ["restore", "--detach", "--image-path", path(place), "ID"];
        job.container.ckrun(&restore).fails(1, &[path(place)]);
        job.container.no_trace();
    }
}
