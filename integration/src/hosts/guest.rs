//! A guest (guests/*.c) that goes from host to host: its bundle is in the directory that they share.

use super::{Host, Site};
use crate::guests;
use crate::pipes::{await_end, pidfd};
use crate::run::install;
use crate::status::Status;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// The job.
#[derive(Debug)]
pub struct Guest {
    bundle: PathBuf,
    status: Status,
}

impl Site {
    /// The bundle of a mode of a guest, at /mnt/bundle of every host.
    pub fn guest(&self, program: &str, mode: &str) -> Guest {
        let bundle = self.shared("bundle");
        let rootfs = bundle.join("rootfs");
        for dir in ["dev", "proc", "sys"] {
            fs::create_dir_all(rootfs.join(dir)).expect("make a rootfs");
        }
        self.install(program, "bundle/rootfs/guest");
        let status = rootfs.join("status");
        fs::write(&status, "").expect("make a status file");
        let guest = Guest { bundle, status: Status::at(&status) };
        let mut config = crate::bundle::default_config();
        config["process"]["args"] = json!(["/guest", mode, "/status"]);
        config["root"]["readonly"] = json!(false);
        config["linux"]["cgroupsPath"] = json!(format!("/{}", self.id));
        fs::write(guest.bundle.join("config.json"), config.to_string()).expect("write config.json");
        guest
    }

    /// Puts the program of a guest into the directory that hosts share.
    pub fn install(&self, program: &str, name: &str) {
        install(&guests::guest(program), &self.shared(name));
    }
}

impl Guest {
    /// Changes config.json.
    pub fn change(&self, change: impl FnOnce(&mut Value)) {
        let path = self.bundle.join("config.json");
        let text = fs::read_to_string(&path).expect("read config.json");
        let mut config = serde_json::from_str(&text).expect("config.json is JSON");
        change(&mut config);
        fs::write(path, config.to_string()).expect("write config.json");
    }

    /// Starts it, with more words for `ckrun run`; it is well.
    pub fn start(&self, host: &Host, more: &[&str]) {
        host.quietly(&[&["run", "--detach", "--bundle", "/mnt/bundle"], more, &["ID"]].concat()).ok();
        self.status.rises(20, host.pid_of("ID"));
    }

    /// It goes into /mnt/IMAGE, and is gone.
    pub fn checkpoint(&self, host: &Host, image: &str) {
        let end = pidfd(host.pid_of("ID"));
        host.ckrun(&["checkpoint", "--image-path", &format!("/mnt/{image}"), "ID"]).ok();
        await_end(end);
        self.status.count();
    }

    /// It comes out of /mnt/IMAGE, with more words for `ckrun restore`; it is well.
    pub fn restore(&self, host: &Host, image: &str, more: &[&str]) {
        let image = format!("/mnt/{image}");
        let words = ["restore", "--detach", "--bundle", "/mnt/bundle", "--image-path", &image];
        host.quietly(&[&words[..], more, &["ID"]].concat()).ok();
        self.status.rises(60, host.pid_of("ID"));
    }

    /// A restore of /mnt/IMAGE that is refused, by words.
    pub fn is_refused(&self, host: &Host, image: &str, more: &[&str], why: &[&str]) {
        let image = format!("/mnt/{image}");
        let words = ["restore", "--detach", "--bundle", "/mnt/bundle", "--image-path", &image];
        host.ckrun(&[&words[..], more, &["ID"]].concat()).fails(1, why);
        assert_eq!(host.ckrun(&["list", "--quiet"]).ok(), "");
    }
}
