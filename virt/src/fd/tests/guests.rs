//! What the tests' jobs have open.

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
        assert_eq!(libc::timerfd_settime(fd.as_raw_fd(), flags, &raw const spec, std::ptr::null_mut()), 0);
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
    // SAFETY: a number.
    let new = || owned(unsafe { libc::epoll_create1(0) });
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
    // SAFETY: numbers.
    let watches = owned(unsafe { libc::fanotify_init(libc::FAN_CLASS_CONTENT, 0) });
    drop(open("asks", libc::O_RDWR));
    // SAFETY: the path lives through the call.
    let marked = unsafe {
        libc::fanotify_mark(
            watches.as_raw_fd(),
            libc::FAN_MARK_ADD,
            libc::FAN_OPEN_PERM,
            libc::AT_FDCWD,
            c"asks".as_ptr(),
        )
    };
    assert_eq!(marked, 0);
    // SAFETY: numbers; 1 is UFFD_USER_MODE_ONLY.
    let faults = owned(unsafe { libc::syscall(libc::SYS_userfaultfd, 1) } as i32);
    // SAFETY: numbers.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, 1, 0) } as i32);
    vec![watches, faults, process]
}

pub fn log() -> Vec<OwnedFd> {
    let log = open("log", libc::O_WRONLY | libc::O_APPEND);
    file(&log).write_all(b"line\n").unwrap();
    let read = open("read", libc::O_RDONLY);
    vec![log, read]
}
