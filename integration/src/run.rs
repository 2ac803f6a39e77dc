//! ckrun as a child process of a test.

use crate::pipes::{Lines, any_ready, await_end, pidfd};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

/// The binary under test: `$CKRUN`, else what `cargo build -p ckrun` puts beside the tests.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("CKRUN").map_or_else(
        || std::env::current_exe().expect("current_exe").parent().expect("deps").with_file_name("ckrun"),
        PathBuf::from,
    );
    assert!(path.exists(), "{} is missing: `cargo build -p ckrun` makes it", path.display());
    path
}

/// A program that a test needs and that a Debian package brings.
pub fn needs(program: &str, package: &str) -> PathBuf {
    let dirs = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"];
    let found = dirs.iter().map(|dir| PathBuf::from(dir).join(program)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{program} is missing: install the package {package}"))
}

/// Copies a program to where it is to be executed. Another process does it: in this one another thread may be about to fork,
/// whose child holds everything that is open until its exec, and the program would be found busy.
pub fn install(program: &Path, to: &Path) {
    let mut install = Command::new(needs("install", "coreutils"));
    install.arg("-m755").arg(program).arg(to);
    finish(install).ok();
}

/// Likewise one that is written here.
pub fn install_text(text: &str, to: &Path) {
    let mut file = scratch();
    file.write_all(text.as_bytes()).and_then(|()| file.rewind()).expect("write a temporary file");
    let mut install = Command::new(needs("install", "coreutils"));
    install.args(["-m755", "/dev/stdin"]).arg(to).stdin(file);
    assert!(install.status().expect("spawn install").success(), "{}", to.display());
}

/// A command that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The exit status, or -N when signal N killed it.
    pub code: i32,
    /// What it said.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Ended {
    fn new(status: ExitStatus, stdout: String, stderr: String) -> Ended {
        let code = status.code().unwrap_or_else(|| -status.signal().expect("neither exited nor killed"));
        Ended { code, stdout, stderr }
    }

    /// It must have succeeded without a complaint; what it said, without the last line end.
    pub fn ok(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "stdout: {}", self.stdout);
        self.stdout.trim_end_matches('\n').to_owned()
    }

    /// It must have ended with `code`.
    pub fn exits(self, code: i32) -> Ended {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// It must have failed with `code` and with exactly one line on stderr that holds all of `words`.
    pub fn fails(self, code: i32, words: &[&str]) -> Ended {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert_eq!(self.stderr.matches('\n').count(), 1, "not one line: {:?}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {:?}", self.stderr);
        }
        self
    }
}

/// Lets a command run on another host, as far as its mounts go: `change` is made in a mount namespace of the command's own.
pub fn elsewhere(command: &mut Command, change: impl Fn() -> nix::Result<()> + Send + Sync + 'static) {
    let enter = move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)?;
        Ok(change()?)
    };
    // SAFETY: after the fork there is one thread, and mount(2) and unshare(2) take no lock of the process.
    unsafe { command.pre_exec(enter) };
}

/// Runs a command to its end. What it says goes to files and not to pipes, since a container that it leaves behind keeps
/// its streams open.
pub fn finish(mut command: Command) -> Ended {
    let (mut out, mut err) = (scratch(), scratch());
    command.stdin(Stdio::null()).stdout(out.try_clone().expect("dup")).stderr(err.try_clone().expect("dup"));
    let mut child = Killed(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")));
    let status = child.wait();
    Ended::new(status, text(&mut out), text(&mut err))
}

/// An unnamed file.
fn scratch() -> File {
    tempfile::tempfile().expect("make a temporary file")
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("read back a temporary file");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A child that is killed when the test gives up on it.
#[derive(Debug)]
struct Killed(Child);

impl Killed {
    fn wait(&mut self) -> ExitStatus {
        await_end(pidfd(self.0.id().cast_signed()));
        self.0.wait().expect("wait for a child")
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // Does nothing to one that has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command at work, with pipes for stdin and stdout.
#[derive(Debug)]
pub struct Running {
    child: Killed,
    /// Its standard input; None once closed.
    pub stdin: Option<ChildStdin>,
    /// Its standard output.
    pub stdout: Lines,
    stderr: File,
}

/// Starts a command.
pub fn start(mut command: Command) -> Running {
    let stderr = scratch();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr.try_clone().expect("dup"));
    let mut child = Killed(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")));
    let stdin = child.0.stdin.take();
    let stdout = Lines::new(OwnedFd::from(child.0.stdout.take().expect("stdout is a pipe")));
    Running { child, stdin, stdout, stderr }
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.0.id().cast_signed()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("signal a child");
    }

    /// Writes a line to its standard input.
    pub fn say(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().expect("stdin is open"), "{line}").expect("write to a child");
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Ended {
        self.stdin = None;
        let end = pidfd(self.pid());
        while !any_ready(&[end.as_fd(), self.stdout.as_fd()])[0] {
            self.stdout.fill();
            if !self.stdout.is_open() {
                await_end(&end);
                break;
            }
        }
        self.stdout.fill();
        let status = self.child.wait();
        Ended::new(status, self.stdout.take(), text(&mut self.stderr))
    }
}
