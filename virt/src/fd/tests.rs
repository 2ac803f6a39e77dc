//! Real processes with real descriptors: captured, made again in another process, and captured from there.

use super::capture::capture_still;
use super::captured::{Captured, Source};
use super::*;
use crate::image::{Manifest, Writer};
use crate::listing::{descendants, list, see};
use crate::mounts::Space;
use crate::nursery::{AREA, Birth, beget, take_over};
use crate::owned::Owned;
use crate::program::Program;
use crate::restore::Options;
use crate::seize::Frozen;
use crate::sys::{Clone3, Cloned};
use crate::worker::Worker;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{ForkResult, Pid, fork};
use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

const FREE: std::ops::Range<u64> = 0x10000..0x10000 + AREA;
const GUEST: &str = "CKRUN_TEST_GUEST";

/// This executable again, as the job.
struct Guest {
    child: Child,
    dir: tempfile::TempDir,
}

impl Guest {
    fn start(name: &str) -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        // Whoever runs the tests may have left descriptors open.
        // SAFETY: one system call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let cloexec = libc::CLOSE_RANGE_CLOEXEC as i32;
                nix::errno::Errno::result(libc::close_range(3, u32::MAX, cloexec))
                    .map(drop)
                    .map_err(Into::into)
            });
        }
        let mut child = command
            .args(["--exact", "fd::tests::guest", "--nocapture", "--test-threads=1"])
            .env(GUEST, name)
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Not ours, which may be a file that grows.
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdout.as_mut().unwrap();
        let ready = BufReader::new(out).lines().map(Result::unwrap).any(|line| line.contains("READY"));
        assert!(ready, "the guest has failed");
        Guest { child, dir }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Stops the guest, captures it and lets it go on.
    fn capture(&self) -> Result<(Captured, Vec<i32>), Error> {
        let frozen = Frozen::stop(self.pid(), list(self.pid()), || Ok(()))?;
        let captured = capture(&frozen, &spaces(self.pid()), &Owned::default(), &|_, _| None)?;
        Ok((captured, frozen.processes.iter().map(|process| process.pid).collect()))
    }
}

fn spaces(init: Pid) -> Vec<Arc<Space>> {
    Space::all(&descendants(init)).unwrap()
}

impl Drop for Guest {
    fn drop(&mut self) {
        for pid in descendants(self.pid()) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// Does nothing unless it is started by [`Guest::start`].
#[test]
fn guest() {
    let Ok(name) = std::env::var(GUEST) else { return };
    let kept: Box<dyn std::any::Any> = match name.as_str() {
        "all" => Box::new(guests::all()),
        "epoll" => Box::new(guests::epoll()),
        "family" => Box::new(guests::family()),
        "locks" => Box::new(guests::locks()),
        "refused" => Box::new(guests::refused()),
        "log" => Box::new(guests::log()),
        "sockets" => Box::new(sockets::guest()),
        _ => panic!("no such guest"),
    };
    println!("READY");
    loop {
        std::thread::park();
        let _ = &kept;
    }
}

mod guests;
mod sockets;

/// A process in a new pid namespace that waits to be taken over, with the ends of pipes as standard streams; the other
/// ends come last.
fn init() -> (Pid, OwnedFd, i32, [OwnedFd; 2]) {
    let (stdin, feeder) = nix::unistd::pipe().unwrap();
    let (reader, stdout) = nix::unistd::pipe().unwrap();
    let (here, there) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let clone = Clone3 { flags: libc::CLONE_NEWPID as u64, cgroup: None };
    // SAFETY: the child only makes system calls.
    match unsafe { clone.call() }.unwrap() {
        Cloned::Child => {
            let mut byte = 0_u8;
            // SAFETY: numbers; reads one byte into a local, for ever; then ends.
            unsafe {
                libc::dup2(stdin.as_raw_fd(), 0);
                libc::dup2(stdout.as_raw_fd(), 1);
                libc::dup2(stdout.as_raw_fd(), 2);
                libc::write(there.as_raw_fd(), (&raw const byte).cast(), 1);
                libc::read(there.as_raw_fd(), (&raw mut byte).cast(), 1);
                libc::_exit(9)
            }
        }
        Cloned::Parent(pid, _) => {
            rustix::io::read(&here, &mut [0_u8]).unwrap();
            (pid, here, there.as_raw_fd(), [feeder, reader])
        }
    }
}

/// A restored job, which ends with this.
struct Restored {
    init: Pid,
    workers: BTreeMap<i32, Worker>,
    _streams: [OwnedFd; 2],
}

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = kill(self.init, Signal::SIGKILL);
    }
}

impl Restored {
    fn fd(&self, pid: i32, fd: RawFd) -> File {
        self.workers[&pid].pidfd_getfd(fd).unwrap().into()
    }

