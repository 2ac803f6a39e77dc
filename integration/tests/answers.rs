//! What a job connects to is elsewhere than it thinks: `--map tcp:…`, `--map unix:…`, on one host and after a restart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::guests::guest;
use ckrun_integration::job::{path, quietly};
use ckrun_integration::pipes::{PATIENCE, await_end, pidfd};
use ckrun_integration::run::{install, install_text};
use ckrun_integration::supervisor::{kill_both, kill_supervisor, killed, supervisor};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// A container in the host's network whose job connects to what `words` say.
fn caller(words: &[&str]) -> Container {
    let container = Container::new().args(&[&["/caller"], words].concat());
    install(&guest("caller"), &container.rootfs().join("caller"));
    container.change(|c| {
        let namespaces = c["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
        c["process"]["args"].as_array_mut().unwrap();
        c["root"]["readonly"] = json!(true);
    });
    container
}

/// One end of a connection, to which the job answers.
struct Server<S> {
    link: BufReader<S>,
}

impl<S: Read + Write> Server<S> {
    fn ask(&mut self, line: &str) -> String {
        self.link.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut answer = String::new();
        self.link.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }
}

fn accept(listener: &TcpListener) -> Server<TcpStream> {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Server { link: BufReader::new(stream) }
}

fn accept_unix(listener: &UnixListener) -> Server<UnixStream> {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Server { link: BufReader::new(stream) }
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn checkpoint(container: &Container, image: &Path) {
    let end = pidfd(container.pid());
    container.ckrun(&["checkpoint", "--image-path", path(image), "ID"]).ok();
    await_end(end);
    container.no_trace();
}

#[test]
fn a_host_that_only_the_job_knows_is_elsewhere_after_each_restart() {
    let container = caller(&["emu", "4000"]);
    let (listener, address) = listen();
    quietly(&container, &["run", "--detach", "--map", &format!("tcp:emu:4000={address}"), "ID"]).ok();
    let mut server = accept(&listener);
    let hosts = fs::read_to_string(format!("/proc/{}/root/etc/hosts", container.pid())).unwrap();
    let line = hosts.lines().find(|line| line.ends_with(" emu")).expect("the container knows the name");
    let virtual_name = line.replace(" emu", ":4000");
    assert_eq!(server.ask("one"), format!("one 1 {virtual_name}"));
    // A connection that is made while the job runs.
    assert_eq!(server.ask("again"), format!("again 2 {virtual_name}"));
    let mut server = accept(&listener);
    assert_eq!(server.ask("two"), format!("two 3 {virtual_name}"));
    // Where it has made the connection, both ends have one idea of that.
    let mut local = server.link.get_ref().peer_addr().unwrap();
    assert_eq!(server.ask("local"), format!("local 4 {local}"));
    for generation in 1..4 {
        // Of this the job has not read all.
        server.link.get_mut().write_all(b"ha").unwrap();
        let image = container.file(&format!("image-{generation}"));
        checkpoint(&container, &image);
        drop(server);
        let (listener, address) = listen();
        let restore = ["restore", "--detach", "--image-path", path(&image)];
        let refused = container.ckrun(&[&restore[..], &["ID"]].concat());
        refused.fails(1, &["emu:4000", "--map tcp:emu:4000="]);
        let map = format!("tcp:emu:4000={address}");
        quietly(&container, &[&restore[..], &["--map", &map, "ID"]].concat()).ok();
        server = accept(&listener);
        let count = 7 * generation - 2;
        assert_eq!(server.ask("lf"), format!("half {count} {virtual_name}"));
        assert_ne!(server.link.get_ref().peer_addr().unwrap(), local);
        assert_eq!(server.ask("local"), format!("local {} {local}", count + 1));
        kill_supervisor(&container);
        assert_eq!(server.ask("local"), format!("local {} {local}", count + 2));
        // In the last generations the connection is as old as that.
        if generation == 1 {
            assert_eq!(server.ask("again"), format!("again {} {virtual_name}", count + 3));
            server = accept(&listener);
            local = server.link.get_ref().peer_addr().unwrap();
        } else {
            assert_eq!(server.ask("once more"), format!("once more {} {virtual_name}", count + 3));
        }
        assert_eq!(server.ask("new"), format!("new {} {virtual_name}", count + 4));
        assert_eq!(server.ask("local"), format!("local {} {local}", count + 5));
        kill_supervisor(&container);
        assert_eq!(server.ask("last"), format!("last {} {virtual_name}", count + 6));
        container.ckrun(&["plugin", "restart", "ID"]).exits(0);
        let shown = container.ckrun(&["ids", "ID", "--to-real", "sock:emu:4000"]).ok();
        assert_eq!(shown.trim_end(), format!("sock:{address}"));
    }
    let end = pidfd(container.pid());
    server.link.get_ref().shutdown(Shutdown::Both).unwrap();
    await_end(end);
    container.ckrun(&["delete", "--force", "ID"]).ok();
    container.no_trace();
}

/// A container whose job has connected by a path at which the host's directory is mounted.
#[test]
fn a_socket_outside_is_connected_to_again_where_that_is_asked_for() {
    let container = caller(&["/outside/real.sock"]);
    let dir = container.file("shared");
    fs::create_dir(&dir).unwrap();
    let container = container.mount("/outside", "bind", &dir, &["rbind"]);
    let real = dir.join("real.sock");
    let listener = UnixListener::bind(&real).unwrap();
    container.ckrun(&["run", "--detach", "ID"]).ok();
    let mut server = accept_unix(&listener);
    assert_eq!(server.ask("one"), format!("one 1 {}", real.display()));
    let image = container.file("image");
    let refused = container.ckrun(&["checkpoint", "--image-path", path(&image), "ID"]);
    refused.fails(1, &["stream socket connected to", "outside of the job", "--ext-unix-sk"]);
    assert_eq!(server.ask("two"), format!("two 2 {}", real.display()));

    // What the job has not read nobody could send again.
    let signal = |name| kill(Pid::from_raw(container.pid()), name).unwrap();
    signal(Signal::SIGSTOP);
    server.link.get_mut().write_all(b"ha").unwrap();
    let words = ["checkpoint", "--image-path", path(&image), "--ext-unix-sk", "ID"];
    container.ckrun(&words).fails(1, &["/outside/real.sock", "2 bytes", "not read"]);
    signal(Signal::SIGCONT);
    assert_eq!(server.ask("lf"), format!("half 3 {}", real.display()));

    let end = pidfd(container.pid());
    container.ckrun(&words).ok();
    await_end(end);
    drop((server, listener));
    fs::remove_file(&real).unwrap();
    let restore = ["restore", "--detach", "--image-path", path(&image)];
    container.ckrun(&[&restore[..], &["ID"]].concat()).fails(1, &["/outside/real.sock", "--ext-unix-sk"]);
    let again = [&restore[..], &["--ext-unix-sk", "ID"]].concat();
    container.ckrun(&again).fails(1, &["/outside/real.sock", "not in the container"]);
    let listener = UnixListener::bind(&real).unwrap();
    container.ckrun(&again).ok();
    let mut server = accept_unix(&listener);
    assert_eq!(server.ask("three"), format!("three 4 {}", real.display()));
    let end = pidfd(container.pid());
    drop(server);
    await_end(end);
    container.ckrun(&["delete", "--force", "ID"]).ok();
    container.no_trace();
}

#[test]
fn a_path_of_the_job_leads_to_a_socket_of_the_host() {
    let container = caller(&["/run/emu.sock"]);
    let real = container.file("real.sock");
    let listener = UnixListener::bind(&real).unwrap();
    let map = format!("unix:/run/emu.sock={}", real.display());
    quietly(&container, &["run", "--detach", "--map", &map, "ID"]).ok();
    let mut server = accept_unix(&listener);
    assert_eq!(server.ask("one"), "one 1 /run/emu.sock");
    assert_eq!(server.ask("again"), "again 2 /run/emu.sock");
    let mut server = accept_unix(&listener);
    assert_eq!(server.ask("two"), "two 3 /run/emu.sock");
    for generation in 1..3 {
        let image = container.file(&format!("image-{generation}"));
        checkpoint(&container, &image);
        drop(server);
        let real = container.file(&format!("real-{generation}.sock"));
        let listener = UnixListener::bind(&real).unwrap();
        let restore = ["restore", "--detach", "--image-path", path(&image)];
        let refused = container.ckrun(&[&restore[..], &["ID"]].concat());
        refused.fails(1, &["/run/emu.sock", "--map unix:/run/emu.sock="]);
        let map = format!("unix:/run/emu.sock={}", real.display());
        quietly(&container, &[&restore[..], &["--map", &map, "ID"]].concat()).ok();
        server = accept_unix(&listener);
        let count = 4 * generation;
        assert_eq!(server.ask("half"), format!("half {count} /run/emu.sock"));
        assert_eq!(server.ask("again"), format!("again {} /run/emu.sock", count + 1));
        server = accept_unix(&listener);
        assert_eq!(server.ask("new"), format!("new {} /run/emu.sock", count + 2));
        assert_eq!(server.ask("last"), format!("last {} /run/emu.sock", count + 3));
        let shown = container.ckrun(&["ids", "ID", "--to-real", "sock:/run/emu.sock"]).ok();
        assert_eq!(shown.trim_end(), format!("sock:{}", real.display()));
    }
    let end = pidfd(container.pid());
    drop(server);
    await_end(end);
    container.ckrun(&["delete", "--force", "ID"]).ok();
    container.no_trace();
}

/// Binds /dev/emu0 to /dev/random, of which every host has one, and claims the command that asks it for a number. That the job
/// knows the number by the name 7 it says at the start; after a restart by which virtual one it is bound, it writes down.
const PLUGIN: &str = r#"#!/usr/bin/env python3
import os, sys
sys.path.insert(0, os.environ.get("KIT", "@KIT@"))
from ckrun_plugin import Plugin, Result, device, handle

RNDGETENTCNT = "0x80045200"

class Emulator(Plugin):
    def tie(self, number):
        claim = {"device": "/dev/emu0", "command": RNDGETENTCNT,
                 "handles": [{"space": "session", "offset": 0, "size": 4, "direction": "out"}]}
        real = int(open("/proc/sys/kernel/random/entropy_avail").read())
        return Result(bindings=[device("/dev/emu0", "/dev/random"), handle("session", number, real)], ioctls=[claim])

    def init(self, event):
        return self.tie(7)

    def restart(self, event):
        kept = [binding for binding in event.bindings if binding["kind"] == "handle"]
        return self.tie(kept[0]["virtual"])

sys.exit(Emulator().serve())
"#;

#[test]
fn a_number_of_a_driver_is_the_jobs_own_in_a_claimed_ioctl() {
    let container = caller(&["emu", "4000"]);
    container.change(|c| {
        let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 8, "access": "rw"});
        c["linux"]["resources"]["devices"].as_array_mut().unwrap().push(rule);
    });
    let plugin = container.file("emu");
    let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/python");
    install_text(&PLUGIN.replace("@KIT@", path(&kit)), &plugin);
    let plugin = path(&plugin);
    let (listener, address) = listen();
    let map = format!("tcp:emu:4000={address}");
    quietly(&container, &["run", "--detach", "--plugin", plugin, "--map", &map, "ID"]).ok();
    let mut server = accept(&listener);
    assert_eq!(server.ask("ioctl /dev/emu0"), "ioctl /dev/emu0 1 7");
    // The same command of another device, and of the same device by another name, is the driver's alone.
    let native = server.ask("ioctl /dev/urandom");
    assert_ne!(native, "ioctl /dev/urandom 2 7");
    // Who answers is killed, and the number stays the job's.
    kill_supervisor(&container);
    assert_eq!(server.ask("ioctl /dev/emu0"), "ioctl /dev/emu0 3 7");
    container.ckrun(&["plugin", "restart", "ID"]).exits(0);
    let image = container.file("image");
    checkpoint(&container, &image);
    drop(server);
    let words =
        ["restore", "--detach", "--image-path", path(&image), "--plugin", plugin, "--map", &map, "ID"];
    quietly(&container, &words).ok();
    let mut server = accept(&listener);
    assert_eq!(server.ask("ioctl /dev/emu0"), "ioctl /dev/emu0 4 7");
    let end = pidfd(container.pid());
    drop(server);
    await_end(end);
    container.ckrun(&["delete", "--force", "ID"]).ok();
    container.no_trace();
}

