//! The plugin with files of two hosts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_plugin::occasion::Occasion;
use ckrun_plugin::rehearsal::{Rehearsal, saved};
use ckrun_plugin::{Binding, Code, Fault, Reason, Saved};
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

fn plugin(file: &Path) -> Result<Rehearsal, Fault> {
    let mut plugin = Rehearsal::start(&[env!("CARGO_BIN_EXE_ckrun-remap")]).unwrap();
    plugin.hello(&[("file", &file.display().to_string())]).map(|_| plugin)
}

fn kept(bindings: &[Binding]) -> Saved {
    saved(Path::new("/nowhere"), &Default::default(), bindings)
}

#[test]
fn each_host_says_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (file, ring, socket) =
        (folder.path().join("a"), folder.path().join("ring"), folder.path().join("socket"));
    fs::write(&ring, "").unwrap();
    let _listener = UnixListener::bind(&socket).unwrap();
    let rules = format!(
        "/dev/emu0 = /dev/null\ntcp:emu:4000 = tcp:10.77.0.1:5011\nunix:/run/emu = unix:{}\nmemory /dev/shm/r = {}\n",
        socket.display(),
        ring.display()
    );
    fs::write(&file, rules).unwrap();
    let mut here = plugin(&file).unwrap();
    let bindings = here.init().unwrap().bindings;
    assert_eq!(bindings.len(), 4);
    assert_eq!(bindings[0], Binding::device("/dev/emu0", "/dev/null"));
    assert!(here.exit(Reason::Checkpointed).unwrap().success());

    // There the device is one of a directory of them, and a rule is not for this job.
    let other = folder.path().join("b");
    let rules = format!(
        "/dev = /dev\n/unused = /not/there\ntcp:emu:4000 = tcp:[::1]:7\nunix:/run/emu = unix:@emu\nmemory /dev/shm = {}\n",
        folder.path().display()
    );
    fs::write(&other, rules).unwrap();
    fs::rename(&ring, folder.path().join("r")).unwrap();
    let mut there = plugin(&other).unwrap();
    let before = &bindings[1..];
    there.ask(Occasion::Check(kept(before))).unwrap();
    let bindings = there.restart(&kept(before)).unwrap().bindings;
    let ring = folder.path().join("r").display().to_string();
    assert_eq!(bindings[0], Binding::socket("tcp:emu:4000".parse().unwrap(), "tcp:[::1]:7"));
    assert_eq!(bindings[2], Binding::memory("/dev/shm/r", ring));
    let fault = there.restart(&kept(&[Binding::device("/dev/emu0", "/dev/null")])).unwrap_err();
    assert!(fault.message.contains("/dev/emu0 for /dev/emu0 is missing here"), "{fault}");
}

#[test]
fn all_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules");
    let text = "/dev/emu0 = /not/there\n/dev/emu1 = /dev/null\nunix:/run/e = unix:/dev/null\nmemory /r = /dev/zero\n";
    fs::write(&file, text).unwrap();
    let fault = plugin(&file).unwrap().init().unwrap_err();
    assert_eq!(fault.kind(), Some(Code::Unavailable));
    for part in [
        "/not/there for /dev/emu0 is missing here: No such file",
        "/dev/null for unix:/run/e is no socket",
        "/dev/zero for /r is no file that can be mapped",
    ] {
        assert!(fault.message.contains(part), "{fault}");
    }
    let before =
        [Binding::device("/dev/emu2", "/x"), Binding::socket("tcp:emu:1".parse().unwrap(), "tcp:x:1")];
    let fault = plugin(&file).unwrap().ask(Occasion::Check(kept(&before))).unwrap_err();
    assert_eq!(fault.kind(), Some(Code::Unavailable));
    assert!(fault.message.ends_with("has no rule for device /dev/emu2, socket tcp:emu:1"), "{fault}");
}

#[test]
fn a_bad_file_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules");
    let missing = plugin(&file).unwrap_err();
    assert!(missing.message.contains("rules: No such file"), "{missing}");
    fs::write(&file, "# first\n/dev/emu0 : /dev/null\n").unwrap();
    let bad = plugin(&file).unwrap_err();
    assert_eq!(bad.kind(), Some(Code::InvalidParams));
    assert!(bad.message.contains("/rules, line 2: rule \"/dev/emu0 : /dev/null\": it is not"), "{bad}");
}
