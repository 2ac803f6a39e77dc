//! getsockopt(2) and setsockopt(2), for options that no crate knows.

use super::check;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// Reads an option into `bytes`; the answer is how many of them it has, or, for attached filters, how many instructions.
///
/// # Errors
/// `ENOPROTOOPT`, `EOPNOTSUPP` where there is no such option; `ENOTSOCK`.
pub fn get(fd: impl AsFd, level: i32, name: i32, bytes: &mut [u8]) -> Result<usize, Errno> {
    let mut length = libc::socklen_t::try_from(bytes.len()).map_err(|_| Errno::EINVAL)?;
    read(fd, level, name, bytes, &mut length)?;
    Ok(length as usize)
}

/// Reads an attached classic filter: its instructions, none if there is no filter.
///
/// # Errors
/// `EACCES` when it is one of eBPF.
pub fn filter(fd: impl AsFd) -> Result<Vec<u64>, Errno> {
    // The kernel counts this option in instructions.
    let mut count = 0;
    read(&fd, libc::SOL_SOCKET, libc::SO_GET_FILTER, &mut [], &mut count)?;
    let mut bytes = vec![0; count as usize * 8];
    if count > 0 {
        read(&fd, libc::SOL_SOCKET, libc::SO_GET_FILTER, &mut bytes, &mut count)?;
    }
    Ok(bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect())
}

fn read(
    fd: impl AsFd,
    level: i32,
    name: i32,
    bytes: &mut [u8],
    length: &mut libc::socklen_t,
) -> Result<(), Errno> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: `bytes` has room for what the caller says by `length` (a filter of `length` instructions in as many times 8
    // bytes), and both live through the call.
    let got = unsafe { libc::getsockopt(fd, level, name, bytes.as_mut_ptr().cast(), length) };
    check(got.into()).map(drop)
}

/// Reads an option that is an `int`.
///
/// # Errors
/// As [`get`].
pub fn number(fd: impl AsFd, level: i32, name: i32) -> Result<i32, Errno> {
    let mut bytes = [0; 4];
    get(fd, level, name, &mut bytes)?;
    Ok(i32::from_ne_bytes(bytes))
}

/// Sets an option.
///
/// # Errors
/// `EPERM`, `EINVAL`, `ENOPROTOOPT`.
pub fn set(fd: impl AsFd, level: i32, name: i32, bytes: &[u8]) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(bytes.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads `length` bytes, which live through the call.
    let set = unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, bytes.as_ptr().cast(), length) };
    check(set.into()).map(drop)
}

/// Sets an option that is an `int`.
///
/// # Errors
/// As [`set`].
pub fn set_number(fd: impl AsFd, level: i32, name: i32, value: i32) -> Result<(), Errno> {
    set(fd, level, name, &value.to_ne_bytes())
}

/// Attaches a classic filter, as [`filter`] has it.
///
/// # Errors
/// `EINVAL` when it is no program; `EPERM` when the filter that is there is locked.
pub fn attach_filter(fd: impl AsFd, program: &[u64]) -> Result<(), Errno> {
    let instruction = |word: &u64| {
        let [c0, c1, jt, jf, k0, k1, k2, k3] = word.to_ne_bytes();
        let (code, k) = (u16::from_ne_bytes([c0, c1]), u32::from_ne_bytes([k0, k1, k2, k3]));
        libc::sock_filter { code, jt, jf, k }
    };
    let mut instructions: Vec<libc::sock_filter> = program.iter().map(instruction).collect();
    let len = u16::try_from(instructions.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
    // SAFETY: the kernel reads `len` instructions, which live through the call.
    let set = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    check(set.into()).map(drop)
}
