//! The job's end of a TCP connection, which only the job's own kernel tables show: /proc/PID/net/tcp and tcp6, of the
//! network namespace of process PID.

use ckrun_plugin::binding::Name;
use ckrun_plugin::call::{Space, Translate};
use ckrun_plugin::{Ckrun, Code, Fault};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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
        let mut all = FarEnds::default();
        for table in ["tcp", "tcp6"] {
            let path = format!("/proc/{process}/net/{table}");
            match fs::read_to_string(&path) {
                Ok(text) => all.0.extend(text.lines().filter_map(row)),
                // A kernel without IPv6.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && table == "tcp6" => {}
                Err(e) => return Err(Fault::new(Code::Internal, format!("read {path}: {e}"))),
            }
        }
        Ok(all)
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

/// A line of the table: number, local and remote address, state, the queues in hexadecimal digits.
fn row(line: &str) -> Option<(SocketAddr, FarEnd)> {
    let mut words = line.split_ascii_whitespace().skip(2);
    let (remote, state, queues) = (words.next()?, words.next()?, words.next()?);
    // TCP_LISTEN: the second queue counts connections there.
    if state == "0A" {
        return None;
    }
    let (sent, received) = queues.split_once(':')?;
    let bytes = |digits| u64::from_str_radix(digits, 16).ok();
    Some((socket_address(remote)?, FarEnd { unacknowledged: bytes(sent)?, unread: bytes(received)? }))
}

/// Words of 32 bits as this machine would print them, but each holds bytes in network order; the port is a number.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let mut bytes = Vec::new();
    for at in (0..ip.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn own() -> FarEnds {
        let read = |table| fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default();
        FarEnds([read("tcp"), read("tcp6")].concat().lines().filter_map(row).collect())
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
    fn addresses_of_both_families_are_read() {
        let v4 = if cfg!(target_endian = "little") { "0100007F:1F90" } else { "7F000001:1F90" };
        assert_eq!(socket_address(v4).unwrap().to_string(), "127.0.0.1:8080");
        assert_eq!(socket_address("0100007F"), None);
        assert_eq!(socket_address("01007F:1F90"), None);
    }
}
