//! What a plugin ties to a job, taken from its answer, with the descriptors that came along.

use ckrun_plugin::binding::{Address, Attachment, Binding, Ioctl, Kind, Place, Real, Rebinding};
use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use nix::fcntl::readlink;
use rustix::net::{SocketAddrUnix, getpeername};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// A binding, and the descriptor behind it if it came as one.
#[derive(Debug, Clone)]
pub struct Bound {
    /// What the plugin said.
    pub binding: Binding,
    /// Its `fd`.
    pub fd: Option<Rc<OwnedFd>>,
}

impl Bound {
    /// The same without its descriptor.
    pub fn bare(&self) -> Bound {
        Bound { binding: self.binding.clone(), fd: None }
    }

    /// The binding as it is remembered and shown: what came as a descriptor has the name that the kernel has for it, the
    /// path of the file or the address of the peer.
    ///
    /// # Errors
    /// The kernel's; [`Errno::ENOTCONN`] for a socket without a peer.
    pub fn recorded(&self) -> Result<Binding, Failure> {
        let mut binding = self.binding.clone();
        if let (Some(fd), Some(real)) = (&self.fd, binding.real_mut()) {
            let doing = || format!("ask what is behind the descriptor of {}", self.binding.virtual_name());
            *real = Real::Name(match self.binding.kind() {
                Kind::Socket => peer(fd).doing(doing)?,
                _ => path(fd).doing(doing)?,
            });
        }
        Ok(binding)
    }
}

fn path(fd: &OwnedFd) -> Result<String, Errno> {
    let path = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str())?;
    Ok(path.to_string_lossy().into_owned())
}

fn peer(socket: &OwnedFd) -> Result<String, Errno> {
    let raw = |e: rustix::io::Errno| Errno::from_raw(e.raw_os_error());
    let any = getpeername(socket).map_err(raw)?.ok_or(Errno::ENOTCONN)?;
    if let Ok(address) = SocketAddr::try_from(any.clone()) {
        let host = match address {
            SocketAddr::V4(v4) => v4.ip().to_string(),
            SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
        };
        return Ok(Address::Tcp(host, address.port()).to_string());
    }
    let unix = SocketAddrUnix::try_from(any).map_err(raw)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match (unix.path_bytes().map(text), unix.abstract_name().map(text)) {
        (Some(path), _) => Ok(Address::Unix(path).to_string()),
        (_, Some(name)) => Ok(Address::Abstract(name).to_string()),
        _ => Err(Errno::ENOTCONN),
    }
}

/// The answer to `init` or `restart`.
#[derive(Debug, Clone, Default)]
pub struct Attached {
    /// Whose it is.
    pub plugin: String,
    /// What the job is tied to.
    pub bindings: Vec<Bound>,
    /// The rest; its own list of bindings is empty.
    pub more: Attachment,
}

/// An answer of an event, as it came.
#[derive(Debug)]
pub struct Reply {
    /// The member `result`, an object.
    pub result: Value,
    /// The descriptors of the message.
    pub fds: Vec<OwnedFd>,
    /// How long it took.
    pub took: Duration,
}

/// That of a plugin that does not want the event.
impl Default for Reply {
    fn default() -> Reply {
        Reply { result: Value::Object(serde_json::Map::new()), fds: Vec::new(), took: Duration::ZERO }
    }
}

impl Attached {
    /// Reads the answer to `init` or `restart`.
    ///
    /// # Errors
    /// The reason, for a person: a member that is wrong, a descriptor that did not come, a name that is bound twice.
    pub fn of(plugin: &str, reply: Reply) -> Result<Attached, String> {
        let mut more: Attachment = serde_json::from_value(reply.result).map_err(|e| e.to_string())?;
        let bindings = bound(std::mem::take(&mut more.bindings), reply.fds)?;
        let absolute = more.mounts.iter().flat_map(|m| [&m.source, &m.destination]);
        if let Some(path) = absolute.into_iter().find(|path| !path.is_absolute()) {
            return Err(format!("mounts: {} is not an absolute path", path.display()));
        }
        for Ioctl { command, handles, .. } in &more.ioctls {
            let is =
                |wanted: fn(&Place) -> bool| handles.iter().filter(|handle| wanted(&handle.place)).count();
            let argument = is(|place| matches!(place, Place::Argument { .. }));
            if argument > 0 && is(|place| matches!(place, Place::Within { .. })) > 0 {
                return Err(format!("ioctl {command}: an argument that is a handle points to no structure"));
            }
            if argument > 1 || is(|place| matches!(place, Place::Result)) > 1 {
                return Err(format!("ioctl {command}: there is one argument, and one result"));
            }
        }
        Ok(Attached { plugin: plugin.into(), bindings, more })
    }
}

