//! Network interfaces of the host that the container gets: `linux.netDevices`.
//!
//! A moved interface keeps what is its own (hardware address, MTU, queues). The kernel takes its addresses away; those
//! that are meant to last are given back. At the end of the container, the kernel returns hardware to the host and
//! destroys what was virtual; the runtime-spec forbids a runtime to interfere.

mod route;

use crate::config::Ask;
use crate::error::{Error, Result};
use crate::sandbox::hooks;
use ckrun_virt::network::Given;
use ckrun_virt::{Doing, Failure};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::LinkAttribute;
use nix::errno::Errno;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespaceType, LinuxNetDevice, Spec};
use route::Route;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// Names of interfaces have at most this many bytes (`IFNAMSIZ`, less the terminator).
const LONGEST_NAME: usize = libc::IFNAMSIZ - 1;

/// Checks what can be checked before anything is made.
///
/// # Errors
/// Names `linux.netDevices[NAME]`: no name for an interface, given twice, or no network namespace to move it into.
pub fn validate(spec: &Spec) -> Result<()> {
    let devices = devices(spec);
    if !devices.is_empty() && spec.namespace(LinuxNamespaceType::Network).is_none() {
        return Err(Error::config("linux.netDevices", "needs a network namespace in linux.namespaces"));
    }
    let mut taken = Vec::new();
    for (name, device) in devices {
        let inside = name_inside(name, device);
        if !is_name(name) || !(is_name(inside) || is_template(inside)) {
            return Err(refuse(name, format!("{name:?} or {inside:?} is no name for an interface")));
        }
        if taken.contains(&inside) && !is_template(inside) {
            return Err(refuse(name, format!("another interface is to be named {inside:?} as well")));
        }
        taken.push(inside);
    }
    Ok(())
}

/// Moves the interfaces into the network namespace of `init`, gives them their names and lasting addresses, and sets
/// them up. Runs in the host's network namespace, before the job starts.
///
/// # Errors
/// Names `linux.netDevices[NAME]`: there is no such interface, it can't be moved, or its name is taken inside. Missing
/// interfaces and taken names are found before the first interface is moved.
pub fn move_in(spec: &Spec, init: Pid) -> Result<()> {
    let devices = devices(spec);
    if devices.is_empty() {
        return Ok(());
    }
    let open = |path: &str| File::open(path).map_err(|e| Error::file(path, &e));
    let (here, there) = (open("/proc/self/ns/net")?, open(&format!("/proc/{init}/ns/net"))?);
    if identity(&here)? == identity(&there)? {
        let why = "needs a network namespace that is not the host's";
        return Err(Error::config("linux.netDevices", why));
    }
    let mut host = Route::here().doing(|| "open a netlink socket")?;
    let mut inside = Route::inside(&there, &here).doing(|| "open a netlink socket in the container")?;

    let mut indices = Vec::with_capacity(devices.len());
    for (name, device) in &devices {
        indices.push(host.index_of(name).map_err(|e| failed(name, "find it on the host", e))?);
        let new_name = name_inside(name, device);
        match inside.index_of(new_name) {
            _ if is_template(new_name) => {}
            Err(Errno::ENODEV) => {}
            Ok(_) => return Err(refuse(name, format!("there is a {new_name:?} in the container already"))),
            Err(e) => return Err(failed(name, "look for it in the container", e)),
        }
    }
    let addresses = host.addresses().doing(|| "list the host's addresses")?;
    for ((name, device), index) in devices.into_iter().zip(indices) {
        let known = inside.links().doing(|| "list the container's interfaces")?;
        let attributes = vec![
            LinkAttribute::IfName(name_inside(name, device).into()),
            LinkAttribute::NetNsFd(there.as_raw_fd()),
        ];
        host.change(index, attributes).map_err(|e| failed(name, "move it into the container", e))?;
        // It may have got another index, and a name that only the kernel knows.
        let links = inside.links().doing(|| "list the container's interfaces")?;
        let arrived = links.into_iter().find(|link| !known.contains(link));
        let arrived = arrived.ok_or_else(|| failed(name, "find it in the container", Errno::ENODEV))?;

        for address in addresses.iter().filter(|a| a.header.index == index).filter_map(lasting) {
            let mut address = address;
            address.header.index = arrived;
            inside.add_address(address).map_err(|e| failed(name, "give it its address back", e))?;
        }
        inside.set_up(arrived).map_err(|e| failed(name, "set it up", e))?;
    }
    Ok(())
}

