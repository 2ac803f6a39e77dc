//! A QEMU process: from its start to its end, saved and loaded.
//!
//! It outlives a plugin that is killed, since the job goes on then: it is in a process group of its own, and everything that a
//! later plugin needs is in its directory. Its pid is that of the other end of its socket.

use crate::options::Options;
use crate::qmp::Qmp;
use ckrun_plugin::{Code, Fault};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, getpid, pidfd_getfd, pidfd_open, pidfd_send_signal,
};
use serde_json::{Value, json};
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a machine may take to end when it is asked to.
const FAREWELL: Duration = Duration::from_secs(5);

/// How often to ask for what QEMU tells of by no event.
const MOMENT: Duration = Duration::from_millis(1);

/// A machine that runs or stands still.
#[derive(Debug)]
pub struct Machine {
    /// Of its own: the sockets `qmp` and `link`, and `log`.
    pub directory: PathBuf,
    pid: Pid,
    process: OwnedFd,
    /// None if a predecessor has started it.
    child: Option<Child>,
}

impl Machine {
    /// Starts one that stands still, before its first instruction, or to be loaded. `link` says what its serial line is,
    /// in the words of `-chardev`; `opened` is called with the line's name when that exists and the guest's end of it does
    /// not.
    ///
    /// # Errors
    /// [`Code::Unavailable`] with QEMU's own reason; those of `opened`.
    pub fn start<T>(
        options: &Options,
        link: impl FnOnce(&Path) -> String,
        incoming: bool,
        until: Instant,
        opened: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Result<(Machine, T), Fault> {
        let directory = own_directory(&options.directory)?;
        let spawned = spawn(options, &directory, &link(&directory), incoming);
        let machine = match spawned {
            Ok(machine) => machine,
            Err(fault) => {
                let _ = fs::remove_dir_all(&directory);
                return Err(fault);
            }
        };
        let ready = machine.set_up(until, opened);
        match ready {
            Ok(it) => Ok((machine, it)),
            Err(fault) => {
                let fault = machine.explained(fault, Code::Unavailable);
                machine.kill();
                Err(fault)
            }
        }
    }

    /// What a pseudoterminal's client must see before the guest does: QEMU looks only once a second whether anybody has
    /// opened it, but also when the device is made that it belongs to.
    fn set_up<T>(&self, until: Instant, opened: impl FnOnce(&str) -> Result<T, Fault>) -> Result<T, Fault> {
        let mut qmp = self.talk(until)?;
        let chardevs = qmp.ask("query-chardev", json!({}))?;
        let mut all = chardevs.as_array().into_iter().flatten();
        let link = all.find(|chardev| chardev["label"] == "link");
        let name = link.and_then(|link| link["filename"].as_str()).unwrap_or_default();
        let it = opened(name.strip_prefix("pty:").unwrap_or(name))?;
        qmp.ask("x-exit-preconfig", json!({}))?;
        qmp.ask(
            "migrate-set-capabilities",
            json!({"capabilities": [{"capability": "events", "state": true}]}),
        )?;
        // Of no use here, where nobody waits but the job.
        qmp.ask("migrate-set-parameters", json!({"max-bandwidth": 1_u64 << 40}))?;
        Ok(it)
    }

    /// One that a predecessor has started.
    ///
    /// # Errors
    /// [`Code::Lost`].
    pub fn find(directory: PathBuf, until: Instant) -> Result<Machine, Fault> {
        let qmp = Qmp::connect(&directory.join("qmp"), until)?;
        // The credentials are those of who has called listen(2) last, QEMU.
        let pid = rustix::net::sockopt::socket_peercred(qmp.socket()).map_err(std::io::Error::from)?.pid;
        if pid == getpid() {
            return Err(Fault::lost("qemu has never listened"));
        }
        let process = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|e| Fault::lost(format!("qemu, process {pid}: {e}")))?;
        Ok(Machine { directory, pid, process, child: None })
    }

    /// A connection, for one event.
    ///
    /// # Errors
    /// [`Code::Lost`] with QEMU's last words.
    pub fn talk(&self, until: Instant) -> Result<Qmp, Fault> {
        Qmp::connect(&self.directory.join("qmp"), until).map_err(|fault| self.explained(fault, Code::Lost))
    }

    /// The guest goes on.
    ///
    /// # Errors
    /// Those of [`Machine::talk`].
    pub fn go_on(&self, until: Instant) -> Result<(), Fault> {
        self.talk(until)?.ask("cont", json!({})).map(drop)
    }

