//! Programs of the host, from Debian, which know nothing of checkpoints, in containers.

use crate::job::Job;
use std::fs;
use std::path::{Path, PathBuf};

/// A file of `programs`.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name)
}

/// A container with the host's programs in it and `files` in its /work, in which `words` run.
pub fn program(words: &[&str], files: &[PathBuf]) -> Job {
    let job = resting(words, files);
    job.start();
    job
}

/// The same; nothing runs yet.
pub fn resting(words: &[&str], files: &[PathBuf]) -> Job {
    let job = Job::with(words, |container| {
        let mut container = container;
        for dir in
            ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc"].iter().filter(|dir| Path::new(dir).exists())
        {
            container = container.mount(dir, "bind", dir, &["rbind", "ro"]);
        }
        container
    });
    let work = job.container.rootfs().join("work");
    fs::create_dir(&work).expect("make /work");
    for file in files {
        fs::copy(file, work.join(file.file_name().expect("a file has a name"))).expect("copy a program");
    }
    job
}

/// Three generations, at whatever the program is doing.
pub fn survives(job: &Job) {
    for generation in 0..3 {
        let image = job.image(&format!("generation-{generation}"));
        job.checkpoint(&image);
        job.restore_and_count(&image, 10);
    }
}
