//! The small programs that the tests run in containers: guests/*.c, each of which verifies its own state for ever.

use crate::run::{finish, needs};
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The static program that is made from guests/NAME.c, by whichever test needs it first.
pub fn guest(name: &str) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests");
    let source = sources.join(name).with_extension("c");
    let read = |path: &Path| fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    let mut hasher = DefaultHasher::new();
    ["guest.h", "inet.h", "socket.h"].map(|name| read(&sources.join(name))).hash(&mut hasher);
    read(&source).hash(&mut hasher);
    let dir = std::env::current_exe().expect("current_exe").parent().expect("deps").with_file_name("guests");
    fs::create_dir_all(&dir).expect("make a directory for guests");
    let program = dir.join(format!("{name}-{:016x}", hasher.finish()));
    // Tests run in several threads and in several processes.
    let lock = File::create(dir.join(name).with_extension("lock")).expect("make a lock file");
    lock.lock().expect("lock a file");
    if !program.exists() {
        let made = program.with_extension("new");
        let mut cc = Command::new(needs("cc", "gcc"));
        cc.args(["-O2", "-Wall", "-Wextra", "-static", "-pthread", "-o"]).arg(&made).arg(&source);
        let said = finish(cc).ok();
        assert_eq!(said, "", "{}", source.display());
        fs::rename(&made, &program).expect("rename a program");
    }
    program
}

/// The modes that a guest knows.
pub fn modes(name: &str) -> Vec<String> {
    let mut list = Command::new(guest(name));
    list.arg("list");
    finish(list).ok().lines().map(str::to_owned).collect()
}
