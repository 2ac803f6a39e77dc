//! The container's terminal: a restarted container has another one, and the job does not see that.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::job::quietly;
use ckrun_integration::pipes::{Lines, await_end, pidfd};
use ckrun_integration::run::{finish, needs};
use ckrun_integration::terminal::{listen_to, receive_fds, resize, terminal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, write};
use serde_json::json;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Stdio};

/// A container with a terminal and the host's programs.
fn with_terminal(words: &[&str]) -> Container {
    let mut container = Container::new().args(words).with(|c| {
        c["process"]["terminal"] = json!(true);
        c["process"]["env"] =
            json!(["PATH=/usr/bin:/bin", "TERM=dumb", "PS1=% ", "PYTHONDONTWRITEBYTECODE=1"]);
    });
    for dir in ["/usr", "/bin", "/sbin", "/lib", "/lib64"].iter().filter(|dir| Path::new(dir).exists()) {
        container = container.mount(dir, "bind", dir, &["rbind", "ro"]);
    }
    container
}

/// The master of a container's terminal.
struct Screen {
    master: OwnedFd,
    said: Lines,
}

impl Screen {
    fn types(&self, keys: &str) {
        assert_eq!(write(&self.master, keys.as_bytes()), Ok(keys.len()));
    }

    fn sees(&mut self, word: &str) -> String {
        self.said.until(word)
    }
}

/// Runs ckrun with a socket that gets the terminal, which is all that it needs.
fn screen(container: &Container, verb: &[&str], name: &str) -> Screen {
    let path = container.file(name);
    let listener = UnixListener::bind(&path).unwrap();
    let socket = path.to_str().unwrap().to_owned();
    let (first, rest) = verb.split_first().unwrap();
    let words = [&[*first, "--detach", "--console-socket", &socket], rest, &["ID"]].concat();
    let mut command = container.command(&words);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let child = command.spawn().unwrap();
    let (mut fds, _) = receive_fds(&listener);
    assert!({ child }.wait().unwrap().success(), "{words:?}");
    let master = fds.remove(0);
    Screen { said: listen_to(&master), master }
}

/// Writes an image, with which the job ends.
fn checkpoint(container: &Container, name: &str) -> String {
    let image = container.file(name).to_str().unwrap().to_owned();
    let end = pidfd(container.pid());
    container.ckrun(&["checkpoint", "--image-path", &image, "ID"]).ok();
    await_end(end);
    image
}

#[test]
fn an_interactive_shell_keeps_its_jobs() {
    needs("bash", "bash");
    let container = with_terminal(&["bash", "--norc", "--noprofile", "-i"]);
    let mut screen = self::screen(&container, &["run"], "first");
    screen.sees("% ");
    resize(&screen.master, 31, 91);
    screen.types("sed -u s/^/+/\n");
    screen.sees("+/\r\n");
    screen.types("a line\n");
    screen.sees("+a line\r\n");
    screen.types("\x1a");
    screen.sees("Stopped");
    screen.sees("% ");
    screen.types("sleep 1000 &\n");
    screen.sees("[2]");
    screen.types("echo ready; tty\n");
    screen.sees("ready\r\n/dev/pts/0\r\n% ");
    screen.types("echo half");
    screen.sees("echo half");
    for generation in ["second", "third"] {
        let image = checkpoint(&container, &format!("{generation}-image"));
        screen = self::screen(&container, &["restore", "--image-path", &image], generation);
        screen.types(" done\n");
        screen.sees("half done\r\n");
        screen.types("jobs\n");
        let jobs = screen.sees("sleep 1000 &");
        assert!(jobs.contains("Stopped") && jobs.contains("sed") && jobs.contains("Running"), "{jobs:?}");
        screen.types("stty size; tty; fg %1\n");
        screen.sees("31 91\r\n/dev/pts/0\r\nsed -u s/^/+/\r\n");
        screen.types("another\n");
        screen.sees("+another\r\n");
        screen.types("\x1a");
        screen.sees("Stopped");
        screen.sees("% ");
        // A job in the foreground, which ^C ends.
        screen.types("sed -u s/^/-/\nto end\n");
        screen.sees("-to end\r\n");
        screen.types("\x03");
        screen.sees("^C");
        screen.sees("% ");
        screen.types("echo half");
        screen.sees("echo half");
    }
    let end = pidfd(container.pid());
    // The second one is for a shell that has not heard yet that its jobs have ended.
    screen.types("\x15kill %1 %2; kill -CONT %1; exit 3\nexit 3\n");
    await_end(end);
}

#[test]
fn a_job_in_the_foreground_stays_there() {
    needs("bash", "bash");
    let container = with_terminal(&["bash", "--norc", "--noprofile", "-i"]);
    let mut screen = self::screen(&container, &["run"], "first");
    screen.sees("% ");
    screen.types("sed -u s/^/+/\n");
    screen.sees("+/\r\n");
    screen.types("up\n");
    screen.sees("+up\r\n");
    // Typed, and not a line yet.
    screen.types("unfini");
    screen.sees("unfini");
    let image = checkpoint(&container, "image");
    screen = self::screen(&container, &["restore", "--image-path", &image], "second");
    screen.types("shed\n");
    screen.sees("+unfinished\r\n");
    screen.types("\x03");
    screen.sees("% ");
}

