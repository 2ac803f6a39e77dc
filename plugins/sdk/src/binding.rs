//! What a plugin ties to the job: virtual names and what stands behind them.

use crate::number::{Hex, INTEGERS, integer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What kind of thing a virtual name is the name of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A device file, any other file, or a directory.
    Device,
    /// A file that is mapped.
    Memory,
    /// What the job connects to.
    Socket,
    /// A number inside claimed ioctls.
    Handle,
}

impl Kind {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Device => "device",
            Kind::Memory => "memory",
            Kind::Socket => "socket",
            Kind::Handle => "handle",
        }
    }
}

/// The real thing behind a virtual name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Real {
    /// A path on the host, or the address of a socket.
    Name(String),
    /// A descriptor of the message, counted from 0.
    Fd(u64),
}

/// One virtual name and what stands behind it. Its parts are checked when it is read: paths are absolute, addresses have
/// one of the forms of [`Address`], integers are below 2^53.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub enum Binding {
    /// The real file, or directory, is shown at the virtual path.
    Device {
        /// Absolute, in the container.
        virtual_path: String,
        /// An absolute path on the host, or a descriptor.
        real: Real,
    },
    /// Likewise, of a file that is mapped.
    Memory {
        /// Absolute, in the container.
        virtual_path: String,
        /// An absolute path on the host, or a descriptor, which may be a memfd.
        real: Real,
    },
    /// A connect(2) to the virtual address goes to the real one.
    Socket {
        /// As the job says it.
        virtual_address: Address,
        /// An [`Address`], or at a restart a connected socket.
        real: Real,
    },
    /// A number that is translated in the ioctls that are claimed.
    Handle {
        /// Where the number is unique.
        space: String,
        /// As the job knows it.
        virtual_number: u64,
        /// As the driver knows it.
        real_number: u64,
    },
}

impl Binding {
    /// A device file, or a directory of them, at `virtual_path` in the container.
    pub fn device(virtual_path: impl Into<String>, real: impl Into<Real>) -> Binding {
        Binding::Device { virtual_path: virtual_path.into(), real: real.into() }
    }

    /// A file that the job maps.
    pub fn memory(virtual_path: impl Into<String>, real: impl Into<Real>) -> Binding {
        Binding::Memory { virtual_path: virtual_path.into(), real: real.into() }
    }

    /// An address that the job connects to.
    pub fn socket(virtual_address: Address, real: impl Into<Real>) -> Binding {
        Binding::Socket { virtual_address, real: real.into() }
    }

    /// A vendor's number; both are below 2^53.
    pub fn handle(space: impl Into<String>, virtual_number: u64, real_number: u64) -> Binding {
        Binding::Handle { space: space.into(), virtual_number, real_number }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Binding::Device { .. } => Kind::Device,
            Binding::Memory { .. } => Kind::Memory,
            Binding::Socket { .. } => Kind::Socket,
            Binding::Handle { .. } => Kind::Handle,
        }
    }

    /// The virtual name for people: no two bindings of a job have the same.
    pub fn virtual_name(&self) -> String {
        match self {
            Binding::Device { virtual_path, .. } | Binding::Memory { virtual_path, .. } => {
                virtual_path.clone()
            }
            Binding::Socket { virtual_address, .. } => virtual_address.to_string(),
            Binding::Handle { space, virtual_number, .. } => format!("{space} {virtual_number}"),
        }
    }

    /// What is behind it; a handle has its number there.
    pub fn real(&self) -> Option<&Real> {
        match self {
            Binding::Device { real, .. } | Binding::Memory { real, .. } | Binding::Socket { real, .. } => {
                Some(real)
            }
            Binding::Handle { .. } => None,
        }
    }

    /// The same, to be changed.
    pub fn real_mut(&mut self) -> Option<&mut Real> {
        match self {
            Binding::Device { real, .. } | Binding::Memory { real, .. } | Binding::Socket { real, .. } => {
                Some(real)
            }
            Binding::Handle { .. } => None,
        }
    }
}

