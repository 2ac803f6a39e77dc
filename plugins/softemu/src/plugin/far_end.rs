//! The job's end of a TCP connection, which only the job's own kernel tables show: those of the network namespace of its first
//! process, by sock_diag(7). In /proc/PID/net/tcp the same stands, but there every read(2) goes through the table of all
//! connections of the machine, which takes milliseconds, while the job stands still.

use ckrun_plugin::binding::Name;
use ckrun_plugin::call::{Space, Translate};
use ckrun_plugin::{Ckrun, Code, Fault};
use nix::errno::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// The process of the job that is asked for its network namespace.
const FIRST: u64 = 1;

/// What the kernel says of the job's end of a connection, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FarEnd {
    /// What the job has sent and the other end's kernel has not acknowledged.
    pub unacknowledged: u64,
    /// What has come and the job has not read.
    pub unread: u64,
}

/// Connections of a network namespace: where to, and the queues.
#[derive(Debug, Default)]
pub struct FarEnds(Vec<(SocketAddr, FarEnd)>);

impl FarEnds {
    /// Those of the job; without a job those of this process.
    pub fn of(ckrun: &mut Ckrun) -> Result<FarEnds, Fault> {
        let first = Translate {
            kind: Space::Pid,
            virtual_name: Some(Name::Number(FIRST)),
            real: None,
            space: None,
            pid: None,
            number: None,
        };
        let process = match ckrun.translate(first) {
            Ok((_, Name::Number(real))) => real.to_string(),
            Ok((_, Name::Text(_))) => "self".into(),
            Err(fault) if fault.kind() == Some(Code::Unknown) => "self".into(),
            Err(fault) => return Err(fault),
        };
        let why = |e| Fault::new(Code::Internal, format!("list the connections of process {process}: {e}"));
        FarEnds::there(&process).map_err(why)
    }

    /// Those in the network namespace of a process; to enter another one than this process's is root's.
    fn there(process: &str) -> std::io::Result<FarEnds> {
        let socket = asker(process)?;
        let mut all = FarEnds::default();
        for family in [libc::AF_INET, libc::AF_INET6] {
            all.list(&socket, family as u8)?;
        }
        Ok(all)
    }

    /// Adds those of a family.
    fn list(&mut self, socket: &OwnedFd, family: u8) -> std::io::Result<()> {
        rustix::net::send(socket, &request(family), SendFlags::empty())?;
        let mut buffer = vec![0; 32 << 10];
        loop {
            let (_, length) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::TRUNC)?;
            let mut rest = buffer.get(..length).ok_or(Errno::EMSGSIZE)?;
            while let Some((kind, body, behind)) = message(rest) {
                match kind {
                    DONE => return Ok(()),
                    ERROR => return Err(std::io::Error::from_raw_os_error(-number(body, 0).cast_signed())),
                    _ => self.0.extend(end(body)),
                }
                rest = behind;
            }
        }
    }

    /// All connections to an address together. None if there are none.
    pub fn of_address(&self, address: &str) -> Option<FarEnd> {
        let wanted: SocketAddr = address.parse().ok()?;
        let same = |there: &SocketAddr| {
            // A server that listens everywhere was reached by some address of its.
            there.port() == wanted.port() && (wanted.ip().is_unspecified() || there.ip() == wanted.ip())
        };
        self.0.iter().filter(|(there, _)| same(there)).map(|(_, end)| *end).reduce(|one, other| FarEnd {
            unacknowledged: one.unacknowledged + other.unacknowledged,
            unread: one.unread + other.unread,
        })
    }
}

/// `linux/sock_diag.h`, `linux/netlink.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_AND_DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `struct nlmsghdr`, and with `struct inet_diag_req_v2` behind it.
const HEAD: usize = 16;
const REQUEST: usize = HEAD + 56;
/// TCP_TIME_WAIT, TCP_CLOSE and TCP_LISTEN: what has no queues, or other ones. Those above TCP_CLOSING are none of a program's.
const STATES: u32 = 0xffe & !(1 << 6 | 1 << 7 | 1 << 10);

/// A socket that tells of the network namespace of a process. It belongs to that in which it was made.
fn asker(process: &str) -> std::io::Result<OwnedFd> {
    let open = || {
        let kind = (AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC);
        rustix::net::socket_with(kind.0, kind.1, kind.2, Some(netlink::SOCK_DIAG))
    };
    let there = File::open(format!("/proc/{process}/ns/net"))?;
    if there.metadata()?.ino() == std::fs::metadata("/proc/self/ns/net")?.ino() {
        return Ok(open()?);
    }
    // Only a thread enters, which ends then.
    let abroad = move || {
        move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network))?;
        open()
    };
    let made = std::thread::Builder::new().spawn(abroad)?.join();
    Ok(made.map_err(|_| Errno::ECHILD)??)
}

fn request(family: u8) -> Vec<u8> {
    let mut bytes = (REQUEST as u32).to_ne_bytes().to_vec();
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST_AND_DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(STATES.to_ne_bytes());
    bytes.resize(REQUEST, 0);
    bytes
}

/// The first message: its type, its body, and what is behind it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = number(bytes.get(..HEAD)?, 0) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let behind = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, bytes.get(HEAD..length)?, behind))
}

/// `struct inet_diag_msg`: the family, the remote port and address, the queues.
fn end(body: &[u8]) -> Option<(SocketAddr, FarEnd)> {
    let body = body.get(..72)?;
    let bytes: [u8; 16] = body[24..40].try_into().ok()?;
    let [a, b, c, d, ..] = bytes;
    let ip = match i32::from(body[0]) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::new(a, b, c, d)),
        _ => IpAddr::from(Ipv6Addr::from(bytes)).to_canonical(),
    };
    let remote = SocketAddr::new(ip, u16::from_be_bytes([body[6], body[7]]));
    let (unread, unacknowledged) = (number(body, 56).into(), number(body, 60).into());
    Some((remote, FarEnd { unacknowledged, unread }))
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn own() -> FarEnds {
        FarEnds::there("self").unwrap()
    }

    #[test]
    fn the_queues_of_a_connection_are_seen() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(host) else { continue };
            let address = listener.local_addr().unwrap().to_string();
            assert_eq!(own().of_address(&address), None);
            let mut job = TcpStream::connect(&address).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            assert_eq!(own().of_address(&address), Some(FarEnd::default()));
            server.write_all(b"twelve bytes").unwrap();
            while own().of_address(&address).unwrap().unread < 12 {}
            assert_eq!(own().of_address(&address).unwrap().unread, 12);
            job.read_exact(&mut [0; 12]).unwrap();
            assert_eq!(own().of_address(&address), Some(FarEnd::default()));
        }
    }

    #[test]
    fn another_network_namespace_is_looked_into() {
        let mut other = std::process::Command::new("unshare");
        let mut other = other.args(["--net", "cat"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = other.id().to_string();
        let space = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
        while space(&process) == space("self") {
            std::thread::yield_now();
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let _job = TcpStream::connect(&address).unwrap();
        assert_eq!(own().of_address(&address), Some(FarEnd::default()));
        assert_eq!(FarEnds::there(&process).unwrap().of_address(&address), None);
        drop(other.stdin.take());
        other.wait().unwrap();
    }

    #[test]
    fn what_is_cut_off_is_no_message() {
        let whole = request(libc::AF_INET as u8);
        assert_eq!(message(&whole).unwrap().0, SOCK_DIAG_BY_FAMILY);
        for length in 0..whole.len() {
            assert_eq!(message(&whole[..length]), None);
        }
        assert_eq!(end(&[0; 71]), None);
    }
}
