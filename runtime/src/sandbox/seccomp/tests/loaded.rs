//! Filters loaded into real processes.

use super::*;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::{ContainerProcessState, State};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
use std::os::unix::net::UnixListener;

/// Forks, loads the filter in the child and exits with what `probe` returns.
fn in_child(filter: &Filter, probe: impl FnOnce(Option<OwnedFd>) -> i32) -> Pid {
    // SAFETY: the child makes system calls only; it neither allocates nor returns.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = filter.load().map_or(111, probe);
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) }
    }
    Pid::from_raw(pid)
}

fn ends(pid: Pid) -> WaitStatus {
    waitpid(pid, None).unwrap()
}

/// The error of a raw call, or 0.
fn errno_of(number: libc::c_long, first: libc::c_long, second: libc::c_long) -> i32 {
    // SAFETY: the probes below take no pointers, or null.
    match unsafe { libc::syscall(number, first, second, 0, 0, 0, 0) } {
        -1 => Errno::last_raw(),
        _ => 0,
    }
}

#[test]
fn errors_are_returned_as_asked() {
    let filter = compile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["getcwd", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["getppid"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["dup"], "action": "SCMP_ACT_ERRNO", "errnoRet": 75, "args":
            [{"index": 0, "value": 1000, "op": "SCMP_CMP_GE"}]},
        {"names": ["dup2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 76, "args": [
            {"index": 0, "value": 2000, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 3000, "op": "SCMP_CMP_EQ"}]},
    ]}));
    let pid = in_child(&filter, |_| {
        let expected = [
            (libc::SYS_getcwd, 0, libc::ENOSYS),
            (libc::SYS_getppid, 0, libc::EPERM),
            (libc::SYS_dup, 1000, 75),
            (libc::SYS_dup, 999, libc::EBADF),
            (libc::SYS_dup2, 2000, 76),
            (libc::SYS_dup2, 3000, 76),
            (libc::SYS_dup2, 2500, libc::EBADF),
        ];
        expected
            .iter()
            .position(|(call, arg, errno)| errno_of(*call, *arg, 0) != *errno)
            .map_or(0, |i| i as i32 + 1)
    });
    assert_eq!(ends(pid), WaitStatus::Exited(pid, 0));
}

#[test]
fn a_call_newer_than_the_profile_is_not_implemented() {
    let filter = compile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["exit_group", "openat2"], "action": "SCMP_ACT_ALLOW"}]}));
    let pid = in_child(&filter, |_| {
        let older = errno_of(libc::SYS_getppid, 0, 0) == libc::EPERM;
        let newer = errno_of(libc::SYS_faccessat2, 0, 0) == libc::ENOSYS;
        i32::from(!(older && newer))
    });
    assert_eq!(ends(pid), WaitStatus::Exited(pid, 0));
}

#[test]
fn deadly_actions_kill() {
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let filter = compile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["getppid"], "action": action}]}));
        let pid = in_child(&filter, |_| errno_of(libc::SYS_getppid, 0, 0));
        assert!(matches!(ends(pid), WaitStatus::Signaled(_, Signal::SIGSYS, _)), "{action}");
    }
}

#[test]
fn without_a_tracer_a_traced_call_is_not_implemented_and_a_logged_one_works() {
    let filter = compile(json!({"defaultAction": "SCMP_ACT_LOG", "flags": ["SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"], "syscalls": [
        {"names": ["getppid"], "action": "SCMP_ACT_TRACE"}]}));
    let pid = in_child(&filter, |_| {
        i32::from(errno_of(libc::SYS_getppid, 0, 0) != libc::ENOSYS || errno_of(libc::SYS_getuid, 0, 0) != 0)
    });
    assert_eq!(ends(pid), WaitStatus::Exited(pid, 0));
}

