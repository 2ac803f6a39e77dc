//! What runs on emulator hosts: testbenches and JTAG adapters, and moves of them that must change nothing.

use super::Host;
use crate::guests::guest;
use crate::pipes::{PATIENCE, any_ready, await_end, pidfd};
use crate::run::{install, needs};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What OpenOCD does: it reads the design's cycle, writes a register, reads another, and lets cycles pass. What is written
/// changes what will be read, for ever: one scan lost or done twice, and the log is another.
const SCAN: &str = r#"
adapter driver remote_bitbang
remote_bitbang host emu
remote_bitbang port 4001
transport select jtag
jtag newtap design tap -irlen 4 -expected-id 0x1c0de0ff
gdb_port disabled
tcl_port disabled
telnet_port disabled
init
set log [open /tmp/log w]
set progress [open /tmp/progress w]
for {set n 1} {$n <= SCANS} {incr n} {
    irscan design.tap 2
    set cycle [drscan design.tap 64 0]
    irscan design.tap 3
    drscan design.tap 40 [expr {0x8600000000 | ($n * 40503 % 65536)}]
    puts $log "$n $cycle [drscan design.tap 40 0x0600000000] [drscan design.tap 40 0x1000000000]"
    runtest 7
    if {$n % 10 == 0} {
        puts $progress "$n cycle $cycle"
        $progress flush
    }
}
close $log
close $progress
shutdown
"#;

impl Host {
    /// Makes the bundle of the testbench at /srv/NAME, with one link.
    pub fn bundle(&self, name: &str, link: &str, transactions: u64) {
        self.bundle_with(name, link, transactions, &|testbench| testbench);
    }

    /// Makes that of the testbench and of a JTAG adapter (guests/scan.c) that works at the same time, on another link.
    pub fn bench_and_adapter(&self, name: &str, transactions: u64) {
        self.bundle_with(name, "tcp:emu:4000", transactions, &|testbench| {
            format!(
                "scan emu 4001 /tmp/ready 2>/tmp/said & until test -e /tmp/ready; do :; done; {testbench}; ended=$?; \
                 kill $!; wait $! && test $ended = 0"
            )
        });
        install(&guest("scan"), &self.path("/srv").join(name).join("rootfs/bin/scan"));
    }

    fn bundle_with(&self, name: &str, link: &str, transactions: u64, command: &dyn Fn(String) -> String) {
        let rootfs = self.path("/srv").join(name).join("rootfs");
        fs::create_dir_all(rootfs.join("bin")).expect("make a rootfs");
        install(&needs("busybox", "busybox-static"), &rootfs.join("bin/busybox"));
        for name in ["sh", "tail", "md5sum", "mkfifo"] {
            symlink("busybox", rootfs.join("bin").join(name)).expect("link to busybox");
        }
        install(&super::program("ckrun-softemu"), &rootfs.join("bin/ckrun-softemu"));
        let testbench = format!(
            "ckrun-softemu testbench --link {link} --transactions {transactions} --progress 50 --log /tmp/log \
             >/tmp/progress 2>&1"
        );
        self.bundle_of(name, &command(testbench), link.starts_with("tcp:"), &[]);
    }

    /// Makes that of a debugger, OpenOCD as Debian has it, which scans the test access port so many times.
    pub fn debugger(&self, name: &str, scans: u64) {
        needs("openocd", "openocd");
        let rootfs = self.path("/srv").join(name).join("rootfs");
        fs::create_dir_all(rootfs.join("etc")).expect("make a rootfs");
        fs::write(rootfs.join("etc/scan.cfg"), SCAN.replace("SCANS", &scans.to_string()))
            .expect("write scan.cfg");
        let programs: Vec<&str> =
            ["/usr", "/bin", "/lib", "/lib64"].into_iter().filter(|path| Path::new(path).exists()).collect();
        self.bundle_of(name, "openocd -f /etc/scan.cfg >/tmp/said 2>&1", true, &programs);
    }

