//! Emulators for guests/link.c.

use crate::hosts::Host;
use crate::pipes::PATIENCE;
use crate::terminal::{terminal, terminal_of};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use rustix::pty::ptsname;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;

/// An emulator: to a line "N" it answers "3N+1", until its last client has closed the device.
#[derive(Debug)]
pub struct Emulator {
    /// The device's path on the host.
    pub device: PathBuf,
    /// Keeps the device open while nobody else has it.
    slave: Option<OwnedFd>,
    /// Says something when it answers.
    heard: Receiver<()>,
    answers: Option<std::thread::JoinHandle<u64>>,
}

impl Emulator {
    /// One with a device of its own.
    pub fn at_work() -> Emulator {
        Emulator::of(terminal(24, 80))
    }

    /// One with a device of a host.
    pub fn on(host: &Host) -> Emulator {
        Emulator::of(terminal_of(&host.path("/dev/pts/ptmx")))
    }

    fn of((master, slave): (OwnedFd, OwnedFd)) -> Emulator {
        let mut raw = tcgetattr(&slave).expect("an emulator works");
        cfmakeraw(&mut raw);
        tcsetattr(&slave, SetArg::TCSANOW, &raw).expect("an emulator works");
        let device = PathBuf::from(OsString::from_vec(
            ptsname(&master, Vec::new()).expect("an emulator works").into_bytes(),
        ));
        let mut to = File::from(master);
        let from = BufReader::new(to.try_clone().expect("an emulator works"));
        let (says, heard) = std::sync::mpsc::channel();
        let answers = std::thread::spawn(move || {
            let mut count = 0;
            // EIO: nobody has the other end any more.
            for line in from.lines().map_while(Result::ok) {
                let Ok(question) = line.parse::<u64>() else { continue };
                writeln!(to, "{}", 3 * question + 1).expect("an emulator works");
                count += 1;
                // Nobody need listen.
                let _ = says.send(());
            }
            count
        });
        Emulator { device, slave: Some(slave), heard, answers: Some(answers) }
    }

    /// Waits until it has answered once more.
    pub fn answers(&self) {
        self.heard.recv_timeout(PATIENCE).expect("an emulator is asked");
    }

    /// The word of `--map` that puts it where guests/link.c looks for it.
    pub fn map(&self) -> String {
        format!("/dev/emu0={}", self.device.display())
    }

    /// How many questions it has answered; nobody must have its device any more.
    pub fn end(mut self) -> u64 {
        drop(self.slave.take());
        self.answers.take().expect("an emulator works").join().expect("an emulator works")
    }
}
