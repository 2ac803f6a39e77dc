//! Descriptors of `/dev/net/tun`, and the devices to which they are attached. The devices themselves are the network
//! namespace's ([`crate::network::tun`]), and are there before anything of the job is opened.
//!
//! Packets that the kernel has sent to a device and nobody has read are lost, as on any wire.

use super::capture::Job;
use super::check::is_path;
use super::located::{Located, locate};
use super::making::{Making, OPEN};
use super::{Files, Object, Trouble};
use crate::image::Bytes;
use crate::namespace::{Kind, Namespace};
use crate::network::tun::{self, NO_INFORMATION, VIRTUAL_HEADER};
use crate::restore::Problem;
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `/dev/net/tun`: major and minor number.
const NUMBER: (u32, u32) = (10, 200);
/// `linux/if_tun.h`.
const GET_DEVICE: u64 = 0x8004_54d2;
const GET_SEND_BUFFER: u64 = 0x8004_54d3;
const SET_SEND_BUFFER: u64 = 0x4004_54d4;
const GET_HEADER: u64 = 0x8004_54d7;
const SET_HEADER: u64 = 0x4004_54d8;
const SET_QUEUE: u64 = 0x4004_54d9;
const GET_FILTER: u64 = 0x8010_54db;
const GET_LITTLE: u64 = 0x8004_54dd;
const SET_LITTLE: u64 = 0x4004_54dc;
const GET_NAMESPACE: u64 = 0x54e3;
/// `IFF_TUN`, `IFF_TAP`, `IFF_NAPI`, `IFF_NAPI_FRAGS`, `IFF_MULTI_QUEUE`, `IFF_VNET_HDR`: those that TUNSETIFF takes, and that
/// can be asked for again.
const FLAGS: u16 = 0x1 | 0x2 | 0x10 | 0x20 | 0x100 | VIRTUAL_HEADER;
/// `IFF_DETACH_QUEUE`.
const DETACHED: u16 = 0x400;

/// An open `/dev/net/tun`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Tun {
    /// From the container's root.
    pub path: Bytes,
    /// What it is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
}

/// A device, and how this descriptor is attached to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// `IFF_*` of `linux/if_tun.h`.
    pub flags: u16,
    /// It goes with the last who is attached to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passing: bool,
    /// Its packets go to others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detached: bool,
    /// Room for packets on the way into the kernel, in bytes.
    pub send_buffer: i32,
    /// The size of the header in front of each packet, if there is one.
    pub header: i32,
    /// That header has the order of a small machine in any case.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub little: bool,
}

impl Job<'_> {
    /// None when it is something else, or somebody answers for it.
    pub(super) fn tun(&mut self, node: usize) -> Result<Option<(u32, Tun)>, Trouble> {
        let seen = &self.graph.nodes[node].seen;
        let device = seen.stat.st_rdev;
        if (rustix::fs::major(device), rustix::fs::minor(device)) != NUMBER {
            return Ok(None);
        }
        let (namespace, path) = match locate(self, &seen.link, &seen.stat, seen.info.mount)? {
            (_, Located::Named(path)) if self.owned.covers(&path) => return Ok(None),
            (namespace, Located::Named(path)) => (namespace, path),
            (_, Located::Deleted(_)) => {
                return Err(Trouble::refused(seen.name(), "the device file was deleted"));
            }
        };
        let own = self.graph.take(node)?;
        let device = self.device_of(&own)?;
        Ok(Some((namespace, Tun { path: path.into(), device })))
    }

    fn device_of(&self, own: &OwnedFd) -> Result<Option<Device>, Trouble> {
        let what = || "look at a device of /dev/net/tun";
        let mut request = tun::request("", 0);
        match tun::order(own, GET_DEVICE, request.as_mut_ptr() as u64) {
            Err(Errno::EBADFD) => return Ok(None),
            asked => asked.doing(what)?,
        }
        let name: Vec<u8> = request[..libc::IFNAMSIZ].iter().copied().take_while(|&byte| byte != 0).collect();
        let name = String::from_utf8(name)
            .map_err(|_| Trouble::refused("/dev/net/tun", "the name of its device is not UTF-8"))?;
        let told = u16::from_ne_bytes([request[16], request[17]]);
        let refused = |why: &str| Trouble::refused(format!("device {name} of /dev/net/tun"), why);

        // SAFETY: the call has no argument; its answer is a new descriptor.
        let namespace = unsafe { libc::ioctl(own.as_raw_fd(), GET_NAMESPACE) };
        let namespace = Errno::result(namespace).doing(what)?;
        // SAFETY: the kernel has just made it, for nobody else.
        let namespace = unsafe { OwnedFd::from_raw_fd(namespace) };
        let init = self.graph.members.first().map_or(Pid::from_raw(0), |member| member.host);
        let namespace = Namespace::open(namespace, Kind::Net)?;
        let is_jobs = match (&namespace, Namespace::of(init, Kind::Net)?) {
            (Some(namespace), Some(_)) => namespace.has(&format!("/proc/{init}"))?,
            (None, None) => true,
            _ => false,
        };
        if !is_jobs {
            return Err(refused("it is in another network namespace"));
        }
        let Some(link) = tun::look(namespace.as_ref(), &name)? else {
            return Err(refused("it is no link any more"));
        };
        if !link.persistent && !self.owned.network {
            let why = "it goes with the job, and what is in the network namespace is not carried";
            return Err(refused(why).or(format!("make it persistent (ip tuntap add {name} …)")));
        }
        // struct sock_fprog: a number and a pointer.
        let mut filter = [0_u64; 2];
        if tun::order(own, GET_FILTER, filter.as_mut_ptr() as u64).is_ok() && filter[0] & 0xffff != 0 {
            return Err(refused("a filter is attached to it"));
        }
        let number = |request: u64| {
            let mut number: i32 = 0;
            tun::order(own, request, (&raw mut number) as u64).doing(what).map(|()| number)
        };
        Ok(Some(Device {
            // Where TUNSETIFF has IFF_NO_PI, TUNGETIFF tells of filters.
            flags: told & FLAGS | if link.information { 0 } else { NO_INFORMATION },
            passing: !link.persistent,
            detached: told & DETACHED != 0,
            send_buffer: number(GET_SEND_BUFFER)?,
            header: number(GET_HEADER)?,
            little: number(GET_LITTLE)? != 0,
            name,
        }))
    }
}

