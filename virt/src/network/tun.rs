//! Devices of `/dev/net/tun`: each is a link, and those who have attached to it by a descriptor are its other side.

use super::Given;
use super::links::{self, Link};
use crate::namespace::Namespace;
use crate::netlink::record::{Record, number};
use crate::netlink::{Netlink, protocols};
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Where it is.
pub const PATH: &str = "/dev/net/tun";
/// `linux/if_tun.h`; ioctl numbers have the size of an int in them.
pub const SET_DEVICE: u64 = 0x4004_54ca;
pub const SET_PERSISTENT: u64 = 0x4004_54cb;
const SET_OWNER: u64 = 0x4004_54cc;
const SET_GROUP: u64 = 0x4004_54ce;
const SET_INDEX: u64 = 0x4004_54da;
/// `IFF_TUN`, `IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR`, `IFF_MULTI_QUEUE`.
pub const TUN: u16 = 0x1;
pub const TAP: u16 = 0x2;
pub const NO_INFORMATION: u16 = 0x1000;
pub const VIRTUAL_HEADER: u16 = 0x4000;
pub const SEVERAL_QUEUES: u16 = 0x100;
/// What IFLA_TUN_OWNER and _GROUP say of a device that everybody may attach to who may make one.
const NOBODY: u64 = u32::MAX as u64;

/// `struct ifreq` with a name and flags.
pub fn request(name: &str, flags: u16) -> [u8; 40] {
    let mut request = [0; 40];
    let length = name.len().min(libc::IFNAMSIZ - 1);
    request[..length].copy_from_slice(&name.as_bytes()[..length]);
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    request
}

/// The flags that TUNSETIFF wants for a device like this.
fn flags(data: &Record) -> u16 {
    let has = |name| number(data, name) != 0;
    let mut flags = number(data, "type") as u16 & (TUN | TAP);
    for (wanted, flag) in [
        (!has("packet-information"), NO_INFORMATION),
        (has("virtual-header"), VIRTUAL_HEADER),
        (has("several-queues"), SEVERAL_QUEUES),
    ] {
        if wanted {
            flags |= flag;
        }
    }
    flags
}

/// Makes a device in the namespace that this thread is in. It stays without anybody attached: those who were make it go with
/// them again. With an index of 0 the kernel chooses one.
pub(super) fn make(link: &Link, index: u32) -> Result<(), Failure> {
    let what = || format!("make the device {}", link.name);
    let tun = rustix::fs::open(PATH, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("open {PATH} for the device {}", link.name))?;
    if index != 0 {
        order(&tun, SET_INDEX, (&raw const index) as u64).doing(what)?;
    }
    let mut request = request(&link.name, flags(&link.data));
    order(&tun, SET_DEVICE, request.as_mut_ptr() as u64).doing(what)?;
    for (name, number_of) in [("owner", SET_OWNER), ("group", SET_GROUP)] {
        let id = if link.data.contains_key(name) { number(&link.data, name) } else { NOBODY };
        if id != NOBODY {
            order(&tun, number_of, id).doing(|| format!("give the device {} to its {name}", link.name))?;
        }
    }
    order(&tun, SET_PERSISTENT, 1).doing(what)
}

/// What the kernel tells of a device only as of a link.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// It stays when nobody is attached.
    pub persistent: bool,
    /// Each packet has its protocol in front.
    pub information: bool,
}

/// Looks at a device of `namespace`, or of ckrun's own.
///
/// # Errors
/// The kernel's.
pub fn look(namespace: Option<&Namespace>, name: &str) -> Result<Option<Told>, Failure> {
    let abroad = namespace.map(Namespace::enter).transpose()?;
    let route = Netlink::open(protocols::ROUTE);
    drop(abroad);
    let mut route = route.doing(|| format!("look at the device {name}"))?;
    let (messages, names) = links::dump(&mut route)?;
    for message in &messages {
        let (link, _) = links::read(message, &names, &Given::default());
        if link.name == name && link.is("tun") {
            let has = |name| number(&link.data, name) != 0;
            return Ok(Some(Told { persistent: has("persistent"), information: has("packet-information") }));
        }
    }
    Ok(None)
}

/// Carries out an ioctl of `/dev/net/tun`.
///
/// # Errors
/// The kernel's.
pub fn order(tun: &OwnedFd, request: u64, argument: u64) -> Result<(), Errno> {
    // SAFETY: the argument is a number, or points to what the request wants, which outlives the call.
    let done = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), request, argument) };
    Errno::result(done).map(drop)
}

/// The devices to which these processes are attached: `iff` in fdinfo.
pub(super) fn attached(processes: &[Pid]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for process in processes {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{process}/fdinfo")) else { continue };
        for entry in entries.flatten() {
            let Ok(text) = std::fs::read(entry.path()) else { continue };
            let text = String::from_utf8_lossy(&text);
            found.extend(text.lines().filter_map(|line| Some(line.strip_prefix("iff:")?.trim().to_owned())));
        }
    }
    found
}
