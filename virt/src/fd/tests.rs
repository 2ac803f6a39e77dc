//! Real processes with real descriptors: captured, made again in another process, and captured from there.

use super::capture::{Captured, Source, capture_still};
use super::*;
use crate::image::{Manifest, Writer};
use crate::nursery::{AREA, Birth, beget, take_over};
use crate::program::Program;
use crate::restore::Options;
use crate::seize::{Frozen, descendants};
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
            .stderr(Stdio::inherit())
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
        let frozen = Frozen::stop(self.pid(), || Ok(()))?;
        let captured = capture(&frozen, &|_, _| None)?;
        Ok((captured, frozen.processes.iter().map(|process| process.pid).collect()))
    }
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
        _ => panic!("no such guest"),
    };
    println!("READY");
    loop {
        std::thread::park();
        let _ = &kept;
    }
}

mod guests {
    use super::*;

    fn owned(fd: i32) -> OwnedFd {
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: a system call has just made it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    fn open(path: &str, flags: i32) -> OwnedFd {
        let path = CString::new(path).unwrap();
        // SAFETY: the path ends with a NUL.
        owned(unsafe { libc::open(path.as_ptr(), flags | libc::O_CREAT, 0o640) })
    }

    fn open_only(path: &str, flags: i32) -> OwnedFd {
        let path = CString::new(path).unwrap();
        // SAFETY: the path ends with a NUL.
        owned(unsafe { libc::open(path.as_ptr(), flags) })
    }

    fn again(fd: &impl AsRawFd, flags: i32) -> OwnedFd {
        open_only(&format!("/proc/self/fd/{}", fd.as_raw_fd()), flags)
    }

    fn file(fd: &OwnedFd) -> File {
        File::from(fd.try_clone().unwrap())
    }

    fn pipe(flags: i32) -> [OwnedFd; 2] {
        let mut ends = [0; 2];
        // SAFETY: two ints.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), flags) }, 0);
        ends.map(owned)
    }

    fn eventfd(count: u32, flags: i32) -> OwnedFd {
        // SAFETY: numbers only.
        owned(unsafe { libc::eventfd(count, flags) })
    }

    fn timerfd(clock: i32, flags: i32, value: (i64, i64), interval: (i64, i64)) -> OwnedFd {
        let time = |(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec };
        let spec = libc::itimerspec { it_interval: time(interval), it_value: time(value) };
        // SAFETY: numbers, and a structure that lives through the call.
        unsafe {
            let fd = owned(libc::timerfd_create(clock, libc::TFD_NONBLOCK));
            assert_eq!(
                libc::timerfd_settime(fd.as_raw_fd(), flags, &raw const spec, std::ptr::null_mut()),
                0
            );
            fd
        }
    }

    fn await_readable(fd: &OwnedFd) {
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1);
    }

    pub(super) fn watch(epoll: &OwnedFd, fd: i32, events: i32, data: u64) {
        let mut event = libc::epoll_event { events: events as u32, u64: data };
        // SAFETY: a structure that lives through the call.
        let answer = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    }