impl From<&str> for Real {
    fn from(name: &str) -> Real {
        Real::Name(name.into())
    }
}

impl From<String> for Real {
    fn from(name: String) -> Real {
        Real::Name(name)
    }
}

impl From<Address> for Real {
    fn from(address: Address) -> Real {
        Real::Name(address.to_string())
    }
}

/// The address of a socket: `tcp:HOST:PORT`, `unix:PATH` or `unix:@NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A name or an address (an IPv6 address in brackets), and a port.
    Tcp(String, u16),
    /// An absolute path.
    Unix(String),
    /// A name in the abstract namespace, without its zero byte.
    Abstract(String),
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let tcp = text.strip_prefix("tcp:").and_then(|rest| rest.rsplit_once(':'));
        if let Some((host, port)) = tcp
            && !host.is_empty()
            && let Ok(port) = port.parse()
        {
            return Ok(Address::Tcp(host.into(), port));
        }
        match text.strip_prefix("unix:").map(|rest| (rest, rest.strip_prefix('@'))) {
            Some((_, Some(name))) if !name.is_empty() => Ok(Address::Abstract(name.into())),
            Some((path, None)) if path.starts_with('/') => Ok(Address::Unix(path.into())),
            _ => Err(format!("{text:?} is neither tcp:HOST:PORT nor unix:PATH nor unix:@NAME")),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{path}"),
            Address::Abstract(name) => write!(f, "unix:@{name}"),
        }
    }
}

/// A virtual or a real name as JSON has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Name {
    /// Of a handle, a process, a thread, a descriptor.
    Number(u64),
    /// Of everything else.
    Text(String),
}

/// A binding as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Raw {
    kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    space: Option<String>,
    r#virtual: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    real: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fd: Option<u64>,
}

impl From<Binding> for Raw {
    fn from(binding: Binding) -> Raw {
        let raw = |kind, space, r#virtual, real: Real| {
            let (real, fd) = match real {
                Real::Name(name) => (Some(Name::Text(name)), None),
                Real::Fd(index) => (None, Some(index)),
            };
            Raw { kind, space, r#virtual, real, fd }
        };
        let kind = binding.kind();
        match binding {
            Binding::Device { virtual_path, real } | Binding::Memory { virtual_path, real } => {
                raw(kind, None, Name::Text(virtual_path), real)
            }
            Binding::Socket { virtual_address, real } => {
                raw(kind, None, Name::Text(virtual_address.to_string()), real)
            }
            Binding::Handle { space, virtual_number, real_number } => Raw {
                kind,
                space: Some(space),
                r#virtual: Name::Number(virtual_number),
                real: Some(Name::Number(real_number)),
                fd: None,
            },
        }
    }
}

impl TryFrom<Raw> for Binding {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Binding, String> {
        let Raw { kind, space, r#virtual, real, fd } = raw;
        if kind == Kind::Handle {
            return match (space, r#virtual, real, fd) {
                (Some(space), Name::Number(virtual_number), Some(Name::Number(real_number)), None)
                    if virtual_number.max(real_number) < INTEGERS =>
                {
                    Ok(Binding::Handle { space, virtual_number, real_number })
                }
                _ => {
                    Err("a binding of kind handle needs a space, and integers below 2^53 as virtual and real"
                        .into())
                }
            };
        }
        let Name::Text(name) = r#virtual else {
            return Err(format!("the virtual name of kind {} is a string", kind.name()));
        };
        let real = match (real, fd) {
            (Some(Name::Text(real)), None) => Real::Name(real),
            (None, Some(index)) => Real::Fd(index),
            (Some(Name::Number(_)), _) => return Err(format!("{name}: real is a string")),
            _ => return Err(format!("{name}: needs one of real and fd")),
        };
        let absolute = |path: &str| {
            if path.starts_with('/') { Ok(()) } else { Err(format!("{path:?} is not an absolute path")) }
        };
        if kind == Kind::Socket {
            let virtual_address = name.parse()?;
            if let Real::Name(real) = &real {
                real.parse::<Address>()?;
            }
            return Ok(Binding::Socket { virtual_address, real });
        }
        absolute(&name)?;
        if let Real::Name(real) = &real {
            absolute(real)?;
        }
        Ok(match kind {
            Kind::Memory => Binding::Memory { virtual_path: name, real },
            _ => Binding::Device { virtual_path: name, real },
        })
    }
}

