//! The device nodes and links of /dev.

use super::root::{Root, clean};
use super::tree::{attach_fd, clone_path};
use crate::config::Ask;
use crate::error::{Error, Result};
use ckrun_virt::{Doing, Failure};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mknodat, symlinkat, unlinkat,
};
use std::os::fd::AsFd;
use std::path::Path;

/// The nodes that every Linux container has (runtime-spec, "Default Devices"): major 1 and 5 of the kernel's
/// admin-guide/devices.txt.
const DEFAULTS: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Whether ckrun furnishes /dev: not when the configuration binds one.
pub fn furnished(spec: &Spec) -> bool {
    !spec.mount_list().iter().any(|m| {
        clean(m.destination()) == Path::new("/dev")
            && (m.typ().as_deref() == Some("bind")
                || m.options().iter().flatten().any(|o| matches!(o.as_str(), "bind" | "rbind")))
    })
}

/// Where the devices are.
pub fn places(spec: &Spec) -> impl Iterator<Item = &Path> {
    let configured = spec.lx().and_then(|l| l.devices().as_deref()).unwrap_or_default();
    DEFAULTS.iter().map(|(path, ..)| Path::new(path)).chain(configured.iter().map(|d| d.path().as_path()))
}

/// Makes the default and the configured devices. With `bind`, where mknod is not allowed (in a user namespace), the
/// host's nodes are bound.
pub fn make(root: &Root, spec: &Spec, bind: bool) -> Result<()> {
    let configured = spec.lx().and_then(|l| l.devices().as_deref()).unwrap_or_default();
    for (path, major, minor) in DEFAULTS {
        if !configured.iter().any(|d| clean(d.path()) == Path::new(path)) {
            let node = Node {
                path: Path::new(path),
                kind: FileType::CharacterDevice,
                device: makedev(*major, *minor),
                mode: 0o666,
                owner: (0, 0),
            };
            node.make(root, bind)?;
        }
    }
    for (i, device) in configured.iter().enumerate() {
        let made = Node::of(device).and_then(|node| node.make(root, bind).map_err(|e| e.to_string()));
        made.map_err(|why| Error::config(format!("linux.devices[{i}] ({})", device.path().display()), why))?;
    }
    links(root, configured)
}

#[derive(Debug)]
struct Node<'a> {
    path: &'a Path,
    kind: FileType,
    device: rustix::fs::Dev,
    mode: u32,
    owner: (u32, u32),
}

impl<'a> Node<'a> {
    fn of(device: &'a LinuxDevice) -> Result<Self, String> {
        let kind = match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A => return Err("type \"a\" is for rules, not for devices".into()),
        };
        let number = |n: i64, what: &str| u32::try_from(n).map_err(|_| format!("{what} {n} is out of range"));
        let device_number = match kind {
            FileType::Fifo => 0,
            _ => makedev(number(device.major(), "major")?, number(device.minor(), "minor")?),
        };
        Ok(Node {
            path: device.path(),
            kind,
            device: device_number,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
        })
    }

    fn make(&self, root: &Root, bind: bool) -> Result<(), Failure> {
        if bind && self.kind != FileType::Fifo {
            return self.bind(root);
        }
        let (dir, name) = root.parent(self.path)?;
        match mknodat(&dir, name, self.kind, Mode::from_raw_mode(self.mode), self.device) {
            // What the image brings is kept, as other runtimes do.
            Err(rustix::io::Errno::EXIST) => return Ok(()),
            // Engines of ordinary users run ckrun itself in a user namespace, where nobody may make devices.
            Err(rustix::io::Errno::PERM) if self.kind != FileType::Fifo => return self.bind(root),
            made => made.doing(|| format!("mknod {}", self.path.display()))?,
        }
        let (uid, gid) = self.owner;
        if self.owner != (0, 0) {
            chownat(
                &dir,
                name,
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .doing(|| format!("chown {}", self.path.display()))?;
            // chown(2) may have cleared mode bits.
            chmodat(&dir, name, Mode::from_raw_mode(self.mode), AtFlags::empty())
                .doing(|| format!("chmod {}", self.path.display()))?;
        }
        Ok(())
    }

    fn bind(&self, root: &Root) -> Result<(), Failure> {
        let source =
            clone_path(self.path, false).doing(|| format!("bind {} of the host", self.path.display()))?;
        let target = root.make_file(self.path)?;
        attach_fd(source.as_fd(), target.as_fd()).doing(|| format!("bind {}", self.path.display()))
    }
}

fn links(root: &Root, configured: &[LinuxDevice]) -> Result<()> {
    for (target, path) in LINKS {
        link(root, target, path)?;
    }
    if Path::new("/proc/kcore").exists() {
        link(root, "/proc/kcore", "/dev/core")?;
    }
    if !configured.iter().any(|d| clean(d.path()) == Path::new("/dev/ptmx")) {
        // The node that an image may bring belongs to the host's devpts, not to the container's.
        let (dir, name) = root.parent(Path::new("/dev/ptmx"))?;
        match unlinkat(&dir, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            other => other.doing(|| "remove /dev/ptmx of the image")?,
        }
        link(root, "pts/ptmx", "/dev/ptmx")?;
    }
    Ok(())
}

fn link(root: &Root, target: &str, path: &str) -> Result<(), Failure> {
    let (dir, name) = root.parent(Path::new(path))?;
    match symlinkat(target, &dir, name) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => other.doing(|| format!("symlink {path}")),
    }
}
