//! ckrun as buildah's runtime.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::clients::{Done, Enclosure, ckrun, image, program};
use std::fs;

/// A buildah with a storage of its own.
struct Buildah {
    enclosure: Enclosure,
    base: Vec<String>,
}

impl Buildah {
    fn new() -> Self {
        let mut enclosure = Enclosure::new();
        // The runtime of `run` and `build` without writing --runtime each time.
        enclosure.set_env("BUILDAH_RUNTIME", ckrun());
        let base = [
            program("/usr/bin/buildah", "buildah"),
            format!("--root={}", enclosure.path("root")),
            format!("--runroot={}", enclosure.path("run")),
            "--storage-driver=overlay".into(),
        ];
        image::rootfs_tar(enclosure.dir());
        Buildah { base: base.into(), enclosure }
    }

    fn words(&self, words: &[&str]) -> Vec<String> {
        let words = words.iter().map(|word| (*word).to_owned());
        self.base.iter().cloned().chain(words).collect()
    }

    #[track_caller]
    fn call(&self, words: &[&str]) -> Done {
        self.enclosure.call(self.words(words))
    }

    /// `buildah run` in the working container.
    #[track_caller]
    fn run(&self, options: &[&str], job: &str) -> Done {
        let options = [&["run", "--isolation=oci", "--network=none"], options].concat();
        self.call(&[&options[..], &["working-container", "--", "sh", "-c", job]].concat())
    }

    #[track_caller]
    fn finish(self) {
        self.call(&["rm", "--all"]).ok();
        self.enclosure.assert_clean("/run/ckrun", &[]);
    }
}

#[test]
fn commands_run_in_a_working_container() {
    let buildah = Buildah::new();
    buildah.call(&["from", "scratch"]).ok();
    buildah.call(&["add", "working-container", &buildah.enclosure.path("rootfs.tar"), "/"]).ok();

    let done = buildah.run(&[], "echo out; echo err >&2; echo made > /made").exits(0);
    assert_eq!((done.out.as_str(), done.err.as_str()), ("out\n", "err\n"));
    buildah.run(&[], "exit 4").exits(4);
    buildah
        .call(&["run", "--isolation=oci", "--network=none", "working-container", "no-such-command"])
        .fails()
        .complains("executable file not found in $PATH");
    assert_eq!(buildah.run(&["--user=guest"], "id -un; id -Gn").ok(), "guest\nguest friends");
    assert_eq!(buildah.run(&["--env=A=b", "--workingdir=/var"], "echo $A; pwd").ok(), "b\n/var");
    let volume = format!("--volume={}:/in:ro", buildah.enclosure.path("rootfs/etc"));
    buildah
        .run(&[&volume], "grep guest /in/passwd && touch /in/x")
        .fails()
        .complains("Read-only file system");
    buildah.run(&["--cap-drop=all"], "chown 5 /made").fails().complains("Operation not permitted");

    // On a terminal.
    let words = ["run", "--isolation=oci", "--network=none", "-t", "working-container", "--", "sh", "-c"];
    let job = "test -t 0 && tty && stty size; exit 5";
    let (code, seen) = buildah.enclosure.terminal(buildah.words(&[&words[..], &[job]].concat())).ends();
    assert_eq!(code, 5, "{seen:?}");
    assert!(seen.contains("/dev/pts/0\r\n40 100\r\n"), "{seen:?}");

    // What the commands have done is in the image.
    buildah.call(&["commit", "working-container", "made"]).ok();
    buildah.call(&["from", "--name=again", "localhost/made"]).ok();
    let words = ["run", "--isolation=oci", "--network=none", "again", "cat", "/made"];
    assert_eq!(buildah.call(&words).ok(), "made");
    buildah.finish();
}

#[test]
fn images_are_built_from_a_containerfile() {
    let buildah = Buildah::new();
    let context = buildah.enclosure.path("context");
    fs::create_dir(&context).unwrap();
    fs::copy(buildah.enclosure.path("rootfs.tar"), format!("{context}/rootfs.tar")).unwrap();
    let file = "FROM scratch\nADD rootfs.tar /\nRUN mkdir /srv && id -u > /srv/builder\nUSER guest\nWORKDIR /home\n\
                RUN [\"/bin/sh\", \"-c\", \"id -un > /tmp/user; pwd >> /tmp/user\"]\n";
    fs::write(format!("{context}/Containerfile"), file).unwrap();
    // An engine that may not raise limits (CAP_SYS_RESOURCE) can lower them.
    let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--memory=256m"];
    let parent = format!("--cgroup-parent={}", buildah.enclosure.cgroup());
    let build = |file: &str| {
        let options = [
            "build",
            "--isolation=oci",
            "--network=none",
            "--layers",
            "--tag=built",
            &parent,
            "--file",
            file,
        ];
        buildah.call(&[&options[..], &limits[..], &[&context]].concat())
    };
    build("Containerfile").ok();
    buildah.call(&["from", "--name=made", "localhost/built"]).ok();
    let words = ["run", "--isolation=oci", "--network=none", "made", "cat", "/srv/builder", "/tmp/user"];
    assert_eq!(buildah.call(&words).ok(), "0\nguest\n/home");

    fs::write(format!("{context}/Failing"), format!("{file}RUN exit 9\n")).unwrap();
    build("Failing").exits(9);
    buildah.finish();
}
