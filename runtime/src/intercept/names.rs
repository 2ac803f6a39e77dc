//! The addresses of sockets, as a plugin writes them and as the kernel does (ip(7), ipv6(7), unix(7)).

use ckrun_plugin::binding::Address;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;

/// The longest path or name of a Unix socket.
const UNIX_MAX: usize = 108;

/// The address of a socket. An IPv4 address inside an IPv6 one is the former.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Name {
    /// Of TCP.
    Inet(SocketAddr),
    /// A path.
    Path(Vec<u8>),
    /// A name in the abstract namespace, without its zero byte.
    Abstract(Vec<u8>),
}

impl Name {
    /// Reads a `struct sockaddr`; None for a family that is none of these, or one that is cut off.
    pub fn read(bytes: &[u8]) -> Option<Name> {
        let family = libc::c_int::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let port = || Some(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
        match family {
            libc::AF_INET => {
                let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
                Some(Name::Inet((Ipv4Addr::from(ip), port()?).into()))
            }
            libc::AF_INET6 => {
                let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
                Some(Name::Inet((Ipv6Addr::from(ip).to_canonical(), port()?).into()))
            }
            libc::AF_UNIX => match bytes.get(2..)? {
                [] => None,
                [0, name @ ..] => Some(Name::Abstract(name.to_vec())),
                path => Some(Name::Path(path.split(|byte| *byte == 0).next()?.to_vec())),
            },
            _ => None,
        }
    }

    /// Writes a `struct sockaddr` for a socket of `family`, `AF_*`; None if that has no such addresses.
    pub fn write(&self, family: libc::c_int) -> Option<Vec<u8>> {
        let mut bytes = (family as libc::sa_family_t).to_ne_bytes().to_vec();
        match (self, family) {
            (Name::Inet(SocketAddr::V4(address)), libc::AF_INET) => {
                bytes.extend(address.port().to_be_bytes());
                bytes.extend(address.ip().octets());
                bytes.extend([0; 8]);
            }
            (Name::Inet(address), libc::AF_INET6) => {
                let ip = match address.ip() {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                bytes.extend(address.port().to_be_bytes());
                // The label of the flow.
                bytes.extend([0; 4]);
                bytes.extend(ip.octets());
                let scope = if let SocketAddr::V6(address) = address { address.scope_id() } else { 0 };
                bytes.extend(scope.to_ne_bytes());
            }
            (Name::Path(path), libc::AF_UNIX) if path.len() < UNIX_MAX => {
                bytes.extend(path);
                bytes.push(0);
            }
            (Name::Abstract(name), libc::AF_UNIX) if name.len() < UNIX_MAX => {
                bytes.push(0);
                bytes.extend(name);
            }
            _ => return None,
        }
        Some(bytes)
    }

    /// An address as tables have it, without the word for its family: `10.0.0.7:5011`, `/run/emu.sock`, `@emu`.
    pub fn bare(text: &[u8]) -> Option<Name> {
        match text {
            [b'/', ..] => Some(Name::Path(text.to_vec())),
            [b'@', name @ ..] => Some(Name::Abstract(name.to_vec())),
            text => Some(Name::Inet(std::str::from_utf8(text).ok()?.parse().ok()?)),
        }
    }

    /// The address that a plugin or a person has written, whose host is `ip` if that is a name.
    ///
    /// # Errors
    /// The reason why `host` leads nowhere.
    pub fn of(address: &Address, find: impl FnOnce(&str) -> Result<IpAddr, String>) -> Result<Name, String> {
        Ok(match address {
            Address::Tcp(host, port) => {
                let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
                let ip = bare.parse().or_else(|_| find(bare))?;
                Name::Inet((ip.to_canonical(), *port).into())
            }
            Address::Unix(path) => Name::Path(std::ffi::OsStr::new(path).as_bytes().to_vec()),
            Address::Abstract(name) => Name::Abstract(name.as_bytes().to_vec()),
        })
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Name, String> {
        Name::of(&text.parse()?, |host| Err(format!("{host:?} is no address")))
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.to_string()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Inet(address) => write!(f, "tcp:{address}"),
            Name::Path(path) => write!(f, "unix:{}", String::from_utf8_lossy(path)),
            Name::Abstract(name) => write!(f, "unix:@{}", String::from_utf8_lossy(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::of(&text.parse().unwrap(), |host| Err(format!("{host} is unknown"))).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        for (text, family) in [
            ("tcp:10.77.0.2:5011", libc::AF_INET),
            ("tcp:10.77.0.2:5011", libc::AF_INET6),
            ("tcp:[fd00::7]:5011", libc::AF_INET6),
            ("unix:/run/emu.sock", libc::AF_UNIX),
            ("unix:@emu", libc::AF_UNIX),
        ] {
            let name = name(text);
            assert_eq!(Name::read(&name.write(family).unwrap()), Some(name.clone()), "{text}");
            assert_eq!(name.to_string(), text);
        }
        assert_eq!(name("tcp:[fd00::7]:5011").write(libc::AF_INET), None);
        assert_eq!(name("unix:@emu").write(libc::AF_INET), None);
    }

    #[test]
    fn no_address_is_no_panic() {
        let whole = name("tcp:[fd00::7]:5011").write(libc::AF_INET6).unwrap();
        for length in 0..24 {
            assert_eq!(Name::read(&whole[..length]), None);
        }
        assert_eq!(Name::read(&[1, 0]), None);
        assert_eq!(Name::read(&[16, 0, 0, 0]), None);
    }

    #[test]
    fn a_host_is_asked_for_only_if_it_is_a_name() {
        let address: Address = "tcp:emu:4000".parse().unwrap();
        let found = Name::of(&address, |host| {
            assert_eq!(host, "emu");
            Ok(Ipv4Addr::new(198, 18, 0, 1).into())
        });
        assert_eq!(found, Ok(name("tcp:198.18.0.1:4000")));
        assert!(Name::of(&address, |host| Err(format!("{host} is unknown"))).is_err());
    }
}