/// The threads of a process that wait in a system call.
fn wait_in(process: i32, number: libc::c_long) -> bool {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let call = |task: fs::DirEntry| fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
    tasks.map(|task| call(task.unwrap())).any(|call| call.split(' ').next() == Some(&number.to_string()))
}

#[test]
fn a_job_without_a_supervisor_and_without_its_keeper_is_told() {
    let container = caller(&["emu", "4000"]);
    let (listener, address) = listen();
    quietly(&container, &["run", "--detach", "--map", &format!("tcp:emu:4000={address}"), "ID"]).ok();
    let mut server = accept(&listener);
    kill_both(&container);
    let end = pidfd(container.pid());
    // The answer needs getpeername(2).
    server.link.get_mut().write_all(b"one\n").unwrap();
    await_end(end);
    container.ckrun(&["delete", "--force", "ID"]).ok();
    container.no_trace();
}

#[test]
fn a_connection_that_is_being_made_outlives_the_supervisor() {
    let container = caller(&["/run/emu.sock"]);
    let real = container.file("real.sock");
    // It takes one connection before it is asked to accept it, and no more.
    let full =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&full, &rustix::net::SocketAddrUnix::new(&real).unwrap()).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let listener = UnixListener::from(full);
    let map = format!("unix:/run/emu.sock={}", real.display());
    quietly(&container, &["run", "--detach", "--map", &map, "ID"]).ok();
    let mut server = accept_unix(&listener);
    assert_eq!(server.ask("one"), "one 1 /run/emu.sock");
    let mut count = 1;
    for _ in 0..3 {
        let other = UnixStream::connect(&real).unwrap();
        count += 1;
        assert_eq!(server.ask("again"), format!("again {count} /run/emu.sock"));
        let victim = supervisor(&container);
        while !wait_in(victim, libc::SYS_connect) {
            std::thread::yield_now();
        }
        killed(victim);
        listener.accept().unwrap();
        drop(other);
        server = accept_unix(&listener);
        count += 1;
        assert_eq!(server.ask("more"), format!("more {count} /run/emu.sock"));
    }
    let end = pidfd(container.pid());
    drop(server);
    await_end(end);
    container.ckrun(&["delete", "--force", "ID"]).ok();
    container.no_trace();
}

