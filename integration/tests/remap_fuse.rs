//! A job that is tied to a device of FUSE goes from host to host: it maps it, polls it, and asks it things by ioctl. Each host
//! has a board of its own, at another path.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::hosts::Site;
use ckrun_integration::hosts::board::USUAL;
use ckrun_integration::run::install_text;
use std::fs;
use std::path::Path;

/// Three moves between two hosts, on each of which the device is what `words` say.
fn moves(mode: &str, asked: &[&str], words: impl Fn(&str) -> String, real: impl Fn(&str) -> String) {
    let site = Site::new();
    let guest = site.guest("board", mode);
    let plugin = ["session", "unsynced"].contains(&mode);
    if plugin {
        let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/python/ckrun_plugin.py");
        fs::copy(kit, site.shared("ckrun_plugin.py")).unwrap();
        install_text(PLUGIN, &site.shared("plugin"));
    }
    let (a, b) = (site.host("a"), site.host("b"));
    let option = if plugin { "--plugin" } else { "--map" };
    let mut board = site.board(&a, "/run/boards");
    guest.start(&a, &[option, &words(&board.directory)]);
    let mut here = &a;
    for (generation, there) in [(1, &b), (2, &a), (3, &b)] {
        board.was_asked(asked);
        let image = format!("image-{generation}");
        guest.checkpoint(here, &image);
        drop(board);
        board = site.board(there, &format!("/srv/boards-{generation}"));
        guest.restore(there, &image, &[option, &words(&board.directory)]);
        let name = if mode == "directory" { "dev:/dev/boards" } else { "dev:/dev/board0" };
        let now = there.ckrun(&["ids", "ID", "--to-real", name]).ok();
        assert_eq!(now.trim_end(), format!("dev:{}", real(&board.directory)));
        here = there;
    }
    board.was_asked(asked);
    here.ckrun(&["delete", "--force", "ID"]).ok();
    drop((board, a, b));
    site.no_trace();
}

fn device(directory: &str) -> String {
    format!("{directory}/board0")
}

#[test]
fn a_file_is_another_boards_after_each_move() {
    moves("board", &USUAL, |directory| format!("/dev/board0={directory}/board0"), device);
}

#[test]
fn a_directory_of_devices_is_another_boards_after_each_move() {
    moves("directory", &USUAL, |directory| format!("/dev/boards={directory}"), str::to_owned);
}

/// Binds /dev/board0, and claims the commands of sessions, but no others. After a restart each of the job's sessions is a new
/// one of the new board, which has what the job had left in the memory of the old one.
const PLUGIN: &str = r#"#!/usr/bin/env python3
import fcntl, json, os, struct, sys
sys.path.insert(0, "/mnt")
from ckrun_plugin import Plugin, Result, device, handle

OPEN, ASK = 0x80044202, 0xC0184203

def claim(command, direction):
    session = {"space": "session", "offset": 0, "size": 4, "direction": direction}
    return {"device": "/dev/board0", "command": hex(command), "handles": [session]}

class Board(Plugin):
    def tie(self, sessions=()):
        path = self.ckrun.options["board"]
        bindings = [device("/dev/board0", path)]
        with open(path, "rb+", buffering=0) as board:
            for number in sessions:
                real = bytearray(4)
                fcntl.ioctl(board, OPEN, real)
                bindings.append(handle("session", number, struct.unpack("I", real)[0]))
        return Result(bindings=bindings, ioctls=[claim(OPEN, "out"), claim(ASK, "in")])

    def init(self, event):
        return self.tie()

    def precheckpoint(self, event):
        # What the board has, and not what the kernel has of it.
        with open(os.path.dirname(self.ckrun.options["board"]) + "/counts") as counts, event.open("kept", "x") as saved:
            saved.write(str(json.load(counts)["kept"]))

    def restart(self, event):
        with open(self.ckrun.options["board"], "rb+", buffering=0) as board, event.open("kept") as saved:
            os.pwrite(board.fileno(), struct.pack("Q", int(saved.read())), 16)
        return self.tie(b["virtual"] for b in event.bindings if b["kind"] == "handle")

sys.exit(Board().serve())
"#;

#[test]
fn a_session_of_a_board_is_one_of_another_boards_after_each_move() {
    moves(
        "session",
        &["scaled", "written", "polled", "answered"],
        |directory| format!("/mnt/plugin:board={directory}/board0"),
        device,
    );
}

#[test]
fn what_was_written_to_a_mapping_and_not_synced_goes_along() {
    moves("unsynced", &[], |directory| format!("/mnt/plugin:board={directory}/board0"), device);
}