/// A mount for the sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute, on the host.
    pub source: PathBuf,
    /// Absolute, in the container.
    pub destination: PathBuf,
    /// Those of mount(8): `ro`, `noexec`, …
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// Which way a handle goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the job to the driver: virtual to real.
    In,
    /// From the driver to the job: real to virtual.
    Out,
    /// Both.
    Both,
}

/// Where a handle is in an ioctl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the structure that the argument points to.
    Within {
        /// Bytes from its beginning.
        offset: u64,
        /// Bytes: 1, 2, 4 or 8.
        size: u64,
    },
    /// The argument is the handle, and points to nothing. It only goes in.
    Argument {
        /// How many bytes of it count: 4 or 8.
        size: u64,
    },
    /// What the ioctl returns. It only comes out.
    Result,
}

/// A handle in an ioctl.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawHandle", into = "RawHandle")]
pub struct Handle {
    /// Where the number is unique.
    pub space: String,
    /// Where it is.
    pub place: Place,
    /// Which way it goes.
    pub direction: Direction,
}

/// The word for a place that is none in a structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum At {
    Argument,
    Result,
}

/// A handle as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct RawHandle {
    space: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<At>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "maybe_integer")]
    offset: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "maybe_integer")]
    size: Option<u64>,
    direction: Direction,
}

impl From<Handle> for RawHandle {
    fn from(Handle { space, place, direction }: Handle) -> RawHandle {
        let (at, offset, size) = match place {
            Place::Within { offset, size } => (None, Some(offset), Some(size)),
            Place::Argument { size } => (Some(At::Argument), None, Some(size)),
            Place::Result => (Some(At::Result), None, None),
        };
        RawHandle { space, at, offset, size, direction }
    }
}

impl TryFrom<RawHandle> for Handle {
    type Error = String;

    fn try_from(raw: RawHandle) -> Result<Handle, String> {
        let RawHandle { space, at, offset, size, direction } = raw;
        let place = match (at, offset, size, direction) {
            (None, Some(offset), Some(size @ (1 | 2 | 4 | 8)), _) => Place::Within { offset, size },
            (Some(At::Argument), None, None, Direction::In) => Place::Argument { size: 8 },
            (Some(At::Argument), None, Some(size @ (4 | 8)), Direction::In) => Place::Argument { size },
            (Some(At::Result), None, None, Direction::Out) => Place::Result,
            (None, ..) => {
                return Err(format!("handle of {space}: needs an offset and a size of 1, 2, 4 or 8"));
            }
            (Some(At::Argument), ..) => {
                let why = "goes in, has no offset, and a size of 4 or 8 if any";
                return Err(format!("handle of {space}: an argument {why}"));
            }
            (Some(At::Result), ..) => {
                return Err(format!(
                    "handle of {space}: a result comes out, and has neither offset nor size"
                ));
            }
        };
        Ok(Handle { space, place, direction })
    }
}

fn maybe_integer<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    integer(from).map(Some)
}

/// An ioctl command that a plugin claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ioctl {
    /// The virtual path of the device.
    pub device: String,
    /// The command's number.
    pub command: Hex,
    /// The handles in its argument.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handles: Vec<Handle>,
}

/// The answer to `init` and `restart`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What the job is tied to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bindings: Vec<Binding>,
    /// Variables for the job's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Mounts for its sandbox.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Commands in which handles are to be translated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ioctls: Vec<Ioctl>,
}

/// The answer to `resume` and `recover`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebinding {
    /// They replace those of the same virtual names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bindings: Vec<Binding>,
}
