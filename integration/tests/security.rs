//! What a container must not be able to do to the host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::agent::Agent;
use ckrun_integration::bundle::Container;
use ckrun_integration::run::{binary, finish, install, start};
use ckrun_integration::trace::kill_at_calls;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A ckrun that may be destroyed.
struct Victim {
    path: PathBuf,
    before: Vec<u8>,
}

impl Victim {
    fn of(container: &Container) -> Victim {
        let path = container.file("ckrun-victim");
        install(&binary(), &path);
        Victim { before: fs::read(&path).unwrap(), path }
    }

    fn is_unharmed(&self) {
        assert!(fs::read(&self.path).unwrap() == self.before, "the binary has been written to");
    }
}

fn all_capabilities(config: &mut Value) {
    let mut names: Vec<String> =
        ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID", "SYS_PTRACE", "SYS_ADMIN", "MKNOD"]
            .iter()
            .map(|name| format!("CAP_{name}"))
            .collect();
    names.sort();
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = json!(names);
    }
}

/// The id that a process of the host has in its own pid namespace.
fn inner_pid(pid: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("NSpid:")).unwrap();
    line.split_whitespace().last().unwrap().to_owned()
}

/// The classic: an image whose program is ckrun itself is run, its executable is opened, and written to when it is
/// busy no more.
fn overwrite_through(entry: impl Fn(&Container), arguments: &[&str]) {
    // It tries to write while the program runs, and again after its end, through a descriptor that it keeps.
    let attack = "echo up; read pid; exec 3</proc/$pid/exe && echo opened
        (echo evil >> /proc/$pid/exe) 2>&1; read ended; (echo evil >> /proc/self/fd/3) 2>&1
        (: > /proc/self/fd/3) 2>&1; chmod 777 /proc/self/fd/3 2>&1; echo done";
    let container = Container::sh(attack).with(all_capabilities);
    entry(&container);
    let fifo = container.rootfs().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let victim = Victim::of(&container);
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    // Inside, it waits for a reader of its log: as long as the test wants.
    let pid_file = container.file("pid");
    let words = ["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), "ID", "/entry"];
    let words = [&words, arguments].concat();
    finish(container.command_of(&victim.path, &words)).exits(0);
    let pid = fs::read_to_string(&pid_file).unwrap();
    live.say(&inner_pid(&pid));
    assert_eq!(live.stdout.line(), "opened");
    let first = live.stdout.line();
    assert!(["Text file busy", "Read-only file system"].iter().any(|why| first.ends_with(why)), "{first}");
    let end = ckrun_integration::pipes::pidfd(pid.parse().unwrap());
    let mut said = String::new();
    fs::File::open(&fifo).unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("error"), "it was ckrun that ran inside: {said:?}");
    ckrun_integration::pipes::await_end(end);
    live.say("ended");
    for _ in 0..3 {
        let refused = live.stdout.line();
        assert!(refused.ends_with("Read-only file system"), "{refused}");
    }
    assert_eq!(live.stdout.line(), "done");
    victim.is_unharmed();
}

#[test]
fn it_is_behind_its_shield_before_the_c_library_begins() {
    let calls = RefCell::new(Vec::new());
    let note = |number| {
        calls.borrow_mut().push(number);
        number == libc::SYS_set_tid_address
    };
    let mut command = Command::new(binary());
    command.arg("exec");
    kill_at_calls(command, note, 1);
    let mut calls = calls.into_inner();
    // One for the beginning of a call, one for its end.
    calls.dedup();
    let shield = [libc::SYS_statfs, libc::SYS_open_tree, libc::SYS_mount_setattr, libc::SYS_execveat];
    // The kernel calls the end of any exec execve(2).
    let first = [&shield[..], &[libc::SYS_execve, libc::SYS_statfs]].concat();
    assert!(calls.starts_with(&first), "{calls:?}");
}

#[test]
fn the_binary_can_not_be_overwritten_through_a_link_to_it() {
    let link = |container: &Container| symlink("/proc/self/exe", container.rootfs().join("entry")).unwrap();
    overwrite_through(link, &["--log", "/fifo", "state", "x"]);
}

#[test]
fn the_binary_can_not_be_overwritten_through_a_script_of_it() {
    // The kernel makes "ckrun run /entry --log /fifo" of it.
    let script = |container: &Container| drop(container.put("/entry", "#!/proc/self/exe run\n", 0o755));
    overwrite_through(script, &["--log", "/fifo"]);
}