impl Files {
    /// The devices that are not in the network namespace of `init`, and that the job is attached to: to attach to one that is
    /// not there is to make another one.
    ///
    /// # Errors
    /// System errors.
    pub fn check_devices(&self, init: Pid) -> Result<Vec<Problem>, Failure> {
        let attached = self.descriptions.iter().filter_map(|description| match &description.object {
            Object::Tun(tun) => tun.device.as_ref(),
            _ => None,
        });
        let mut missing = Vec::new();
        for device in attached {
            let namespace = Namespace::of(init, Kind::Net)?;
            if tun::look(namespace.as_ref(), &device.name)?.is_none() {
                let why = "the job is attached to it, and it is not in the network namespace";
                missing.push(Problem { what: format!("device {}", device.name), why: why.into() });
            }
        }
        Ok(missing)
    }
}

impl Tun {
    /// Why an image can't be right.
    pub(super) fn wrong(&self) -> Option<String> {
        let name = self.device.as_ref().map(|device| device.name.as_bytes());
        let named =
            name.is_none_or(|name| !name.is_empty() && name.len() < libc::IFNAMSIZ && !name.contains(&0));
        (!is_path(&self.path) || !named).then(|| "a device of /dev/net/tun of an impossible name".into())
    }

    pub(super) fn make(&self, flags: u32, to: RawFd, making: &mut Making<'_>) {
        making.open(&self.path, flags & OPEN, to);
        let Some(device) = &self.device else { return };
        let name = &device.name;
        let mut order = |what: &str, request: u64, argument: &[u8]| {
            let argument = making.program.put(argument);
            let args = [to.into(), request.into(), argument.into()];
            making.program.call(format!("{what} {name}"), libc::SYS_ioctl, &args);
        };
        let wanted = tun::request(name, device.flags & (FLAGS | NO_INFORMATION));
        order("attach to the device", tun::SET_DEVICE, &wanted);
        if device.flags & VIRTUAL_HEADER != 0 {
            order("set the header of packets of", SET_HEADER, &device.header.to_ne_bytes());
        }
        if device.little {
            order("set the order of bytes of", SET_LITTLE, &1_i32.to_ne_bytes());
        }
        order("set the buffer of", SET_SEND_BUFFER, &device.send_buffer.to_ne_bytes());
        if device.detached {
            order("take no packets of", SET_QUEUE, &tun::request("", DETACHED));
        }
        if device.passing {
            let args = [to.into(), tun::SET_PERSISTENT.into(), 0.into()];
            making.program.call(format!("let {name} go with the job"), libc::SYS_ioctl, &args);
        }
    }
}
