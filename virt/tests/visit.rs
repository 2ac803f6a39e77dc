//! A visit leaves a process as it was, also when the visitor dies in the middle.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use ckrun_virt::program::Program;
use ckrun_virt::tracee::Tracee;
use ckrun_virt::visit::{Visit, stay_on_this_cpu};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::io::Read;
use std::process::{Child, Command, Stdio};

/// A shell that says a number, waits for a line, and so on.
fn shell(script: &str) -> Child {
    Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn maps(pid: Pid) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()
}

/// Fields of status that a visit could have changed.
fn marks(pid: Pid) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kept = ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd", "Cpus_allowed"];
    text.lines().filter(|l| kept.iter().any(|k| l.starts_with(k))).map(str::to_owned).collect()
}

#[test]
fn the_process_answers_and_is_as_it_was() {
    let mut child = shell("trap 'echo hup' HUP; trap '' TRAP; echo one; read line; echo $line");
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut out = child.stdout.take().unwrap();
    let mut four = [0; 4];
    out.read_exact(&mut four).unwrap();
    let before = (maps(pid), marks(pid));

    let cpu = stay_on_this_cpu().unwrap();
    Tracee::catch(pid, 0).unwrap();
    let tracee = Tracee::arrive(pid).unwrap().unwrap();
    let mut visit = Visit::enter(&tracee, cpu).unwrap();
    let mut program = Program::new();
    let me = program.call("getpid", libc::SYS_getpid, &[]);
    let pair = program.room(8);
    program.call("pipe2", libc::SYS_pipe2, &[pair.into(), 0.into()]);
    let bytes = program.put(b"through a pipe");
    program.call("write", libc::SYS_write, &[pair.word(4), bytes.into(), bytes.len.into()]);
    let back = program.room(32);
    let got = program.call("read", libc::SYS_read, &[pair.word(0), back.into(), 32.into()]);
    program.call("close", libc::SYS_close, &[pair.word(0)]);
    program.call("close", libc::SYS_close, &[pair.word(4)]);
    let wrong = program.attempt("close it again", libc::SYS_close, &[pair.word(4)]);
    let answers = visit.run(&tracee, &program).unwrap();
    assert_eq!(answers.of(me).unwrap(), i64::from(pid.as_raw()));
    assert_eq!(answers.of(got).unwrap(), 14);
    assert_eq!(&answers.get(back)[..14], b"through a pipe");
    assert_eq!(answers.of(wrong).unwrap_err(), nix::errno::Errno::EBADF);
    let mut failing = Program::new();
    failing.call("close a bad number", libc::SYS_close, &[(-1).into()]);
    assert_eq!(visit.run(&tracee, &failing).unwrap_err().to_string(), "close a bad number: bad file number");
    visit.leave().unwrap();
    tracee.release().unwrap();

    assert_eq!((maps(pid), marks(pid)), before);
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"two\n").unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "two\n");
    assert!(child.wait().unwrap().success());
}

/// The visitor is killed at the entry to, or the exit from, a system call of the visit, at one after the other.
#[test]
fn the_death_of_the_visitor_at_any_call_harms_nobody() {
    // The first thread reads a line, the second answers, and two do nothing.
    let script = "import queue, sys, threading\n\
                  lines = queue.SimpleQueue()\n\
                  def answer():\n\
                  \x20   for line in iter(lines.get, ''): print(line, end='', flush=True)\n\
                  threading.Thread(target=answer).start()\n\
                  done = threading.Event()\n\
                  for _ in range(2): threading.Thread(target=done.wait).start()\n\
                  for line in sys.stdin: lines.put(line)\n\
                  lines.put('')\n\
                  done.set()";
    let mut child = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut out = child.stdout.take().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut answer = |step: usize| {
        std::io::Write::write_all(&mut input, b"abc\n").unwrap();
        let mut here = [rustix::event::PollFd::new(&out, rustix::event::PollFlags::IN)];
        let patience = rustix::event::Timespec { tv_sec: 120, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut here, Some(&patience)), Ok(1), "no answer after call {step}");
        let mut four = [0; 4];
        out.read_exact(&mut four).unwrap_or_else(|e| panic!("the process died after call {step}: {e}"));
        assert_eq!(&four, b"abc\n");
    };
    answer(0);
    let threads: Vec<Pid> = std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|entry| Pid::from_raw(entry.unwrap().file_name().to_str().unwrap().parse().unwrap()))
        .collect();
    assert_eq!(threads.len(), 4);
    let look = || (maps(pid), threads.iter().map(|&thread| marks(thread)).collect::<Vec<_>>());
    let before = look();
    for step in 1.. {
        // SAFETY: the child only makes system calls and ends with _exit or a signal.
        let visitor = match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let died = std::panic::catch_unwind(|| visit_under_a_tracer(&threads)).is_err();
                // SAFETY: ends the process.
                unsafe { libc::_exit(died.into()) }
            }
            nix::unistd::ForkResult::Parent { child } => child,
        };
        let died = kill_at_call(visitor, step);
        answer(step);
        // Either may still be on its way back from a call that it made for the visitor.
        await_that(|| look() == before, || format!("after call {step}: {:?}, not {before:?}", look()));
        if !died {
            assert!(step > 300, "the visit makes more calls than {step}");
            break;
        }
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

fn await_that(holds: impl Fn() -> bool, what: impl Fn() -> String) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed().as_secs() < 60, "{}", what());
        std::thread::yield_now();
    }
}

fn visit_under_a_tracer(threads: &[Pid]) {
    nix::sys::ptrace::traceme().unwrap();
    nix::sys::signal::raise(Signal::SIGSTOP).unwrap();
    let cpu = stay_on_this_cpu().unwrap();
    let tracees: Vec<Tracee> = threads
        .iter()
        .map(|&thread| {
            Tracee::catch(thread, 0).unwrap();
            Tracee::arrive(thread).unwrap().unwrap()
        })
        .collect();
    let mut visit = Visit::enter(&tracees[0], cpu).unwrap();
    let mut program = Program::new();
    program.call("getpid", libc::SYS_getpid, &[]);
    // Twice in one thread, then in the other, and in the first again.
    for tracee in [&tracees[0], &tracees[0], &tracees[1], &tracees[0]] {
        visit.run(tracee, &program).unwrap();
    }
    let each: Vec<_> = tracees[1..].iter().map(|tracee| (tracee, program.clone())).collect();
    visit.run_each(&each).unwrap();
    visit.leave().unwrap();
    for tracee in tracees {
        tracee.release().unwrap();
    }
}

/// Kills `visitor` after `step` entries to or exits from system calls; false if it ended before.
fn kill_at_call(visitor: Pid, step: usize) -> bool {
    use nix::sys::wait::{WaitStatus, waitpid};
    waitpid(visitor, None).unwrap();
    for _ in 0..step {
        nix::sys::ptrace::syscall(visitor, None).unwrap();
        match waitpid(visitor, None).unwrap() {
            WaitStatus::Exited(_, code) => {
                assert_eq!(code, 0);
                return false;
            }
            WaitStatus::Stopped(..) => {}
            other => panic!("{other:?}"),
        }
    }
    nix::sys::signal::kill(visitor, Signal::SIGKILL).unwrap();
    while !matches!(waitpid(visitor, None).unwrap(), WaitStatus::Signaled(..)) {}
    true
}