    pub fn all() -> Vec<OwnedFd> {
        // SAFETY: a number.
        unsafe { libc::umask(0o027) };
        let mut kept = Vec::new();
        // Regular files.
        let plain = open("plain", libc::O_RDWR);
        file(&plain).write_all(b"hello, world").unwrap();
        file(&plain).seek(SeekFrom::Start(5)).unwrap();
        let twin = plain.try_clone().unwrap();
        kept.extend([open_only("plain", libc::O_RDONLY | libc::O_CLOEXEC), open_only("plain", libc::O_PATH)]);
        let appended = open("appended", libc::O_WRONLY | libc::O_APPEND | libc::O_TRUNC);
        file(&appended).write_all(b"x").unwrap();
        kept.extend([plain, twin, appended, open("direct", libc::O_RDWR | libc::O_DIRECT | libc::O_SYNC)]);
        // Renamed, and unlinked with another link left.
        kept.push(open("old", libc::O_RDWR));
        std::fs::rename("old", "new").unwrap();
        kept.push(open("one", libc::O_RDWR));
        std::fs::hard_link("one", "two").unwrap();
        std::fs::remove_file("one").unwrap();
        // Deleted: a sparse file with two descriptions, a directory, a FIFO.
        let gone = open("gone", libc::O_RDWR);
        file(&gone).write_all_at(b"ghost", 8 << 20).unwrap();
        kept.push(open_only("gone", libc::O_WRONLY | libc::O_APPEND));
        std::fs::remove_file("gone").unwrap();
        file(&gone).seek(SeekFrom::Start(77)).unwrap();
        kept.push(gone);
        std::fs::create_dir("lost").unwrap();
        kept.push(open_only("lost", libc::O_RDONLY | libc::O_DIRECTORY));
        kept.push(open("lost/inner", libc::O_RDWR));
        std::fs::remove_file("lost/inner").unwrap();
        std::fs::remove_dir("lost").unwrap();
        let nameless = open_only(".", libc::O_TMPFILE | libc::O_RDWR | libc::O_APPEND);
        file(&nameless).write_all(b"nameless").unwrap();
        kept.extend([again(&nameless, libc::O_RDONLY), nameless]);
        for name in ["fifo", "ended", "faded"] {
            nix::unistd::mkfifo(name, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        }
        let both = open_only("fifo", libc::O_RDWR);
        file(&both).write_all(b"fifo").unwrap();
        kept.extend([
            open_only("fifo", libc::O_RDONLY),
            open_only("fifo", libc::O_WRONLY | libc::O_NONBLOCK),
            both,
        ]);
        let ended = open_only("ended", libc::O_RDONLY | libc::O_NONBLOCK);
        drop(open_only("ended", libc::O_WRONLY));
        kept.push(ended);
        let faded = open_only("faded", libc::O_RDWR);
        file(&faded).write_all(b"faded").unwrap();
        std::fs::remove_file("faded").unwrap();
        kept.push(faded);
        kept.extend([open_only(".", libc::O_RDONLY), open_only("/dev/null", libc::O_RDWR)]);
        std::os::unix::fs::symlink("nowhere", "link").unwrap();
        kept.push(open_only("link", libc::O_PATH | libc::O_NOFOLLOW));
        // Pipes.
        let [r, w] = pipe(0);
        file(&w).write_all(b"some bytes").unwrap();
        // SAFETY: a number.
        assert!(unsafe { libc::fcntl(w.as_raw_fd(), libc::F_SETPIPE_SZ, 16384) } > 0);
        kept.extend([again(&w, libc::O_RDWR | libc::O_NONBLOCK), r, w]);
        let [r, w] = pipe(libc::O_DIRECT | libc::O_NONBLOCK);
        for packet in ["one", "three", "fives"] {
            file(&w).write_all(packet.as_bytes()).unwrap();
        }
        kept.extend([r, w]);
        let [r, w] = pipe(0);
        file(&w).write_all(b"last words").unwrap();
        drop(w);
        kept.push(r);
        let [r, w] = pipe(0);
        drop(r);
        kept.push(w);
        // Counters, signals, timers, memory.
        let large = eventfd(0, libc::EFD_SEMAPHORE);
        file(&large).write_all(&(1_u64 << 40).to_ne_bytes()).unwrap();
        kept.extend([eventfd(7, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC), large]);
        let mask = (1_u64 << 9) | (1 << 33);
        // SAFETY: a mask that lives through the call.
        kept.push(owned(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, 0) } as i32));
        let due = timerfd(libc::CLOCK_MONOTONIC, 0, (0, 1), (3600, 0));
        await_readable(&due);
        let once = timerfd(libc::CLOCK_BOOTTIME, 0, (0, 1), (0, 0));
        await_readable(&once);
        let date = (4_000_000_000, 5);
        kept.extend([due, once, timerfd(libc::CLOCK_REALTIME, libc::TFD_TIMER_ABSTIME, date, (0, 0))]);
        kept.push(timerfd(libc::CLOCK_MONOTONIC, libc::TFD_TIMER_ABSTIME, date, (9, 9)));
        kept.push(timerfd(libc::CLOCK_MONOTONIC, 0, (5000, 0), (0, 0)));
        // SAFETY: a string with its NUL, and numbers.
        let memory = owned(unsafe { libc::memfd_create(c"some name".as_ptr(), libc::MFD_ALLOW_SEALING) });
        file(&memory).write_all(b"memory").unwrap();
        kept.push(again(&memory, libc::O_RDONLY));
        // SAFETY: numbers.
        unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE | libc::F_SEAL_GROW) };
        kept.push(memory);
        // Made up by the kernel.
        kept.push(open_only("/proc/sys/kernel/ostype", libc::O_RDONLY));
        let status = open_only("/proc/self/status", libc::O_RDONLY);
        file(&status).seek(SeekFrom::Start(11)).unwrap();
        kept.extend([status.try_clone().unwrap(), status]);
        // An owner that is told by another signal.
        let [r, w] = pipe(0);
        fcntl(&r, FcntlArg::F_SETFL(OFlag::O_ASYNC)).unwrap();
        // SAFETY: numbers.
        unsafe {
            libc::fcntl(r.as_raw_fd(), libc::F_SETOWN, libc::getpid());
            libc::fcntl(r.as_raw_fd(), 10, libc::SIGURG);
        }
        kept.extend([r, w]);
        // A number far away.
        // SAFETY: numbers.
        kept.push(owned(unsafe { libc::fcntl(kept[0].as_raw_fd(), libc::F_DUPFD_CLOEXEC, 500) }));
        // A working directory that is gone.
        std::fs::create_dir("here").unwrap();
        std::env::set_current_dir("here").unwrap();
        std::fs::remove_dir("../here").unwrap();
        kept
    }

    pub fn epoll() -> Vec<OwnedFd> {
        let new = || owned(unsafe { libc::epoll_create1(0) }); // SAFETY: a number.
        let [r, w] = pipe(libc::O_NONBLOCK);
        file(&w).write_all(b"seen").unwrap();
        let edge = new();
        watch(&edge, r.as_raw_fd(), libc::EPOLLIN | libc::EPOLLET, 1);
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 8];
        let mut wait = |epoll: &OwnedFd| {
            // SAFETY: room for 8 events.
            unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 8, 0) }
        };
        assert_eq!((wait(&edge), wait(&edge)), (1, 0));
        // A one-shot that has been shot, beside one that has not.
        let shot = new();
        let ready = eventfd(1, 0);
        let [unready, other] = pipe(0);
        watch(&shot, ready.as_raw_fd(), libc::EPOLLIN | libc::EPOLLONESHOT, 2);
        assert_eq!(wait(&shot), 1);
        watch(&shot, unready.as_raw_fd(), libc::EPOLLIN | libc::EPOLLONESHOT, 3);
        let [empty, filler] = pipe(libc::O_NONBLOCK);
        file(&filler).write_all(b"x").unwrap();
        watch(&shot, empty.as_raw_fd(), libc::EPOLLIN | libc::EPOLLONESHOT, 4);
        assert_eq!(wait(&shot), 1);
        let mut byte = [0];
        file(&empty).read_exact(&mut byte).unwrap();
        // An entry whose number is closed, one whose number leads elsewhere, the same description twice.
        let odd = new();
        let counter = eventfd(0, libc::EFD_NONBLOCK);
        let number = counter.try_clone().unwrap();
        watch(&odd, number.as_raw_fd(), libc::EPOLLIN, 5);
        let other_counter = eventfd(3, 0);
        // SAFETY: numbers; `number` owns what it leads to now.
        assert!(unsafe { libc::dup2(other_counter.as_raw_fd(), number.as_raw_fd()) } >= 0);
        watch(&odd, number.as_raw_fd(), libc::EPOLLIN, 6);
        let third = counter.try_clone().unwrap();
        watch(&odd, third.as_raw_fd(), libc::EPOLLOUT | libc::EPOLLET, 7);
        drop(third);
        // One in another, and the kernel's file of mounts, which exists late.
        let outer = new();
        watch(&outer, odd.as_raw_fd(), libc::EPOLLIN, 8);
        let mounts = open_only("/proc/self/mounts", libc::O_RDONLY);
        watch(&outer, mounts.as_raw_fd(), libc::EPOLLPRI, 9);
        watch(&outer, 0, libc::EPOLLIN, 10);
        vec![
            edge,
            r,
            w,
            shot,
            ready,
            unready,
            other,
            empty,
            filler,
            odd,
            counter,
            number,
            other_counter,
            outer,
            mounts,
        ]
    }

    pub fn locks() -> Vec<OwnedFd> {
        let lock = |fd: &OwnedFd, how: i32, kind: i32, start: i64, len: i64| {
            // SAFETY: a plain structure of numbers.
            let mut flock: libc::flock = unsafe { std::mem::zeroed() };
            flock.l_type = kind as i16;
            flock.l_start = start;
            flock.l_len = len;
            // SAFETY: the structure lives through the call.
            assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), how, &raw const flock) }, 0);
        };
        let posix = open("posix", libc::O_RDWR);
        lock(&posix, libc::F_SETLK, libc::F_WRLCK, 10, 5);
        lock(&posix, libc::F_SETLK, libc::F_RDLCK, 100, 0);
        let twin = posix.try_clone().unwrap();
        let ofd = open("ofd", libc::O_RDWR);
        lock(&ofd, libc::F_OFD_SETLK, libc::F_RDLCK, 0, 1);
        lock(&ofd, libc::F_OFD_SETLK, libc::F_WRLCK, 7, 0);
        let whole = open("whole", libc::O_RDONLY);
        let shared = [open("shared", libc::O_RDONLY), open("shared", libc::O_RDONLY)];
        let leased = open("leased", libc::O_RDONLY);
        drop(open("leased-too", libc::O_RDWR));
        // SAFETY: numbers.
        unsafe {
            assert_eq!(libc::flock(whole.as_raw_fd(), libc::LOCK_EX), 0);
            for fd in &shared {
                assert_eq!(libc::flock(fd.as_raw_fd(), libc::LOCK_SH), 0);
            }
            assert_eq!(libc::fcntl(leased.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK), 0);
        }
        let mut kept = vec![posix, twin, ofd, whole, leased];
        kept.extend(shared);
        kept
    }

    /// Parent, child and grandchild, with what they share and what they do not.
    pub fn family() -> Vec<OwnedFd> {
        let shared = open("shared", libc::O_RDWR);
        file(&shared).write_all(b"0123456789").unwrap();
        let [r, w] = pipe(0);
        let status = open_only("/proc/self/status", libc::O_RDONLY);
        let [ready, done] = pipe(0);
        // SAFETY: the child makes only system calls, but for paths, for which glibc's allocator is ready after fork.
        if let ForkResult::Child = unsafe { fork() }.unwrap() {
            drop((r, status));
            let own = open_only("/dev/null", libc::O_RDONLY);
            // SAFETY: numbers; nothing else has 40.
            unsafe {
                libc::dup2(shared.as_raw_fd(), 40);
                libc::umask(0o002);
                libc::close(0);
                libc::chroot(c".".as_ptr());
                // SAFETY: as above.
                if let ForkResult::Child = fork().unwrap() {
                    drop((own, w));
                    libc::close(40);
                    libc::chdir(c"/".as_ptr());
                    libc::write(done.as_raw_fd(), c"!".as_ptr().cast(), 1);
                    loop {
                        libc::pause();
                    }
                }
                loop {
                    libc::pause();
                }
            }
        }
        file(&ready).read_exact(&mut [0]).unwrap();
        drop(w);
        vec![shared, r, status, ready, done]
    }

    pub fn refused() -> Vec<OwnedFd> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).unwrap();
        // SAFETY: numbers.
        let watches = owned(unsafe { libc::inotify_init1(0) });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) } as i32); // SAFETY: numbers.
        vec![a, b, watches, listener.into(), process, open_only("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY)]
    }

    pub fn log() -> Vec<OwnedFd> {
        let log = open("log", libc::O_WRONLY | libc::O_APPEND);
        file(&log).write_all(b"line\n").unwrap();
        let read = open("read", libc::O_RDONLY);
        vec![log, read]
    }
}

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
    assert_eq!(files.check(root.as_fd(), &Options::default()).unwrap(), []);
    let first = restored.workers.get_mut(&1).unwrap();
    let made = files.make(first, image, &|_| None, &Options::default()).unwrap();
    let others: Vec<i32> = files.processes.keys().copied().filter(|&pid| pid != 1).collect();
    let births: Vec<Birth> =
        others.iter().map(|&pid| Birth { pid, signal: libc::SIGCHLD, sibling: false }).collect();
    let born = beget(first, &births).unwrap();
    restored.workers.extend(others.into_iter().zip(born));
    for (&pid, worker) in &mut restored.workers {
        let mut program = Program::new();
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
            _ => {}
        }
        if matches!(description.object, Object::Given(_)) {
            description.flags = 0;
        }
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
    let blockers = survey(&descendants(guest.pid())).unwrap();
    let text: Vec<String> = blockers.iter().map(|b| format!("{}: {}", b.what, b.why)).collect();
    let named = ["unix stream socket with a peer", "inotify", "tcp socket 127.0.0.1:", "pidfd of", "ptmx"];
    for name in named {
        assert!(text.iter().any(|line| line.starts_with("fd ") && line.contains(name)), "{name}: {text:?}");
    }
    assert_eq!(blockers.len(), 6, "{text:?}");
    assert!(matches!(guest.capture(), Err(Error::Blocked(same)) if same == blockers));
    let harmless = Guest::start("all");
    assert_eq!(survey(&descendants(harmless.pid())).unwrap(), []);
}

#[test]
fn a_file_that_has_changed_is_named() {
    use crate::restore::Changed;
    let guest = Guest::start("log");
    let (captured, _) = guest.capture().unwrap();
    let root = File::open("/").unwrap();
    let check = |changed| {
        let options = Options { changed, ..Options::default() };
        let problems = captured.files.check(root.as_fd(), &options).unwrap();
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
    captured.files.truncate(root.as_fd(), &options).unwrap();
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
