//! Tasks are made with the ids and relations that are asked for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use ckrun_virt::nursery::{AREA, Birth, beget, beget_threads, take_over};
use ckrun_virt::program::Program;
use ckrun_virt::status::Status;
use ckrun_virt::sys::{Clone3, Cloned};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const FREE: std::ops::Range<u64> = 0x10000..0x10000 + AREA;

/// A process that is the first one of a pid namespace and waits for what comes through its socket, number 3 here and
/// there.
fn init() -> (Pid, OwnedFd, i32) {
    let (here, there) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let clone = Clone3 { flags: libc::CLONE_NEWPID as u64, cgroup: None };
    // SAFETY: the child only makes system calls.
    match unsafe { clone.call() }.unwrap() {
        Cloned::Child => {
            let mut byte = 0_u8;
            // SAFETY: reads one byte into a local, for ever; then ends.
            unsafe {
                libc::read(there.as_raw_fd(), (&raw mut byte).cast(), 1);
                libc::_exit(9)
            }
        }
        Cloned::Parent(pid, _) => (pid, here, there.as_raw_fd()),
    }
}

fn status(pid: Pid) -> Status {
    Status::parse(&std::fs::read(format!("/proc/{pid}/status")).unwrap())
}

#[test]
fn a_family_with_chosen_ids() {
    let (pid, here, there) = init();
    let mut first = take_over(pid, here, there, FREE).unwrap();
    let births = [5000, 17, 4].map(|pid| Birth { pid, signal: libc::SIGCHLD, sibling: false, shared: 0 });
    let mut children = beget(&mut first, &births).unwrap();
    let threads = beget_threads(&mut children[0], &[30, 20]).unwrap();
    let brother = beget(&mut children[1], &[Birth { pid: 99, signal: 0, sibling: true, shared: 0 }]).unwrap();
    assert_eq!(status(children[0].host()).ns_pid.last(), Some(&5000));
    assert_eq!(status(children[2].host()).ns_pid.last(), Some(&4));
    assert_eq!(status(threads[1].host()).ns_pid.last(), Some(&20));
    assert_eq!(status(threads[1].host()).ns_tgid.last(), Some(&5000));
    assert_eq!(status(brother[0].host()).ppid, pid.as_raw());

    // Every one of them can work.
    for (worker, id) in threads.into_iter().chain(brother).chain(children).zip([30, 20, 99, 5000, 17, 4]) {
        let mut worker = worker;
        let mut program = Program::new();
        let tid = program.call("gettid", libc::SYS_gettid, &[]);
        assert_eq!(worker.run(&program).unwrap().of(tid).unwrap(), id);
    }
    kill(pid, Signal::SIGKILL).unwrap();
}

#[test]
fn a_descriptor_is_handed_over() {
    let (pid, here, there) = init();
    let mut first = take_over(pid, here, there, FREE).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    for _ in 0..2 {
        let number = first.give(file.as_fd()).unwrap();
        let mut program = Program::new();
        let text = program.put(b"hello");
        program.call("write", libc::SYS_write, &[number.into(), text.into(), text.len.into()]);
        first.run(&program).unwrap();
        assert_eq!(rustix::fs::fstat(first.pidfd_getfd(number).unwrap()).unwrap().st_size % 5, 0);
    }
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hellohello");
    file.flush().unwrap();
    kill(pid, Signal::SIGKILL).unwrap();
}
