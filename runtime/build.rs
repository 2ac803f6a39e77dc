//! Notes the commit that is built, for `ckrun --version`, and where ckrun begins (src/entry.rs).

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rustc-link-arg-bin=ckrun=-Wl,--entry=ckrun_entry");
    // It grows with every commit and checkout, unlike HEAD, which names the branch.
    if Path::new("../.git/logs/HEAD").exists() {
        println!("cargo::rerun-if-changed=../.git/logs/HEAD");
    }
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let commit =
        git.ok().filter(|o| o.status.success()).map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    // A source archive has no history.
    println!("cargo::rustc-env=CKRUN_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}