    fn capture(&self) -> Captured {
        let pids: Vec<Pid> = self.workers.values().map(Worker::host).collect();
        capture_still(&pids).unwrap()
    }
}

/// Writes an image and reads it again.
fn through_image(captured: &Captured, dir: &Path) -> (Image, Files) {
    let place = dir.join("image");
    let mut writer = Writer::create(&place).unwrap();
    captured.write(&mut writer).unwrap();
    writer.commit(Manifest::new(0).unwrap()).unwrap();
    let image = Image::open(&place).unwrap();
    let files = Files::read(&image).unwrap();
    assert_eq!(files, captured.files);
    (image, files)
}

/// What was process `root` is process 1 now. Files of `/proc` go on showing the guest, for the tests' `/proc` does.
fn renamed(mut files: Files, root: i32) -> Files {
    let holdings = files.processes.remove(&root).unwrap();
    files.processes.insert(1, holdings);
    for description in &mut files.descriptions {
        if let Some(owner) = description.owner.as_mut().filter(|owner| owner.id == root) {
            owner.id = 1;
        }
    }
    files
}

/// Makes all of it in new processes.
fn restore(image: &Image, files: &Files) -> Restored {
    let (init, here, there, streams) = init();
    let first = take_over(init, here, there, FREE).unwrap();
    let mut restored = Restored { init, workers: BTreeMap::from([(1, first)]), _streams: streams };
    let root = File::open(format!("/proc/{init}/root")).unwrap();
    assert_eq!(files.check(&[root.into()], &Options::default()).unwrap(), []);
    let first = restored.workers.get_mut(&1).unwrap();
    let made = files.make(first, image, &|_| None, &[], &Options::default()).unwrap();
    let others: Vec<i32> = files.processes.keys().copied().filter(|&pid| pid != 1).collect();
    let births: Vec<Birth> =
        others.iter().map(|&pid| Birth { pid, signal: libc::SIGCHLD, sibling: false, shared: 0 }).collect();
    let born = beget(first, &births).unwrap();
    restored.workers.extend(others.into_iter().zip(born));
    for (&pid, worker) in &mut restored.workers {
        let mut program = Program::new();
        files.enter(&made, pid, &mut program);
        files.place(&made, pid, &mut program);
        worker.run(&program).unwrap();
    }
    for (&pid, worker) in &mut restored.workers {
        let mut program = Program::new();
        files.finish(&made, pid, &mut program);
        worker.run(&program).unwrap();
    }
    files.hand_over(&made, &mut restored.workers).unwrap();
    for worker in restored.workers.values_mut() {
        let mut program = Program::new();
        for &fd in made.kept() {
            program.call("close", libc::SYS_close, &[fd.into()]);
        }
        worker.run(&program).unwrap();
    }
    restored
}

/// What must be equal before and after.
fn comparable(files: &Files) -> Files {
    let mut files = files.clone();
    for description in &mut files.descriptions {
        match &mut description.object {
            Object::Given(given) => given.was.clear(),
            Object::Timerfd(timerfd) => {
                // Time has passed; the tests have no time namespace to hold it.
                timerfd.value.0 /= 1000;
                timerfd.value.1 = 0;
            }
            // The kernel keeps them in the order of addresses.
            Object::Epoll(epoll) => epoll.entries.sort_by_key(|entry| entry.data),
            Object::Socket(socket) => socket.forget_numbers(),
            _ => {}
        }
        if matches!(description.object, Object::Given(_)) {
            description.flags = 0;
        }
        // Its number is another one now.
        description.locks.flocker = None;
        if description.locks.lease.is_some() {
            // Of a lease that another thread than the first one took, the kernel shows no owner.
            description.owner = None;
        }
    }
    for ghost in &mut files.ghosts {
        // Its directory is gone too, so that it can't have its name again.
        if ghost.path.iter().rev().take_while(|&&b| b != b'/').any(|&b| b == b'#') {
            // The kernel makes a name of the inode's number for a file that never had one.
            ghost.path = "#".into();
        }
        if ghost.path.ends_with(b"/lost/inner") || ghost.path.ends_with(b"/.ckrun-2-0") {
            ghost.path = "/lost/inner".into();
        }
    }
    files.processes = files.processes.into_values().zip(1..).map(|(holdings, n)| (n, holdings)).collect();
    files
}

/// Says which line differs.
fn assert_same(before: &Files, after: &Files) {
    let text = |files: &Files| serde_json::to_string_pretty(&comparable(files)).unwrap();
    let (before, after) = (text(before), text(after));
    for (number, (a, b)) in before.lines().zip(after.lines()).enumerate() {
        assert_eq!(
            a,
            b,
            "line {number}:\n{}",
            before.lines().skip(number.saturating_sub(12)).take(16).collect::<Vec<_>>().join("\n")
        );
    }
    assert_eq!(before, after);
}

