//! A job of one thread that talks to the guest, and the plugin that ties it to that.

use ckrun_plugin::occasion::{Occasion, Precheckpoint};
use ckrun_plugin::rehearsal::{Rehearsal, saved};
use ckrun_plugin::{Address, After, Attachment, Binding, Fault, Real, Reason};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
use rustix::io::{Errno, read, write};
use serde_json::{Map, Value};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

pub const PLUGIN: &str = env!("CARGO_BIN_EXE_ckrun-qemu");

/// The file with the guest.
pub fn guest() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let write = || {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("guest-{}", std::process::id()));
        assert!(Command::new(PLUGIN).arg("guest").arg(&path).status().unwrap().success());
        path
    };
    FOLDER.get_or_init(write).clone()
}

/// A plugin that has said hello; its machines are in a directory of this one.
pub fn plugin(folder: &Path, more: &[(&str, &str)]) -> Result<Rehearsal, Fault> {
    let mut plugin = Rehearsal::start(&[PLUGIN]).unwrap();
    let (image, directory) = (guest().display().to_string(), folder.join("machines").display().to_string());
    let mut options = vec![("directory", directory.as_str())];
    if more.iter().all(|(name, _)| *name != "image") {
        options.push(("image", &image));
    }
    options.extend(more);
    plugin.hello(&options).map(|_| plugin)
}

pub fn precheckpoint(folder: &Path) -> Precheckpoint {
    Precheckpoint { folder: folder.into() }
}

/// Lines of a pseudorandom length, and what is to be answered to them.
pub struct Lines {
    random: u32,
    count: u32,
    digest: u32,
    pub answers: String,
}

impl Lines {
    pub fn new(seed: u32) -> Lines {
        Lines { random: seed, count: 0, digest: 0x811c_9dc5, answers: String::new() }
    }

    pub fn next(&mut self) -> Vec<u8> {
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = (self.random >> 24) as usize % 30;
        let first = (self.random >> 16) as usize % 26;
        let mut line: Vec<u8> = (0..length).map(|n| b'a' + ((n + first) % 26) as u8).collect();
        line.push(b'\n');
        for byte in &line {
            self.digest = (self.digest ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
        self.count += 1;
        self.answers += &format!("{:08x} {:08x}\n", self.count, self.digest);
        line
    }
}

/// A job tied to a machine.
pub struct Job {
    pub plugin: Rehearsal,
    pub bindings: Vec<Binding>,
    pub folder: Folder,
    options: Vec<(String, String)>,
    link: OwnedFd,
    heard: Vec<u8>,
    saves: u32,
}

impl Job {
    pub fn new(options: &[(&str, &str)]) -> Job {
        let folder = Folder(tempfile::tempdir().unwrap());
        let mut plugin = plugin(folder.path(), options).unwrap();
        let bindings = plugin.init().unwrap().bindings;
        let link = opened(&mut plugin, &bindings);
        plugin.running(After::Init).unwrap();
        let options = options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Job { plugin, bindings, folder, options, link, heard: Vec::new(), saves: 0 }
    }

    /// Sends; reads while there is no room.
    pub fn send(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match write(&self.link, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::AGAIN) => {
                    self.wait(PollFlags::OUT | PollFlags::IN);
                    self.read_some();
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    /// Reads what is there.
    pub fn read_some(&mut self) {
        let mut buffer = [0; 500];
        while let Ok(count) = read(&self.link, &mut buffer) {
            assert!(count > 0);
            self.heard.extend_from_slice(&buffer[..count]);
        }
    }

    fn wait(&self, flags: PollFlags) {
        poll(&mut [PollFd::new(&self.link, flags)], None).unwrap();
    }

    /// Waits until there is something to read, and leaves it there.
    pub fn await_reply(&self) {
        self.wait(PollFlags::IN);
    }

    /// presuspend, while a thread of the job reads.
    pub fn quiesce(&mut self) {
        let (link, plugin, done) = (&self.link, &mut self.plugin, AtomicBool::new(false));
        let heard = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (mut heard, mut buffer) = (Vec::new(), [0; 500]);
                // With a device nobody needs to.
                while !done.load(Ordering::Relaxed) {
                    let count = read(link, &mut buffer).unwrap_or(0);
                    heard.extend_from_slice(&buffer[..count]);
                    std::thread::yield_now();
                }
                heard
            });
            let asked = plugin.ask(Occasion::Presuspend);
            done.store(true, Ordering::Relaxed);
            asked.unwrap();
            reader.join().unwrap()
        });
        self.heard.extend(heard);
    }

