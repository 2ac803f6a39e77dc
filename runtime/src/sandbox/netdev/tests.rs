use super::*;
use crate::sandbox::testing::in_child;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkInfo, LinkMessage};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;
use std::io::{PipeWriter, Read};
use std::net::IpAddr;

fn spec(net_devices: serde_json::Value) -> Spec {
    let linux = json!({"namespaces": [{"type": "network"}], "netDevices": net_devices});
    serde_json::from_value(json!({"ociVersion": "1.3.0", "linux": linux})).unwrap()
}

/// Makes a virtual interface, of the first kind that this kernel has.
fn make(route: &mut Route, name: &str) -> u32 {
    for kind in [InfoKind::Dummy, InfoKind::Ifb, InfoKind::Veth] {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Mtu(1300),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
        ];
        match route.request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(_) => return route.index_of(name).unwrap(),
            Err(Errno::EOPNOTSUPP) => continue,
            Err(e) => panic!("make {name}: {e}"),
        }
    }
    panic!("this kernel has no kind of interface to test with");
}

fn add(
    route: &mut Route,
    index: u32,
    address: &str,
    prefix_len: u8,
    flags: AddressFlags,
    scope: AddressScope,
) {
    let address: IpAddr = address.parse().unwrap();
    let mut message = AddressMessage::default();
    message.header.family = address.into();
    message.header.prefix_len = prefix_len;
    message.header.index = index;
    message.header.scope = scope;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Flags(flags),
    ];
    if !flags.contains(AddressFlags::Permanent) {
        let mut lifetime = netlink_packet_route::address::CacheInfo::default();
        (lifetime.ifa_valid, lifetime.ifa_preferred) = (600, 600);
        message.attributes.push(AddressAttribute::CacheInfo(lifetime));
    }
    route.add_address(message).unwrap();
}

/// A process in a network namespace of its own that lives until the test is done with it.
struct Container {
    pid: Pid,
    _alive: PipeWriter,
}

fn container() -> Container {
    let (mut wait, alive) = std::io::pipe().unwrap();
    let (mut ready, made) = std::io::pipe().unwrap();
    // SAFETY: the child makes system calls only and never returns from here.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop((alive, ready));
        let code = unshare(CloneFlags::CLONE_NEWNET).map_or(1, |()| 0);
        drop(made);
        let _ = wait.read(&mut [0]);
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) }
    }
    drop(made);
    let _ = ready.read(&mut [0]);
    Container { pid: Pid::from_raw(pid), _alive: alive }
}

impl Container {
    fn enter(&self) {
        setns(File::open(format!("/proc/{}/ns/net", self.pid)).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
    }
}

fn addresses(route: &mut Route, index: u32) -> Vec<String> {
    let all = route.addresses().unwrap();
    let mut texts: Vec<_> = all
        .iter()
        .filter(|a| a.header.index == index && a.header.scope == AddressScope::Universe)
        .flat_map(|a| {
            a.attributes.iter().filter_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(format!("{ip}/{}", a.header.prefix_len)),
                _ => None,
            })
        })
        .collect();
    texts.sort_unstable();
    texts
}