#[test]
fn an_engines_profile_loads() {
    let pid = in_child(&Filter::compile(&engine_profile()).unwrap(), |_| {
        let clone3 = errno_of(libc::SYS_clone3, 0, 0) == libc::ENOSYS;
        let mount = errno_of(libc::SYS_umount2, 0, 0) == libc::EPERM;
        let vsock = errno_of(libc::SYS_socket, 40, 1) == libc::EPERM;
        let unix = errno_of(libc::SYS_socket, 1, 1) == 0;
        i32::from(!(clone3 && mount && vsock && unix))
    });
    assert_eq!(ends(pid), WaitStatus::Exited(pid, 0));
}

#[test]
fn loading_needs_a_privilege_and_says_so() {
    let filter = compile(json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    // SAFETY: the child makes system calls only, apart from the message of an error, and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: as above; the raw call changes this process only.
        unsafe {
            libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534);
            let refused = matches!(filter.load(), Err(Failure { errno: Errno::EACCES, .. }));
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::_exit(i32::from(!(refused && filter.load().is_ok())));
        }
    }
    let pid = Pid::from_raw(pid);
    assert_eq!(ends(pid), WaitStatus::Exited(pid, 0));
}

#[test]
fn the_listener_reaches_its_agent_and_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent");
    let filter = compile(json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
        "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"], "syscalls": [
        {"names": ["getppid"], "action": "SCMP_ACT_NOTIFY"}]}));
    assert!(filter.notifies());
    let socket = UnixListener::bind(&path).unwrap();
    let agent = std::thread::spawn(move || {
        let (stream, _) = socket.accept().unwrap();
        let mut text = [0; 4096];
        let mut space = nix::cmsg_space!(std::os::fd::RawFd);
        let mut parts = [std::io::IoSliceMut::new(&mut text)];
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
            panic!("no descriptor");
        };
        let length = message.bytes;
        let request = libseccomp::ScmpNotifReq::receive(fds[0]).unwrap();
        let answer =
            libseccomp::ScmpNotifResp::new_val(request.id, 4242, libseccomp::ScmpNotifRespFlags::empty());
        answer.respond(fds[0]).unwrap();
        serde_json::from_slice::<ContainerProcessState>(&text[..length]).unwrap()
    });

    let (mut told, tell) = std::io::pipe().unwrap();
    let pid = in_child(&filter, |fd| {
        let number = fd.map_or(-1, IntoRawFd::into_raw_fd).to_ne_bytes();
        // SAFETY: writes four bytes that live through the call.
        let answer = unsafe {
            libc::write(tell.as_raw_fd(), number.as_ptr().cast(), number.len());
            libc::syscall(libc::SYS_getppid)
        };
        i32::from(answer != 4242)
    });
    let mut number = [0; 4];
    told.read_exact(&mut number).unwrap();
    let process = ckrun_virt::Process::open_now(pid).unwrap();
    let fd = notify::fetch(process.as_fd(), i32::from_ne_bytes(number)).unwrap();

    let mut state = ContainerProcessState::default();
    let mut container = State::default();
    container.set_id("box".into());
    state.set_fds(vec![notify::FD_NAME.into()]).set_pid(pid.as_raw()).set_state(container);
    state.set_metadata(Some("opaque".into()));
    notify::send_listener(&path, &state, fd.as_fd()).unwrap();
    assert_eq!(agent.join().unwrap(), state);
    assert_eq!(ends(pid), WaitStatus::Exited(pid, 0));
}

#[test]
fn an_agent_that_is_not_there() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let path = std::path::Path::new("/nonexistent/agent");
    let said =
        notify::send_listener(path, &ContainerProcessState::default(), null.as_fd()).unwrap_err().to_string();
    assert_eq!(said, "linux.seccomp.listenerPath: connect to /nonexistent/agent: no such file or directory");
}

#[test]
fn fetching_from_a_process_says_what() {
    let process = ckrun_virt::Process::open_now(Pid::this()).unwrap();
    let said = notify::fetch(process.as_fd(), 9999).unwrap_err().to_string();
    assert_eq!(said, "fetch descriptor 9999 of the container's init: bad file number");
}