    /// presuspend and precheckpoint; where, and what a restart needs.
    pub fn save(&mut self) -> (PathBuf, Map<String, Value>) {
        if matches!(self.bindings[0], Binding::Device { .. }) {
            self.plugin.ask(Occasion::Presuspend).unwrap();
        } else {
            self.quiesce();
        }
        self.saves += 1;
        let folder = self.folder.path().join(self.saves.to_string());
        let requirements = self.plugin.precheckpoint(&folder).unwrap();
        (folder, requirements)
    }

    /// To another machine.
    pub fn migrate(&mut self) {
        let (folder, requirements) = self.save();
        let options: Vec<_> =
            self.options.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut there = plugin(self.folder.path(), &options).unwrap();
        let saved = saved(&folder, &requirements, &self.bindings);
        there.ask(Occasion::Check(saved.clone())).unwrap();
        let Attachment { bindings, .. } = there.restart(&saved).unwrap();
        self.link = opened(&mut there, &bindings);
        // What was bound by a descriptor has the name of its peer.
        if let Some(Real::Name(_)) = bindings[0].real() {
            self.bindings = bindings;
        }
        let here = std::mem::replace(&mut self.plugin, there);
        assert!(here.exit(Reason::Checkpointed).unwrap().success());
        assert_eq!(self.machines(), 1);
        self.plugin.running(After::Restart).unwrap();
    }

    /// Reads the rest; the answers, which are those that are expected.
    pub fn finish(mut self, lines: &Lines) -> String {
        while self.heard.len() < lines.answers.len() {
            self.wait(PollFlags::IN);
            self.read_some();
        }
        let said = String::from_utf8(self.heard).unwrap();
        assert_eq!(said, lines.answers);
        assert!(self.plugin.exit(Reason::Ended).unwrap().success());
        assert_eq!(fs::read_dir(self.folder.path().join("machines")).unwrap().count(), 0);
        said
    }

    /// How many machines there are.
    pub fn machines(&self) -> usize {
        let pids = self.folder.machine_pids().len();
        let directories = fs::read_dir(self.folder.path().join("machines")).map_or(0, Iterator::count);
        assert_eq!(pids, directories);
        pids
    }

    /// Its pseudoterminal or socket is hung up.
    pub fn await_end_of_machine(&self) {
        self.wait(PollFlags::empty());
    }
}

/// A directory, at the end of which its machines are killed.
pub struct Folder(TempDir);

impl Folder {
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The machines' processes: those whose log is in it.
    pub fn machine_pids(&self) -> Vec<u32> {
        let mine = |pid: &u32| {
            let log = fs::read_link(format!("/proc/{pid}/fd/2")).unwrap_or_default();
            log.starts_with(self.path())
        };
        let names = fs::read_dir("/proc").unwrap();
        names.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(mine).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for pid in self.machine_pids() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

/// What ckrun opens in the job's place.
fn opened(plugin: &mut Rehearsal, bindings: &[Binding]) -> OwnedFd {
    let link = match bindings[0].real().unwrap() {
        Real::Fd(0) => plugin.passed.pop().unwrap(),
        Real::Name(path) if path.starts_with("/dev/pts/") => {
            open(path.as_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap()
        }
        Real::Name(name) => {
            let Ok(Address::Unix(path)) = name.parse() else { panic!("{name}") };
            UnixStream::connect(path).unwrap().into()
        }
        other => panic!("{other:?}"),
    };
    fcntl_setfl(&link, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
    link
}