    /// The guest stands still. What QEMU's main loop was about to send has been sent.
    ///
    /// # Errors
    /// Those of [`Machine::talk`].
    pub fn stand_still(&self, until: Instant) -> Result<(), Fault> {
        let mut qmp = self.talk(until)?;
        qmp.ask("stop", json!({}))?;
        // An answer is made in one turn of the main loop. Between two of them it has looked at every descriptor.
        qmp.ask("query-status", json!({}))?;
        qmp.ask("query-status", json!({})).map(drop)
    }

    /// Saves a machine that stands still; it goes on standing. The file has another name until it is complete. The answer
    /// is its size.
    ///
    /// # Errors
    /// Those of [`Machine::talk`]; the file's.
    pub fn save(&self, path: &Path, until: Instant) -> Result<u64, Fault> {
        let mut qmp = self.talk(until)?;
        let part = path.with_extension("part");
        let failed = |e| Fault::new(Code::Internal, format!("{}: {e}", path.display()));
        let file = File::create_new(&part).map_err(failed)?;
        let saved = qmp.give("state", file.as_fd()).and_then(|()| {
            qmp.ask("migrate", json!({"uri": "fd:state"}))?;
            qmp.migrated()?;
            // The end of a migration out is told by a thread of QEMU's before it lets go of the machine; until then QEMU
            // refuses to let it go on (migration_iteration_finish() in migration/migration.c).
            while qmp.ask("query-status", json!({}))?["status"] == "finish-migrate" {
                if Instant::now() > until {
                    return Err(Fault::new(Code::Internal, "qemu does not end the migration"));
                }
                std::thread::sleep(MOMENT);
            }
            Ok(())
        });
        saved.map_err(|fault| self.explained(fault, Code::Lost))?;
        file.sync_all().and_then(|()| fs::rename(&part, path)).map_err(failed)?;
        Ok(file.metadata().map_err(failed)?.len())
    }

    /// Loads a machine that was started for it; it goes on standing still.
    ///
    /// # Errors
    /// [`Code::Mismatch`] with QEMU's own reason, which ends then.
    pub fn load(&self, path: &Path, until: Instant) -> Result<(), Fault> {
        let mut qmp = self.talk(until)?;
        let file = File::open(path)
            .map_err(|e| Fault::mismatch(format!("the state of the machine {}: {e}", path.display())))?;
        let loaded = qmp.give("state", file.as_fd()).and_then(|()| {
            qmp.ask("migrate-incoming", json!({"uri": "fd:state"}))?;
            // QEMU says so when the machine is no more about to come, but there.
            qmp.migrated()
        });
        loaded.map_err(|fault| {
            let fault = self.explained(fault, Code::Mismatch);
            Fault { message: format!("{} can't be loaded: {}", path.display(), fault.message), ..fault }
        })
    }

    /// Duplicates of those descriptors of QEMU's for which `is` holds of what /proc says: the link, and /proc/PID/fdinfo.
    ///
    /// # Errors
    /// [`Code::Lost`] if it has gone; the kernel's.
    pub fn descriptors(&self, is: impl Fn(&Path, &str) -> bool) -> Result<Vec<OwnedFd>, Fault> {
        let home = PathBuf::from(format!("/proc/{}", self.pid));
        let lost = |e: std::io::Error| Fault::lost(format!("qemu's descriptors: {e}"));
        let mut all = Vec::new();
        for entry in fs::read_dir(home.join("fd")).map_err(lost)? {
            let entry = entry.map_err(lost)?;
            let name = entry.file_name();
            let info = fs::read_to_string(home.join("fdinfo").join(&name));
            let (Ok(link), Ok(info)) = (fs::read_link(entry.path()), info) else { continue };
            if let Some(number) = name.to_str().and_then(|name| name.parse().ok())
                && is(&link, &info)
            {
                match pidfd_getfd(&self.process, number, PidfdGetfdFlags::empty()) {
                    Ok(copy) => all.push(copy),
                    // It was closed meanwhile.
                    Err(Errno::BADF) => {}
                    Err(other) => return Err(lost(other.into())),
                }
            }
        }
        Ok(all)
    }

    /// Ends it, and removes its directory.
    pub fn end(mut self) {
        let asked = self.talk(Instant::now() + FAREWELL).and_then(|mut qmp| qmp.ask("quit", json!({})));
        let limit = Timespec { tv_sec: FAREWELL.as_secs().cast_signed(), tv_nsec: 0 };
        let mut ended = [PollFd::new(&self.process, PollFlags::IN)];
        if asked.is_err() || !matches!(poll(&mut ended, Some(&limit)), Ok(1)) {
            let _ = pidfd_send_signal(&self.process, Signal::KILL);
        }
        self.reap();
    }

