//! Jobs with a terminal: ckrun's own in the foreground, a socket's for clients.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::pipes::{Lines, await_end, pidfd};
use ckrun_integration::terminal::{listen_to, receive_fds, resize, terminal};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::{Pid, write};
use serde_json::json;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command};

fn with_terminal(script: &str) -> Container {
    Container::sh(script).with(|c| c["process"]["terminal"] = json!(true))
}

/// ckrun on a terminal of its own, and the user's side of it.
struct User {
    child: Child,
    keyboard: OwnedFd,
    screen: Lines,
}

impl User {
    fn sits_at(mut command: Command, rows: u16, columns: u16) -> (User, OwnedFd) {
        let (master, slave) = terminal(rows, columns);
        let dup = || slave.try_clone().unwrap();
        command.stdin(dup()).stdout(dup()).stderr(dup());
        let child = command.spawn().unwrap();
        (User { child, screen: listen_to(&master), keyboard: master }, slave)
    }

    fn types(&self, keys: &str) {
        assert_eq!(write(&self.keyboard, keys.as_bytes()), Ok(keys.len()));
    }

    fn sees(&mut self, word: &str) -> String {
        self.screen.until(word)
    }

    fn ends(&mut self) -> Option<i32> {
        await_end(pidfd(self.child.id().cast_signed()));
        self.child.wait().unwrap().code()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn run_carries_the_callers_terminal() {
    let container = with_terminal(
        "test -t 0 && test -t 1 && test -t 2 && tty && stty size; trap 'echo interrupted' INT
        echo ready; while :; do read line && { [ $line = end ] && exit 9; echo got $line; }; done",
    );
    let (mut user, slave) = User::sits_at(container.command(&["run", "ID"]), 33, 99);
    let before = tcgetattr(&slave).unwrap();
    assert!(user.sees("/dev/").starts_with("/dev/"));
    user.sees("33 99");
    user.sees("ready\r\n");
    // Raw on this side: the job's terminal does the editing and the ^C.
    assert!(
        !tcgetattr(&slave)
            .unwrap()
            .local_flags
            .intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    );
    user.types("one\r");
    user.sees("got one\r\n");
    user.types("\x03");
    user.sees("interrupted");
    user.types("end\r");
    assert_eq!(user.ends(), Some(9));
    assert_eq!(tcgetattr(&slave).unwrap(), before, "the terminal is as it was");
    container.no_trace();
}

#[test]
fn a_resize_reaches_the_job() {
    let container = with_terminal("trap 'stty size' WINCH; echo ready; while :; do read line; done");
    let (mut user, _slave) = User::sits_at(container.command(&["run", "ID"]), 24, 80);
    user.sees("ready");
    resize(&user.keyboard, 50, 132);
    // ckrun is no process of the terminal's foreground group here, so the kernel does not tell it.
    kill(Pid::from_raw(user.child.id().cast_signed()), Signal::SIGWINCH).unwrap();
    user.sees("50 132");
}

#[test]
fn the_last_words_are_not_lost() {
    let container = with_terminal("seq 20000; exit 4");
    let (mut user, _slave) = User::sits_at(container.command(&["run", "ID"]), 24, 80);
    let said = user.sees("\r\n20000\r\n");
    assert_eq!(said.lines().count(), 20000);
    assert_eq!(user.ends(), Some(4));
}

#[test]
fn the_terminal_is_the_jobs_console_and_controls_it() {
    let container = with_terminal(
        "echo here > /dev/console; echo there > /dev/tty; set -- $(cat /proc/$$/stat); echo $(( $7 != 0 )) $(( $8 == $$ ))
        ls -l /proc/self/fd/0 | sed 's/.*-> //'; stat -c %u $(tty); ls /dev/pts",
    )
    .with(|c| c["process"]["user"]["uid"] = json!(1000));
    let (mut user, _slave) = User::sits_at(container.command(&["run", "ID"]), 24, 80);
    let said = user.sees("ptmx");
    assert!(said.starts_with("here\r\nthere\r\n1 1\r\n"), "{said:?}");
    assert_eq!(user.ends(), Some(0));
}

#[test]
fn without_a_terminal_of_its_own_run_reads_a_pipe() {
    let container = with_terminal("read line; echo got $line; cat; echo end");
    let mut running = container.start(&["run", "ID"]);
    running.say("one");
    assert!(running.stdout.until("got one").contains("got one"));
    // The end of the input is ^D to the job.
    let ended = running.wait().exits(0);
    assert!(ended.stdout.contains("end"), "{ended:?}");
}

fn answers(master: &OwnedFd, job: &mut Lines) {
    write(master, b"hello\n").unwrap();
    job.until("got hello\r\n");
}

#[test]
fn a_console_socket_receives_the_master() {
    let container = with_terminal("echo ready; stty size; while read line; do echo got $line; done")
        .with(|c| c["process"]["consoleSize"] = json!({"height": 21, "width": 77}));
    let path = container.file("console");
    let listener = UnixListener::bind(&path).unwrap();
    let live =
        container.create_by(container.command(&["create", "--console-socket", path.to_str().unwrap(), "ID"]));
    let (mut fds, text) = receive_fds(&listener);
    assert_eq!((fds.len(), text.as_slice()), (1, &b"/dev/ptmx"[..]));
    let master = fds.remove(0);
    container.ckrun(&["start", "ID"]).ok();
    let mut job = listen_to(&master);
    job.until("ready\r\n");
    job.until("21 77\r\n");
    answers(&master, &mut job);
    drop((master, job));
    // Nobody holds the master any more: the job is hung up.
    live.await_end();
}

#[test]
fn exec_has_terminals_too() {
    let container = Container::sh("echo up; read end");
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    let (mut user, _slave) = User::sits_at(
        container.command(&[
            "exec",
            "--tty",
            "ID",
            "sh",
            "-c",
            "tty; stty size; read line; echo got $line; exit 6",
        ]),
        41,
        91,
    );
    user.sees("/dev/pts/");
    user.sees("41 91");
    user.types("x\r");
    user.sees("got x");
    assert_eq!(user.ends(), Some(6));

    let path = container.file("console");
    let listener = UnixListener::bind(&path).unwrap();
    let mut exec =
        container.command(&["exec", "--tty", "--detach", "--console-socket", path.to_str().unwrap(), "ID"]);
    exec.args(["sh", "-c", "echo ready; while read line; do echo got $line; done"]);
    let mut child = exec.spawn().unwrap();
    let (fds, text) = receive_fds(&listener);
    assert_eq!((fds.len(), text.as_slice()), (1, &b"/dev/ptmx"[..]));
    assert!(child.wait().unwrap().success());
    let mut job = listen_to(&fds[0]);
    job.until("ready\r\n");
    answers(&fds[0], &mut job);
}

#[test]
fn a_terminal_needs_somebody_who_holds_it() {
    let container = with_terminal("true");
    container.ckrun(&["create", "ID"]).fails(1, &["process.terminal", "--console-socket"]);
    container.ckrun(&["run", "--detach", "ID"]).fails(1, &["process.terminal", "--console-socket"]);
    container
        .ckrun(&["create", "--console-socket", "/nowhere/socket", "ID"])
        .fails(1, &["/nowhere/socket", "no such file"]);
    container.no_trace();
    let container = Container::new();
    container
        .ckrun(&["create", "--console-socket", "/nowhere", "ID"])
        .fails(1, &["--console-socket", "process.terminal"]);
    let long = format!("/tmp/{}", "x".repeat(200));
    let container = with_terminal("true");
    container.ckrun(&["create", "--console-socket", &long, "ID"]).fails(1, &["--console-socket"]);
    container.no_trace();
}

#[test]
fn no_devpts_no_terminal() {
    let container = with_terminal("true").with(|c| {
        c["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "devpts");
    });
    let (mut user, _slave) = User::sits_at(container.command(&["run", "ID"]), 24, 80);
    user.sees("process.terminal");
    assert_eq!(user.ends(), Some(1));
    container.no_trace();
}