/// Reads the answer to `resume` or `recover`.
///
/// # Errors
/// As [`Attached::of`].
pub fn rebound(reply: Reply) -> Result<Vec<Bound>, String> {
    let answer: Rebinding = serde_json::from_value(reply.result).map_err(|e| e.to_string())?;
    bound(answer.bindings, reply.fds)
}

fn bound(bindings: Vec<Binding>, fds: Vec<OwnedFd>) -> Result<Vec<Bound>, String> {
    let fds: Vec<Rc<OwnedFd>> = fds.into_iter().map(Rc::new).collect();
    let mut names = BTreeSet::new();
    let each = bindings.into_iter().map(|binding| {
        let name = binding.virtual_name();
        let fd = match binding.real() {
            Some(Real::Fd(index)) => {
                let fd = usize::try_from(*index).ok().and_then(|index| fds.get(index)).cloned();
                let count = fds.len();
                Some(fd.ok_or_else(|| {
                    format!("{name}: \"fd\": {index} is none of the {count} descriptors of the message")
                })?)
            }
            _ => None,
        };
        if names.insert(name.clone()) {
            Ok(Bound { binding, fd })
        } else {
            Err(format!("{name}: is bound twice"))
        }
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(result: Value, count: usize) -> Result<Attached, String> {
        let fds = (0..count).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
        Attached::of("emu", Reply { result, fds, ..Reply::default() })
    }

    #[test]
    fn a_binding_has_its_descriptor() {
        let result = json!({"bindings": [
            {"kind": "device", "virtual": "/dev/emu0", "fd": 1},
            {"kind": "memory", "virtual": "/dev/shm/ring0", "real": "/dev/shm/x"},
        ]});
        let attached = of(result.clone(), 2).unwrap();
        assert!(attached.bindings[0].fd.is_some() && attached.bindings[1].fd.is_none());
        assert_eq!(
            of(result, 1).unwrap_err(),
            "/dev/emu0: \"fd\": 1 is none of the 1 descriptors of the message"
        );
    }

    #[test]
    fn what_came_as_a_descriptor_is_remembered_by_its_name() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connected = std::net::TcpStream::connect(address).unwrap();
        let memfd = nix::sys::memfd::memfd_create(c"ring", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let fds = vec![connected.into(), memfd];
        let result = json!({"bindings": [
            {"kind": "socket", "virtual": "tcp:emu:4000", "fd": 0},
            {"kind": "memory", "virtual": "/dev/shm/ring0", "fd": 1},
            {"kind": "device", "virtual": "/dev/emu0", "real": "/dev/pts/9"},
        ]});
        let attached = Attached::of("emu", Reply { result, fds, ..Reply::default() }).unwrap();
        let names = attached.bindings.iter().map(|bound| bound.recorded().unwrap().real().cloned());
        let names: Vec<Real> = names.map(Option::unwrap).collect();
        let address = format!("tcp:127.0.0.1:{}", address.port());
        let expected = [address.as_str(), "/memfd:ring (deleted)", "/dev/pts/9"].map(Real::from);
        assert_eq!(names, expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let device = json!({"kind": "device", "virtual": "/dev/emu0", "real": "/dev/null"});
        let ioctl =
            |handles| json!({"ioctls": [{"device": "/dev/emu0", "command": "0x4502", "handles": handles}]});
        for (result, why) in [
            (json!({"bindings": [device, device]}), "/dev/emu0: is bound twice"),
            (json!({"bindings": [{"kind": "device", "virtual": "/dev/emu0"}]}), "needs one of real and fd"),
            (json!({"mounts": [{"source": "opt", "destination": "/opt"}]}), "opt is not an absolute path"),
            (ioctl(json!([{"space": "s", "direction": "in"}])), "needs an offset and a size"),
            (ioctl(json!([{"space": "s", "offset": 0, "size": 3, "direction": "in"}])), "1, 2, 4 or 8"),
            (ioctl(json!([{"space": "s", "at": "argument", "direction": "out"}])), "an argument goes in"),
            (ioctl(json!([{"space": "s", "at": "result", "direction": "in"}])), "a result comes out"),
            (
                ioctl(json!([
                    {"space": "s", "at": "argument", "direction": "in"},
                    {"space": "s", "offset": 0, "size": 4, "direction": "in"},
                ])),
                "ioctl 0x4502: an argument that is a handle points to no structure",
            ),
        ] {
            let said = of(result, 0).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