    fn kill(mut self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        self.reap();
    }

    fn reap(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }

    /// The same with QEMU's last words, if it has gone.
    fn explained(&self, fault: Fault, code: Code) -> Fault {
        if fault.kind() != Some(Code::Lost) {
            return fault;
        }
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let said = log.lines().rev().find(|line| line.starts_with("qemu")).unwrap_or("it said nothing");
        Fault::new(code, format!("{}: {said}", fault.message))
    }
}

/// A directory below this one that nobody else has.
fn own_directory(below: &Path) -> Result<PathBuf, Fault> {
    let failed = |e| Fault::unavailable(format!("a directory in {}: {e}", below.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(below).map_err(failed)?;
    let mut name = std::process::id().to_string();
    loop {
        let directory = below.join(&name);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => return Ok(directory),
            // Of a machine whose plugin was killed, and had this pid.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => name.push('+'),
            Err(e) => return Err(failed(e)),
        }
    }
}

fn spawn(options: &Options, directory: &Path, link: &str, incoming: bool) -> Result<Machine, Fault> {
    let failed = |e: std::io::Error| Fault::unavailable(format!("start {}: {e}", options.qemu));
    // Listening from now on: a connection waits until QEMU is there for it, or has ended. It gets the socket as its
    // standard input.
    let qmp = UnixListener::bind(directory.join("qmp")).map_err(failed)?;
    // QEMU takes the socket as it is, and sometimes asks it for a second connection (accept(2)) that never comes.
    qmp.set_nonblocking(true).map_err(failed)?;
    let log = File::create(directory.join("log")).map_err(failed)?;
    let mut command = Command::new(&options.qemu);
    command.args(options.words()).args(["-S", "--preconfig", "-chardev", link]);
    command.args(["-chardev", "socket,id=qmp,fd=0,server=on,wait=off", "-mon", "chardev=qmp,mode=control"]);
    if incoming {
        command.args(["-incoming", "defer"]);
    }
    command.stdin(OwnedFd::from(qmp)).stdout(Stdio::null()).stderr(log).process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    let pid = Pid::from_child(&child);
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => Ok(Machine { directory: directory.to_owned(), pid, process, child: Some(child) }),
        Err(e) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(failed(e.into()))
        }
    }
}

/// The version of the program, major and minor number.
///
/// # Errors
/// [`Code::Unavailable`] if there is none.
pub fn version(qemu: &str) -> Result<String, Fault> {
    let unavailable = |why: String| Fault::unavailable(format!("{qemu} (Debian: qemu-system-x86): {why}"));
    let said = Command::new(qemu).arg("--version").output().map_err(|e| unavailable(e.to_string()))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let mut words = said.split_whitespace().skip_while(|word| *word != "version").skip(1);
    let mut numbers = words.next().unwrap_or_default().split('.');
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => Ok(format!("{major}.{minor}")),
        _ => Err(unavailable(format!("its version is not known: {said:?}"))),
    }
}

/// Those of some devices that would lose their state: QEMU saves what a device describes, and nothing, silently, of one that
/// does not.
///
/// # Errors
/// [`Code::Unavailable`] if QEMU does not say it.
pub fn forgetful(options: &Options) -> Result<Vec<String>, Fault> {
    if options.add.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = Command::new(&options.qemu);
    command.args(["-nodefaults", "-display", "none", "-machine", &options.machine]);
    let said = command.args(["-dump-vmstate", "/dev/stdout"]).output();
    let said = said.map_err(|e| Fault::unavailable(format!("start {}: {e}", options.qemu)))?;
    let described: Value = serde_json::from_slice(&said.stdout).map_err(|_| {
        let why = String::from_utf8_lossy(&said.stderr).trim().to_owned();
        Fault::unavailable(format!("{} -dump-vmstate: {why}", options.qemu))
    })?;
    let described = |device: &String| {
        // A virtio device for PCI is two, and what there is to save is in the other.
        let other = device.strip_suffix("-pci").map(|name| format!("{name}-device")).unwrap_or_default();
        described.get(device.as_str()).or_else(|| described.get(other)).is_some()
    };
    Ok(options.add.iter().filter(|device| !described(device)).cloned().collect())
}