    /// Makes a bundle in which a command runs that writes a log to /tmp/log and its progress to /tmp/progress. It has directories
    /// of the host, and perhaps its network.
    fn bundle_of(&self, name: &str, command: &str, network: bool, directories: &[&str]) {
        let bundle = self.path("/srv").join(name);
        for dir in ["dev", "proc", "sys", "tmp"] {
            fs::create_dir_all(bundle.join("rootfs").join(dir)).expect("make a rootfs");
        }
        // The log and the progress are in a tmpfs, which goes with the job; the result is where it ends. It does not end
        // before it is asked to: a move that has begun finds it.
        let script = format!(
            "mkfifo /tmp/end; exec 9<>/tmp/end; {command}; echo exit $? >>/tmp/progress; \
             read -r end <&9; {{ tail -n 2 /tmp/progress; md5sum </tmp/log; }} >/result"
        );
        let mut config = crate::bundle::default_config();
        config["process"]["args"] = json!(["sh", "-c", script]);
        config["root"]["readonly"] = json!(false);
        // ckrun comes first: the job is not to be done before a move has begun.
        config["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "nice": 19});
        if network {
            let namespaces = config["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != "network");
        }
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        mounts
            .push(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmp", "options": ["mode=1777"]}));
        for directory in directories {
            let options = ["rbind", "ro"];
            mounts.push(
                json!({"destination": directory, "type": "bind", "source": directory, "options": options}),
            );
        }
        // In truth another host has other cgroups.
        config["linux"]["cgroupsPath"] = json!(format!("/{}-{}-{name}", self.job, self.name));
        fs::write(bundle.join("config.json"), config.to_string()).expect("write config.json");
    }

    /// Starts the job of the bundle /srv/tb with the plugin `emu`.
    pub fn start(&self, plugin: &str) {
        self.quietly(&["run", "--detach", "--bundle", "/srv/tb", "--plugin", plugin, "ID"]).ok();
    }

    /// The first process of a job.
    pub fn pid_of(&self, id: &str) -> i32 {
        let state: Value = serde_json::from_str(&self.ckrun(&["state", id]).ok()).expect("the state is JSON");
        i32::try_from(state["pid"].as_i64().expect("a number")).expect("an id")
    }

    /// Waits until the job that runs here has done so many transactions.
    pub fn reaches(&self, transactions: u64) {
        Host::await_progress(self.pid_of("ID"), transactions);
    }

    fn await_progress(pid: i32, transactions: u64) {
        let progress = PathBuf::from(format!("/proc/{pid}/root/tmp/progress"));
        let end = pidfd(pid);
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("inotify_init1");
        let deadline = Instant::now() + PATIENCE;
        let mut watched = false;
        loop {
            if !watched && progress.exists() {
                inotify::add_watch(&events, &progress, WatchFlags::MODIFY).expect("watch the progress");
                watched = true;
            }
            let text = fs::read_to_string(&progress).unwrap_or_default();
            let last = text.lines().rev().find_map(|line| line.split(' ').next()?.parse::<u64>().ok());
            if last.is_some_and(|done| done >= transactions) {
                return;
            }
            if watched {
                let ready = any_ready(&[events.as_fd(), end.as_fd()]);
                assert!(!ready[1], "it has ended before transaction {transactions}: {text}");
                while rustix::io::read(&events, &mut [0; 4096]).is_ok() {}
            } else {
                assert!(Instant::now() < deadline, "it does not begin");
                std::thread::yield_now();
            }
        }
    }

    /// Waits for the end of the job that runs here: how the testbench ended, its last line, and the digest of its log.
    pub fn outcome(&self) -> String {
        self.outcome_of("ID", "tb")
    }

    /// That of a job of another name in the bundle /srv/BUNDLE.
    pub fn outcome_of(&self, id: &str, bundle: &str) -> String {
        let pid = self.pid_of(id);
        let end = pidfd(pid);
        // Then there is the FIFO.
        Host::await_progress(pid, 1);
        let gate = fs::File::options().write(true).open(format!("/proc/{pid}/root/tmp/end"));
        gate.expect("open a FIFO").write_all(b"\n").expect("write to a FIFO");
        await_end(end);
        self.ckrun(&["delete", "--force", id]).ok();
        let result = self.path(&format!("/srv/{bundle}/rootfs/result"));
        let said = fs::read_to_string(&result).unwrap_or_else(|e| panic!("{}: {e}", result.display()));
        fs::remove_file(result).expect("remove a result");
        said
    }
}

/// Moves a job from `a` to `b`, back, and to `b` again, at each of so many triples of random points, which are printed if it
/// fails, and compares what it says with what it says undisturbed. `points` is how far it gets.
pub fn moves_change_nothing(a: &Host, b: &Host, plugin: &str, points: u64, times: usize) {
    a.start(plugin);
    let expected = a.outcome();
    assert!(expected.contains("\nexit 0\n"), "{expected}");
    eprintln!("{plugin}: undisturbed: {expected}");
    let mut random = std::process::id().wrapping_mul(0x9e37_79b1);
    for _ in 0..times {
        let mut points = [0; 3].map(|_| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u64::from(random >> 8) % (points * 2 / 3)
        });
        points.sort_unstable();
        eprintln!("{plugin}: moves at {points:?}");
        a.start(plugin);
        for (point, (from, to)) in points.into_iter().zip([(a, b), (b, a), (a, b)]) {
            from.reaches(point);
            from.moves(to, &["ID"]).exits(0);
            from.is_empty();
        }
        assert_eq!(b.outcome(), expected, "{plugin}, moved at {points:?}");
        b.is_empty();
    }
}