#[test]
fn a_ckrun_that_enters_can_not_be_opened_or_written() {
    // The filter stops every execve, that of ckrun's child in the container too: so it can be looked at as it is just
    // before it becomes the job.
    let attack = "echo up; while read pid; do (cat /proc/$pid/exe >/dev/null) 2>&1 && echo readable
        (echo evil >> /proc/$pid/exe) 2>&1 && echo written; echo done; done";
    for privileged in [false, true] {
        let container = Container::sh(attack).with(|c| {
            if privileged {
                all_capabilities(c);
            }
        });
        let socket = container.file("agent");
        container.change(|c| {
            c["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": socket,
                "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_NOTIFY"}],
            });
        });
        let agent = Agent::at(&socket);
        let victim = Victim::of(&container);
        let mut init = start(container.command_of(&victim.path, &["run", "ID"]));
        let (inits, _) = agent.receive();
        inits.allow(inits.next());
        assert_eq!(init.stdout.line(), "up");
        let exec = start(container.command_of(&victim.path, &["exec", "ID", "true"]));
        let (theirs, _) = agent.receive();
        let call = theirs.next();
        init.say(&inner_pid(&call.pid.to_string()));
        // The shell's cat is executed, too.
        inits.allow(inits.next());
        let said = init.stdout.until("done\n");
        assert!(!said.contains("written"), "{said}");
        let wanted = if privileged {
            &["Text file busy", "Read-only file system"][..]
        } else {
            &["Permission denied"]
        };
        let refused = said.lines().rev().nth(1).unwrap_or_default();
        assert!(wanted.iter().any(|why| refused.ends_with(why)), "{said}");
        assert_eq!(said.contains("readable"), privileged, "{said}");
        theirs.allow(call);
        exec.wait().ok();
        victim.is_unharmed();
        container.ckrun(&["kill", "ID", "KILL"]).ok();
        init.wait();
    }
}

/// ckrun with descriptors of the host that its caller forgot to close: 7 is `/`, 9 a file of the host.
fn careless(container: &Container, words: &[&str]) -> Command {
    let mut command = container.command(words);
    let (dir, file) = (fs::File::open("/").unwrap(), fs::File::open("/etc/passwd").unwrap());
    // SAFETY: dup2 is async-signal-safe; the descriptors live in the closure.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in [(dir.as_raw_fd(), 7), (file.as_raw_fd(), 9), (dir.as_raw_fd(), 200)] {
                libc::dup2(from, to);
            }
            Ok(())
        })
    };
    command
}

#[test]
fn no_descriptor_of_the_host_leaks_in() {
    let list = "ls /proc/$$/fd; true";
    let container = Container::sh(list);
    assert_eq!(finish(careless(&container, &["run", "ID"])).ok(), "0\n1\n2");
    container.no_trace();

    let container = Container::sh("echo up; read end");
    let mut live = container.create_by(careless(&container, &["create", "ID"]));
    container.ckrun(&["start", "ID"]).ok();
    assert_eq!(live.stdout.line(), "up");
    let said = finish(careless(&container, &["exec", "ID", "sh", "-c", list])).ok();
    assert_eq!(said, "0\n1\n2");
    let of_the_job = fs::read_dir(format!("/proc/{}/fd", live.pid)).unwrap().count();
    assert_eq!(of_the_job, 3);
    // Nor does anything of the host stay mapped, or a working or root directory.
    for link in ["cwd", "root"] {
        assert_eq!(fs::read_link(format!("/proc/{}/{link}", live.pid)).unwrap(), Path::new("/"));
    }
}

#[test]
fn a_working_directory_of_the_host_is_refused() {
    for number in [3, 4, 5, 6, 7, 8, 9, 10, 200] {
        for cwd in [
            format!("/proc/self/fd/{number}"),
            format!("/proc/self/fd/{number}/.."),
            format!("/link{number}"),
        ] {
            let container = Container::sh("pwd; ls");
            symlink(format!("/proc/self/fd/{number}"), container.rootfs().join(format!("link{number}")))
                .unwrap();
            container.change(|c| c["process"]["cwd"] = json!(cwd));
            let ended = finish(careless(&container, &["run", "ID"]));
            assert!(ended.code == 1 && ended.stdout.is_empty(), "{cwd}: {ended:?}");
            container.no_trace();
            if number != 7 {
                break;
            }
        }
    }
    let container = Container::sh("echo up; read end");
    let mut live = container.up();
    assert_eq!(live.stdout.line(), "up");
    for number in 3..12 {
        let ended =
            finish(careless(&container, &["exec", "--cwd", &format!("/proc/self/fd/{number}"), "ID", "ls"]));
        assert!(ended.code == 255 && ended.stdout.is_empty(), "{number}: {ended:?}");
    }
}

#[test]
fn a_filter_without_no_new_privs_works_for_any_user() {
    let container = Container::sh(
        "grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd|Groups|Uid):' /proc/self/status | tr '\\t' ' '",
    );
    container.change(|c| {
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [5, 6]});
        c["process"]["noNewPrivileges"] = json!(false);
        c["process"]["capabilities"] = json!({"bounding": ["CAP_KILL"]});
        // All that is needed after the filter is loaded, and by the job; setgroups and setresuid are denied.
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["setgroups", "setresuid", "setresgid", "chdir"], "action": "SCMP_ACT_KILL_PROCESS"}],
        });
    });
    let said = container.run().ok();
    let wanted = "Uid: 1000 1000 1000 1000\nGroups: 5 6 \nCapEff: 0000000000000000\nCapBnd: 0000000000000020\nNoNewPrivs: 0\nSeccomp: 2";
    assert_eq!(said, wanted);
    container.change(|c| c["process"]["noNewPrivileges"] = json!(true));
    assert_eq!(container.run().ok(), wanted.replace("NoNewPrivs: 0", "NoNewPrivs: 1"));
}

#[test]
fn groups_of_the_caller_do_not_stay() {
    let container = Container::sh("id -G; id -u; id -g");
    let mut command = container.command(&["run", "ID"]);
    // SAFETY: setgroups is a plain system call.
    unsafe {
        command.pre_exec(|| match libc::setgroups(3, [7, 8, 9].as_ptr()) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    };
    assert_eq!(finish(command).ok(), "0\n0\n0");
}