fn content(captured: &Captured, name: &str) -> Vec<u8> {
    let found = captured.contents.iter().find(|content| content.name == name).unwrap();
    match &found.source {
        Source::Bytes(bytes) => bytes.clone(),
        Source::File(fd) => {
            let file = File::from(fd.try_clone().unwrap());
            let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        }
    }
}

fn same_contents(before: &Captured, after: &Captured) {
    let names = |captured: &Captured| captured.contents.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(before), names(after));
    for name in names(before) {
        assert!(content(before, &name) == content(after, &name), "{name}");
    }
}

#[test]
fn descriptors_of_every_kind() {
    let guest = Guest::start("all");
    let (before, pids) = guest.capture().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (image, files) = through_image(&before, dir.path());
    end(&guest);
    let files = renamed(files, pids[0]);
    let restored = restore(&image, &files);
    let after = restored.capture();
    assert_same(&files, &after.files);
    same_contents(&before, &after);
    // A nameless file can still have a name.
    let nameless = files.descriptions.iter().position(|d| d.flags & libc::O_TMPFILE as u32 & !0o200_000 != 0);
    let held =
        files.processes[&1].descriptors.iter().find(|held| Some(held.description as usize) == nameless);
    let nameless = restored.fd(1, held.unwrap().fd);
    let from = format!("/proc/self/fd/{}", nameless.as_raw_fd());
    let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
    rustix::fs::linkat(rustix::fs::CWD, from, rustix::fs::CWD, guest.path("named"), follow).unwrap();
    assert_eq!(std::fs::read(guest.path("named")).unwrap(), b"nameless");
    drop(image);
}

#[test]
fn a_capture_changes_nothing() {
    let guest = Guest::start("all");
    let (first, _) = guest.capture().unwrap();
    let (second, _) = guest.capture().unwrap();
    assert_same(&first.files, &second.files);
    same_contents(&first, &second);
}

#[test]
fn locks_and_leases() {
    let guest = Guest::start("locks");
    let (before, pids) = guest.capture().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (image, files) = through_image(&before, dir.path());
    end(&guest);
    let files = renamed(files, pids[0]);
    let restored = restore(&image, &files);
    let after = restored.capture();
    assert_same(&files, &after.files);
    assert_eq!(files.processes[&1].locks.len(), 4, "two locks, seen through two descriptors");
}

/// Ends the guest, whose locks and FIFOs would be in the way. What is left of it still has its place in `/proc`.
fn end(guest: &Guest) {
    kill(guest.pid(), Signal::SIGKILL).unwrap();
    let id = nix::sys::wait::Id::Pid(guest.pid());
    let flags = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
    nix::sys::wait::waitid(id, flags).unwrap();
}

#[test]
fn epolls_watch_what_they_watched() {
    let guest = Guest::start("epoll");
    let (before, pids) = guest.capture().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (image, files) = through_image(&before, dir.path());
    let files = renamed(files, pids[0]);
    let restored = restore(&image, &files);
    let after = restored.capture();
    assert_same(&files, &after.files);
    let epolls: Vec<&epoll::Epoll> = files
        .descriptions
        .iter()
        .filter_map(|d| if let Object::Epoll(epoll) = &d.object { Some(epoll) } else { None })
        .collect();
    assert_eq!(epolls.len(), 4);
    assert!(epolls[0].quiet && !epolls[2].quiet);
    // The edge that was seen is not seen again; the next one is.
    let holdings = &files.processes[&1];
    let number = |data: u64| {
        let id = files.descriptions.iter().position(|d| {
            matches!(&d.object, Object::Epoll(epoll) if epoll.entries.iter().any(|entry| entry.data == data))
        });
        holdings.descriptors.iter().find(|held| Some(held.description as usize) == id).unwrap().fd
    };
    let wait = |epoll: &File| {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 8];
        // SAFETY: room for 8 events.
        let count = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 8, 0) };
        let mut data: Vec<u64> = events[..count as usize].iter().map(|event| event.u64).collect();
        data.sort_unstable();
        data
    };
    let edge = restored.fd(1, number(1));
    assert_eq!(wait(&edge), [0_u64; 0]);
    let of = |data: u64| {
        let entries = epolls.iter().flat_map(|epoll| &epoll.entries);
        let entry = entries.clone().find(|entry| entry.data == data).unwrap();
        entry.description
    };
    let held = |id: u32| holdings.descriptors.iter().find(|held| held.description == id).unwrap().fd;
    let writer = files.descriptions.iter().zip(0..).find(|(d, _)| {
        let Object::Pipe(pipe) = &files.descriptions[of(1) as usize].object else { panic!() };
        d.object == Object::Pipe(pipe.clone()) && d.flags & 3 == 1
    });
    restored.fd(1, held(writer.unwrap().1)).write_all(b"more").unwrap();
    assert_eq!(wait(&edge), [1]);
    // Of the one-shots only the one that was not shot is alive.
    assert_eq!(wait(&restored.fd(1, number(2))), [0_u64; 0]);
    assert_eq!(wait(&restored.fd(1, number(5))), [6, 7]);
}

