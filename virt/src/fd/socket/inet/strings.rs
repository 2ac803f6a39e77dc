//! Options of the internet protocols that are more than a number: only those that the job has set.

use crate::image::Bytes;
use crate::sys::sockopt;
use crate::{Doing, Failure};
use libc::{IPPROTO_IP, IPPROTO_IPV6, SOL_SOCKET};
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

/// Options by name.
pub type Strings = BTreeMap<String, Bytes>;

/// `linux/in.h`, `linux/in6.h`, `asm-generic/socket.h`.
const KNOWN: [(&str, i32, i32); 6] = [
    ("ip-options", IPPROTO_IP, libc::IP_OPTIONS),
    ("ipv6-hopopts", IPPROTO_IPV6, 54),
    ("ipv6-rthdrdstopts", IPPROTO_IPV6, 55),
    ("ipv6-rthdr", IPPROTO_IPV6, 57),
    ("ipv6-dstopts", IPPROTO_IPV6, 59),
    ("txtime", SOL_SOCKET, 61),
];
/// An extension header has no more.
const MOST: usize = 2048;

/// Reads all of them.
pub fn read(fd: BorrowedFd<'_>) -> Strings {
    let one = |(name, level, option): (&str, i32, i32)| {
        let mut bytes = vec![0; MOST];
        // There are some for some families and types only.
        let len = sockopt::get(fd, level, option, &mut bytes).ok()?.min(MOST);
        bytes.truncate(len);
        bytes.iter().any(|&byte| byte != 0).then(|| (name.to_owned(), Bytes::from(bytes)))
    };
    KNOWN.into_iter().filter_map(one).collect()
}

/// Gives them to a new socket.
///
/// # Errors
/// The kernel's, by the option's name.
pub fn set(fd: BorrowedFd<'_>, strings: &Strings) -> Result<(), Failure> {
    for (name, level, option) in KNOWN {
        if let Some(bytes) = strings.get(name) {
            sockopt::set(fd, level, option, bytes).doing(|| format!("set the option {name} of a socket"))?;
        }
    }
    Ok(())
}

/// The option that no image may name because there is none.
pub fn unknown(strings: &Strings) -> Option<&str> {
    strings.keys().find(|name| !KNOWN.iter().any(|known| known.0 == name.as_str())).map(String::as_str)
}