#[test]
fn a_python_prompt_goes_on() {
    needs("python3", "python3");
    let container = with_terminal(&["python3", "-q", "-I"]);
    let mut screen = self::screen(&container, &["run"], "first");
    screen.sees(">>> ");
    screen.types("x = 6\n");
    screen.sees(">>> ");
    let image = checkpoint(&container, "image");
    screen = self::screen(&container, &["restore", "--image-path", &image], "second");
    screen.types("print(x * 7)\n");
    screen.sees("42\r\n");
    screen.types("exit(4)\n");
    screen.said.rest();
}

#[test]
fn descriptors_of_the_console_by_all_its_names() {
    let script = "exec 5<>/dev/console 6<>/dev/tty 7</dev/pts/0 >/dev/null; trap 'echo resized >&6' WINCH
        stty -echo; echo ready >&5; while :; do read line || continue;
            for fd in 5 6 7; do echo $(readlink /proc/$$/fd/$fd) >&5; done; stty >&6; echo got $line >&6; done";
    let container = Container::sh(script).with(|c| c["process"]["terminal"] = json!(true));
    let mut screen = self::screen(&container, &["run"], "first");
    screen.sees("ready\r\n");
    resize(&screen.master, 11, 44);
    screen.sees("resized\r\n");
    let image = checkpoint(&container, "image");
    screen = self::screen(&container, &["restore", "--image-path", &image], "second");
    screen.types("hello\n");
    let said = screen.sees("got hello\r\n");
    assert!(said.starts_with("/dev/console\r\n/dev/tty\r\n/dev/pts/0\r\n"), "{said:?}");
    assert!(said.contains("-echo"), "{said:?}");
    resize(&screen.master, 12, 44);
    screen.sees("resized\r\n");
}

/// ckrun on a terminal of its own, and the user's side of it.
struct User {
    child: Child,
    screen: Screen,
}

impl User {
    fn sits_at(container: &Container, words: &[&str], rows: u16, columns: u16) -> User {
        let (master, slave) = terminal(rows, columns);
        let dup = || slave.try_clone().unwrap();
        let mut command = container.command(words);
        command.stdin(dup()).stdout(dup()).stderr(dup());
        let child = command.spawn().unwrap();
        User { child, screen: Screen { said: listen_to(&master), master } }
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
fn ckrun_in_the_foreground_carries_the_terminal_again() {
    let container = Container::sh(
        "trap 'stty size' WINCH; echo ready; while :; do read line && { [ $line = end ] && exit 9; echo got $line; }; done",
    )
    .with(|c| c["process"]["terminal"] = json!(true));
    let mut user = User::sits_at(&container, &["run", "--keep", "ID"], 24, 80);
    user.screen.sees("ready\r\n");
    let image = container.file("image").to_str().unwrap().to_owned();
    container.ckrun(&["checkpoint", "--image-path", &image, "ID"]).ok();
    assert_eq!(user.ends(), Some(137));
    container.ckrun(&["delete", "--force", "ID"]).ok();

    // A terminal of the same size is no news.
    let mut user = User::sits_at(&container, &["restore", "--image-path", &image, "ID"], 24, 80);
    user.screen.types("one\r");
    assert_eq!(user.screen.sees("got one\r\n").matches("24 80").count(), 0);
    resize(&user.screen.master, 50, 132);
    kill(Pid::from_raw(user.child.id().cast_signed()), Signal::SIGWINCH).unwrap();
    user.screen.sees("50 132");
    user.screen.types("end\r");
    assert_eq!(user.ends(), Some(9));
    container.no_trace();

    // Another size is.
    let mut user = User::sits_at(&container, &["restore", "--image-path", &image, "ID"], 30, 99);
    user.screen.sees("30 99");
    user.screen.types("end\r");
    assert_eq!(user.ends(), Some(9));
}

#[test]
fn a_job_with_a_terminal_needs_one_again() {
    let container = with_terminal(&["sleep", "1000"]);
    let _screen = self::screen(&container, &["run"], "first");
    let image = checkpoint(&container, "image");
    container.change(|c| c["process"]["terminal"] = json!(false));
    let refused = quietly(&container, &["restore", "--detach", "--image-path", &image, "ID"]);
    refused.fails(1, &["/dev/pts/0", "process.terminal"]);
    container.no_trace();
}

#[test]
fn a_terminal_from_outside_is_given_again_or_missed() {
    let container = Container::sh("echo ready; while read line; do echo got $line; done");
    let mut user = User::sits_at(&container, &["run", "--keep", "ID"], 24, 80);
    user.screen.sees("ready");
    let image = container.file("image").to_str().unwrap().to_owned();
    container.ckrun(&["checkpoint", "--image-path", &image, "ID"]).ok();
    user.ends();
    container.ckrun(&["delete", "--force", "ID"]).ok();

    let mut command = container.command(&["restore", "--image-path", &image, "ID"]);
    command.stdin(Stdio::null());
    finish(command).fails(1, &["standard stream 0", "was a terminal"]);
    container.no_trace();

    let mut user = User::sits_at(&container, &["restore", "--image-path", &image, "ID"], 24, 80);
    user.screen.types("one\n");
    user.screen.sees("got one\r\n");
}