#[test]
fn interfaces_move_with_their_lasting_addresses() {
    in_child(|| {
        // This child is the host.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let mut host = Route::here().unwrap();
        let (one, two, three) = (make(&mut host, "one"), make(&mut host, "two"), make(&mut host, "three"));
        host.set_up(one).unwrap();
        let permanent = AddressFlags::Permanent;
        add(&mut host, one, "192.0.2.7", 24, permanent, AddressScope::Universe);
        add(&mut host, one, "192.0.2.8", 32, permanent | AddressFlags::Noprefixroute, AddressScope::Universe);
        add(&mut host, one, "2001:db8::7", 64, permanent, AddressScope::Universe);
        add(&mut host, one, "192.0.2.9", 24, AddressFlags::empty(), AddressScope::Universe);
        add(&mut host, one, "169.254.1.1", 16, permanent, AddressScope::Link);
        add(&mut host, two, "198.51.100.2", 30, permanent, AddressScope::Universe);

        let container = container();
        let spec = spec(json!({"one": {}, "two": {"name": "eth0"}, "three": {"name": "emu%d"}}));
        validate(&spec).unwrap();
        let here = || identity(&File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
        let before = here();
        move_in(&spec, container.pid).unwrap();
        for (name, index) in [("one", one), ("two", two), ("three", three)] {
            assert_eq!(host.index_of(name), Err(Errno::ENODEV));
            assert!(!host.links().unwrap().contains(&index));
        }
        assert_eq!(here(), before, "the thread is back");

        container.enter();
        let mut inside = Route::here().unwrap();
        let indices = ["one", "eth0", "emu0"].map(|name| inside.index_of(name).unwrap());
        assert_eq!(addresses(&mut inside, indices[0]), ["192.0.2.7/24", "192.0.2.8/32", "2001:db8::7/64"]);
        assert_eq!(addresses(&mut inside, indices[1]), ["198.51.100.2/30"]);
        let noprefix = inside.addresses().unwrap().into_iter().any(|a| {
            a.header.prefix_len == 32
                && a.attributes.iter().any(|attribute| {
                    matches!(attribute, AddressAttribute::Flags(f) if f.contains(AddressFlags::Noprefixroute))
                })
        });
        assert!(noprefix);
        for name in ["one", "eth0", "emu0"] {
            assert!(is_up(name), "{name}");
            assert_eq!(mtu(name), 1300);
        }
    });
}

fn ask(name: &str, request: libc::Ioctl) -> libc::ifreq {
    let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
    // SAFETY: as in loopback_up.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request fills in the ifreq.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut ifreq) }).unwrap();
    ifreq
}

fn is_up(name: &str) -> bool {
    // SAFETY: SIOCGIFFLAGS has set the flags.
    unsafe { ask(name, libc::SIOCGIFFLAGS as _).ifr_ifru.ifru_flags as i32 & libc::IFF_UP != 0 }
}

fn mtu(name: &str) -> i32 {
    // SAFETY: SIOCGIFMTU has set the MTU.
    unsafe { ask(name, libc::SIOCGIFMTU as _).ifr_ifru.ifru_mtu }
}

#[test]
fn nothing_moves_when_one_can_not() {
    in_child(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let mut host = Route::here().unwrap();
        make(&mut host, "one");
        let container = container();
        let said = |devices| move_in(&spec(devices), container.pid).unwrap_err().to_string();
        assert_eq!(
            said(json!({"one": {}, "zero": {}})),
            "linux.netDevices[zero]: find it on the host: no such device"
        );
        assert_eq!(
            said(json!({"one": {"name": "lo"}})),
            "linux.netDevices[one]: there is a \"lo\" in the container already"
        );
        assert!(
            said(json!({"lo": {"name": "lo2"}})).starts_with(
                "linux.netDevices[lo]: move it into the container: invalid argument: some kinds"
            )
        );
        host.index_of("one").unwrap();
        let said = move_in(&spec(json!({"one": {}})), Pid::this()).unwrap_err().to_string();
        assert_eq!(said, "linux.netDevices: needs a network namespace that is not the host's");
    });
}

#[test]
fn names_are_checked_first() {
    for devices in [
        json!({"a/b": {}}),
        json!({"": {}}),
        json!({"sixteen-bytes-xx": {}}),
        json!({"a": {"name": "b c"}}),
        json!({"a": {"name": ".."}}),
        json!({"a%d": {}}),
        json!({"a": {"name": "%s"}}),
        json!({"a": {"name": "c"}, "b": {"name": "c"}}),
    ] {
        let said = validate(&spec(devices.clone())).unwrap_err().to_string();
        assert!(said.starts_with("linux.netDevices["), "{devices}: {said}");
    }
    validate(&spec(json!({"a": {"name": "eth%d"}, "b": {"name": "eth%d"}, "c": {"name": ""}}))).unwrap();
    let json = json!({"ociVersion": "1.3.0", "linux": {"netDevices": {"a": {}}}});
    let said = validate(&serde_json::from_value(json).unwrap()).unwrap_err().to_string();
    assert_eq!(said, "linux.netDevices: needs a network namespace in linux.namespaces");
}

#[test]
fn no_device_needs_nothing() {
    move_in(&spec(json!({})), Pid::from_raw(i32::MAX)).unwrap();
}

#[test]
fn loopback_comes_up() {
    in_child(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        assert!(!is_up("lo"));
        loopback_up().unwrap();
        assert!(is_up("lo"));
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    });
}