#[test]
fn a_family_shares_what_it_shared() {
    let guest = Guest::start("family");
    let (before, pids) = guest.capture().unwrap();
    assert_eq!(pids.len(), 3);
    let dir = tempfile::tempdir().unwrap();
    let (image, files) = through_image(&before, dir.path());
    let files = renamed(files, pids[0]);
    assert!(files.processes[&pids[1]].fs.root.is_some());
    let restored = restore(&image, &files);
    let after = restored.capture();
    assert_same(&files, &after.files);
    let held = |pid: i32| {
        let is = |d: &&Descriptor| {
            let object = &files.descriptions[d.description as usize].object;
            matches!(object, Object::Regular(regular) if regular.path.ends_with(b"/shared"))
        };
        restored.fd(pid, files.processes[&pid].descriptors.iter().find(is).unwrap().fd)
    };
    held(1).seek(SeekFrom::Start(3)).unwrap();
    let mut text = String::new();
    held(pids[2]).read_to_string(&mut text).unwrap();
    assert_eq!(text, "3456789");
}

#[test]
fn what_can_not_be_carried_is_named() {
    let guest = Guest::start("refused");
    let pid = guest.pid();
    let blockers = survey(&see(&list(pid)), &spaces(pid), &Owned::default()).unwrap().lasting;
    let text: Vec<String> = blockers.iter().map(|b| format!("{}: {}", b.what, b.why)).collect();
    let named = ["fanotify", "userfaultfd", "pidfd of"];
    for name in named {
        assert!(text.iter().any(|line| line.starts_with("fd ") && line.contains(name)), "{name}: {text:?}");
    }
    assert_eq!(blockers.len(), 3, "{text:?}");
    assert!(matches!(guest.capture(), Err(Error::Blocked(same)) if same == blockers));
    let harmless = Guest::start("all");
    let pid = harmless.pid();
    let refused = survey(&see(&list(pid)), &spaces(pid), &Owned::default()).unwrap();
    assert_eq!((refused.lasting, refused.passing), (vec![], vec![]));
}

#[test]
fn a_file_that_has_changed_is_named() {
    use crate::restore::Changed;
    let guest = Guest::start("log");
    let (captured, _) = guest.capture().unwrap();
    let root: OwnedFd = File::open("/").unwrap().into();
    let check = |changed| {
        let options = Options { changed, ..Options::default() };
        let problems = captured.files.check(std::slice::from_ref(&root), &options).unwrap();
        problems.into_iter().map(|p| p.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(check(Changed::Strict), [""; 0]);
    let mut log =
        std::fs::OpenOptions::new().append(true).custom_flags(libc::O_CLOEXEC).open(guest.path("log"));
    log.as_mut().unwrap().write_all(b"more").unwrap();
    std::fs::write(guest.path("read"), "other").unwrap();
    let problems = check(Changed::Strict);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains("/log: ") && problems[0].contains("its size is 9 now and was 5"),
        "{problems:?}"
    );
    assert_eq!(check(Changed::Truncate), [""; 0]);
    assert_eq!(check(Changed::Ignore), [""; 0]);
    let options = Options { changed: Changed::Truncate, ..Options::default() };
    captured.files.truncate(&|_| root.as_fd(), &options).unwrap();
    assert_eq!(std::fs::read(guest.path("log")).unwrap(), b"line\n");
    std::fs::remove_file(guest.path("log")).unwrap();
    assert!(check(Changed::Ignore)[0].ends_with("it is not in the container"));
}

#[test]
fn an_image_that_names_what_is_not_there_is_refused() {
    let guest = Guest::start("epoll");
    let (captured, _) = guest.capture().unwrap();
    captured.files.consistent().unwrap();
    let broken = |change: &dyn Fn(&mut Files)| {
        let mut files = captured.files.clone();
        change(&mut files);
        assert!(matches!(files.consistent(), Err(Error::Damaged(_))));
    };
    broken(&|files| files.pipes.clear());
    broken(&|files| drop(files.descriptions.pop()));
    let first = |files: &mut Files| *files.processes.first_entry().unwrap().key();
    broken(&|files| {
        let pid = first(files);
        files.processes.get_mut(&pid).unwrap().descriptors[0].fd = RawFd::MAX;
    });
    broken(&|files| {
        let pid = first(files);
        files.processes.get_mut(&pid).unwrap().fs.root = Some("relative".into());
    });
}