/// Connects to the address in its options, and gives the connection to the job.
const GIVER: &str = r#"#!/usr/bin/env python3
import os, socket, sys
sys.path.insert(0, os.environ.get("KIT", "@KIT@"))
from ckrun_plugin import Plugin, Result, connection

class Emulator(Plugin):
    def tie(self):
        host, port = self.ckrun.options["address"].rsplit(":", 1)
        self.link = socket.create_connection((host, int(port)))
        self.link.sendall(b"from the plugin\n")
        return Result(bindings=[connection("tcp:emu:4000", fd=self.link.fileno())])

    def running(self, event):
        self.link.close()

    def init(self, event):
        return self.tie()

    def restart(self, event):
        return self.tie()

sys.exit(Emulator().serve())
"#;

#[test]
fn a_connection_that_a_plugin_has_made_is_the_jobs() {
    let container = caller(&["emu", "4000"]);
    let plugin = container.file("emu");
    let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/python");
    install_text(&GIVER.replace("@KIT@", path(&kit)), &plugin);
    let (listener, address) = listen();
    // An option is key=value,…, and the name of an address has a colon in it.
    let words = |address: &str| format!("{}:address={address}", path(&plugin));
    quietly(&container, &["run", "--detach", "--plugin", &words(&address), "ID"]).ok();
    let mut server = accept(&listener);
    assert_eq!(server.answer(), "from the plugin");
    let hosts = fs::read_to_string(format!("/proc/{}/root/etc/hosts", container.pid())).unwrap();
    let line = hosts.lines().find(|line| line.ends_with(" emu")).expect("the container knows the name");
    let name = line.replace(" emu", ":4000");
    assert_eq!(server.ask("one"), format!("one 1 {name}"));
    let image = container.file("image");
    checkpoint(&container, &image);
    drop(server);
    let (listener, address) = listen();
    let restore = ["restore", "--detach", "--image-path", path(&image), "--plugin", &words(&address), "ID"];
    quietly(&container, &restore).ok();
    let mut server = accept(&listener);
    assert_eq!(server.answer(), "from the plugin");
    assert_eq!(server.ask("two"), format!("two 2 {name}"));
    // Another one is made as always.
    assert_eq!(server.ask("again"), format!("again 3 {name}"));
    assert_eq!(server.answer(), "", "the job has closed the first, and nobody else holds it");
    let mut server = accept(&listener);
    assert_eq!(server.ask("three"), format!("three 4 {name}"));
    let end = pidfd(container.pid());
    drop(server);
    await_end(end);
    container.ckrun(&["delete", "--force", "ID"]).ok();
    container.no_trace();
}

#[test]
fn the_jobs_own_filter_that_asks_somebody_can_not_be_had_together_with_it() {
    let container = caller(&["emu", "4000"]);
    container.change(|c| {
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/nowhere",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
        });
    });
    let refused = container.ckrun(&["run", "--detach", "--map", "tcp:emu:4000=127.0.0.1:1", "ID"]);
    refused.fails(1, &["linux.seccomp.syscalls", "SCMP_ACT_NOTIFY"]);
    container.no_trace();
}