/// What a sandbox brings into the network namespace that it makes; None when it makes none: it joins another one, which is
/// its owner's business, or the host's.
pub fn given(spec: &Spec) -> Option<Given> {
    let makes = spec.namespace(LinuxNamespaceType::Network).is_some_and(|ns| ns.path().is_none());
    makes.then(|| Given {
        links: devices(spec).into_iter().map(|(name, device)| name_inside(name, device).to_owned()).collect(),
        hooks: hooks::before_start(spec),
    })
}

/// Sets the loopback interface up; in a new network namespace it is down.
///
/// # Errors
/// `EPERM` in a namespace that belongs to another user namespace.
pub fn loopback_up() -> Result<(), Failure> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    // Any socket carries the request to its namespace; this kind is the cheapest to make.
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .doing(|| "open a socket for the loopback interface")?;
    // SAFETY: an ifreq is a C struct of numbers and unions of them; all zeroes is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads the ifreq, which lives through the call.
    let set = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    Errno::result(set).doing(|| "set the loopback interface up")?;
    Ok(())
}

/// The devices by their names on the host, in a fixed order.
fn devices(spec: &Spec) -> BTreeMap<&str, &LinuxNetDevice> {
    let all = spec.lx().and_then(|linux| linux.net_devices().as_ref());
    all.into_iter().flatten().map(|(name, device)| (name.as_str(), device)).collect()
}

fn name_inside<'a>(name: &'a str, device: &'a LinuxNetDevice) -> &'a str {
    device.name().as_deref().filter(|name| !name.is_empty()).unwrap_or(name)
}

/// As dev_valid_name in the kernel's net/core/dev.c.
fn is_name(name: &str) -> bool {
    let forbidden = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace();
    !name.is_empty() && name.len() <= LONGEST_NAME && name != "." && name != ".." && !name.contains(forbidden)
}

/// `eth%d`: the kernel picks the number.
fn is_template(name: &str) -> bool {
    name.strip_suffix("%d").is_some_and(is_name)
}

fn identity(namespace: &File) -> Result<(u64, u64)> {
    let stat = namespace.metadata().doing(|| "look at a network namespace")?;
    Ok((stat.dev(), stat.ino()))
}

/// The address as it can be added again, if it was meant to last: permanent and of global scope.
fn lasting(address: &AddressMessage) -> Option<AddressMessage> {
    let mut flags = AddressFlags::from_bits_retain(address.header.flags.bits().into());
    // The header has room for the oldest eight flags only.
    for attribute in &address.attributes {
        if let AddressAttribute::Flags(all) = attribute {
            flags = *all;
        }
    }
    if !flags.contains(AddressFlags::Permanent) || address.header.scope != AddressScope::Universe {
        return None;
    }
    let mut again = AddressMessage::default();
    again.header.family = address.header.family;
    again.header.prefix_len = address.header.prefix_len;
    again.header.scope = address.header.scope;
    again.attributes.push(AddressAttribute::Flags(flags & AddressFlags::Noprefixroute));
    let kept = address.attributes.iter().filter(|attribute| {
        use AddressAttribute::{Address, Broadcast, Local, RoutePriority};
        matches!(attribute, Address(_) | Local(_) | Broadcast(_) | RoutePriority(_))
    });
    again.attributes.extend(kept.cloned());
    Some(again)
}

fn refuse(name: &str, why: String) -> Error {
    Error::config(format!("linux.netDevices[{name}]"), why)
}

fn failed(name: &str, what: &str, errno: Errno) -> Error {
    let hint = match errno {
        Errno::EINVAL | Errno::EOPNOTSUPP => ": some kinds of interfaces can't leave their namespace",
        _ => "",
    };
    refuse(name, format!("{}{hint}", Failure::new(what, errno)))
}

#[cfg(test)]
mod tests;
