//! ioctl(2) on terminals (tty_ioctl(2), pty(7)).

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `asm-generic/ioctls.h`; not in libc, or not for every architecture.
mod request {
    pub const TIOCGPTN: u64 = 0x8004_5430;
    pub const TIOCGDEV: u64 = 0x8004_5432;
    pub const TIOCGPKT: u64 = 0x8004_5438;
    pub const TIOCGPTLCK: u64 = 0x8004_5439;
    pub const TIOCGEXCL: u64 = 0x8004_5440;
    pub const TIOCGLCKTRMIOS: u64 = 0x5456;
    pub const TIOCSLCKTRMIOS: u64 = 0x5457;
}

/// The settings of a terminal (`struct termios2` of the kernel).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// `c_iflag`.
    pub input: u32,
    /// `c_oflag`.
    pub output: u32,
    /// `c_cflag`.
    pub control: u32,
    /// `c_lflag`.
    pub local: u32,
    /// `c_line`.
    pub line: u8,
    /// `c_cc`.
    pub characters: [u8; 19],
    /// `c_ispeed` and `c_ospeed`.
    pub speeds: [u32; 2],
}

/// Which of the settings nobody without privilege can change (`struct termios` of the kernel).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Locked {
    /// The flags in the order of [`Settings`].
    pub flags: [u32; 4],
    /// `c_line`.
    pub line: u8,
    /// `c_cc`.
    pub characters: [u8; 19],
}

impl Locked {
    /// None is.
    pub fn is_empty(&self) -> bool {
        self.flags == [0; 4] && self.line == 0 && self.characters == [0; 19]
    }
}

/// The size of a terminal's window: rows, columns, and both in pixels.
pub type Window = [u16; 4];

/// `struct termios` of the kernel, which is not that of the C library.
#[repr(C)]
#[derive(Clone, Copy)]
struct KernelTermios {
    flags: [u32; 4],
    line: u8,
    characters: [u8; 19],
}

/// Makes a call by which the kernel reads or writes one `T`.
fn by_pointer<T: Copy>(fd: impl AsFd, request: u64, value: &mut T) -> Result<(), Errno> {
    // SAFETY: every caller in this file pairs a request with the type that it reads or writes, which holds plain numbers
    // only and lives through the call.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, std::ptr::from_mut(value)) })
        .map(drop)
}

/// Makes a call whose argument is a plain number.
fn by_number(fd: impl AsFd, request: u64, value: libc::c_int) -> Result<libc::c_int, Errno> {
    // SAFETY: the requests that this file makes by number take no pointer.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, value) })
}

fn number(fd: impl AsFd, request: u64) -> Result<i32, Errno> {
    let mut value: libc::c_int = 0;
    by_pointer(fd, request, &mut value)?;
    Ok(value)
}

/// The index of a master.
///
/// # Errors
/// `ENOTTY` for what is none.
pub fn index(master: impl AsFd) -> Result<u32, Errno> {
    number(master, request::TIOCGPTN).map(i32::cast_unsigned)
}

/// The device number of the terminal that `/dev/tty` was for whoever opened it.
///
/// # Errors
/// `EIO` when it has been hung up.
pub fn device(terminal: impl AsFd) -> Result<u64, Errno> {
    // The kernel packs 12 bits of major and 20 of minor into one word (new_encode_dev).
    let packed = u64::from(number(terminal, request::TIOCGDEV)?.cast_unsigned());
    let minor = (packed & 0xff) | (packed >> 12 & 0xf_ff00);
    Ok(rustix::fs::makedev((packed >> 8 & 0xfff) as u32, minor as u32))
}

/// The settings. Those of a slave, whichever end is asked.
///
/// # Errors
/// `EIO` when it has been hung up.
pub fn settings(terminal: impl AsFd) -> Result<Settings, Errno> {
    // SAFETY: all numbers, for which zero is a value.
    let mut raw: libc::termios2 = unsafe { std::mem::zeroed() };
    by_pointer(terminal, libc::TCGETS2, &mut raw)?;
    Ok(Settings {
        input: raw.c_iflag,
        output: raw.c_oflag,
        control: raw.c_cflag,
        local: raw.c_lflag,
        line: raw.c_line,
        characters: raw.c_cc,
        speeds: [raw.c_ispeed, raw.c_ospeed],
    })
}

/// Changes the settings at once; what waits to be read stays.
///
/// # Errors
/// As [`settings`].
pub fn set_settings(terminal: impl AsFd, settings: &Settings) -> Result<(), Errno> {
    let mut raw = libc::termios2 {
        c_iflag: settings.input,
        c_oflag: settings.output,
        c_cflag: settings.control,
        c_lflag: settings.local,
        c_line: settings.line,
        c_cc: settings.characters,
        c_ispeed: settings.speeds[0],
        c_ospeed: settings.speeds[1],
    };
    by_pointer(terminal, libc::TCSETS2, &mut raw)
}

/// Which settings are locked.
///
/// # Errors
/// As [`settings`].
pub fn locked(terminal: impl AsFd) -> Result<Locked, Errno> {
    let mut raw = KernelTermios { flags: [0; 4], line: 0, characters: [0; 19] };
    by_pointer(terminal, request::TIOCGLCKTRMIOS, &mut raw)?;
    Ok(Locked { flags: raw.flags, line: raw.line, characters: raw.characters })
}

/// Locks settings.
///
/// # Errors
/// As [`settings`]; `EPERM` without CAP_SYS_ADMIN.
pub fn set_locked(terminal: impl AsFd, locked: &Locked) -> Result<(), Errno> {
    let mut raw = KernelTermios { flags: locked.flags, line: locked.line, characters: locked.characters };
    by_pointer(terminal, request::TIOCSLCKTRMIOS, &mut raw)
}

/// The window's size.
///
/// # Errors
/// As [`settings`].
pub fn window(terminal: impl AsFd) -> Result<Window, Errno> {
    let mut window: Window = [0; 4];
    by_pointer(terminal, libc::TIOCGWINSZ, &mut window)?;
    Ok(window)
}

/// Sets the window's size; the foreground group is told if that changes it.
///
/// # Errors
/// As [`settings`].
pub fn set_window(terminal: impl AsFd, mut window: Window) -> Result<(), Errno> {
    by_pointer(terminal, libc::TIOCSWINSZ, &mut window)
}

/// The line discipline.
///
/// # Errors
/// As [`settings`].
pub fn discipline(terminal: impl AsFd) -> Result<i32, Errno> {
    number(terminal, libc::TIOCGETD)
}

/// Nobody else may open this end (TIOCEXCL).
///
/// # Errors
/// As [`settings`].
pub fn is_exclusive(end: impl AsFd) -> Result<bool, Errno> {
    number(end, request::TIOCGEXCL).map(|value| value != 0)
}

/// Keeps others from opening this end.
///
/// # Errors
/// As [`settings`].
pub fn make_exclusive(end: impl AsFd) -> Result<(), Errno> {
    by_number(end, libc::TIOCEXCL, 0).map(drop)
}

/// The slave of this master can't be opened.
///
/// # Errors
/// As [`index`].
pub fn is_locked(master: impl AsFd) -> Result<bool, Errno> {
    number(master, request::TIOCGPTLCK).map(|value| value != 0)
}

/// Locks or unlocks the slave of a master.
///
/// # Errors
/// As [`index`].
pub fn lock(master: impl AsFd, lock: bool) -> Result<(), Errno> {
    by_pointer(master, libc::TIOCSPTLCK, &mut libc::c_int::from(lock))
}

/// A master is in packet mode.
///
/// # Errors
/// As [`index`].
pub fn is_packet(master: impl AsFd) -> Result<bool, Errno> {
    number(master, request::TIOCGPKT).map(|value| value != 0)
}

/// Sets the packet mode of a master; it forgets what it would have told of the slave.
///
/// # Errors
/// As [`index`].
pub fn set_packet(master: impl AsFd, on: bool) -> Result<(), Errno> {
    by_pointer(master, libc::TIOCPKT, &mut libc::c_int::from(on))
}

/// Opens the slave of a master, wherever it is mounted.
///
/// # Errors
/// `EIO` when it is locked.
pub fn slave(master: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let fd = by_number(master, libc::TIOCGPTPEER, flags)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a byte where those wait that the other end has written, after them (TIOCSTI).
///
/// # Errors
/// `EPERM`, `EIO` without CAP_SYS_ADMIN.
pub fn push(end: impl AsFd, mut byte: u8) -> Result<(), Errno> {
    by_pointer(end, libc::TIOCSTI, &mut byte)
}

/// Lets the output of a terminal go on, whatever has stopped it.
///
/// # Errors
/// As [`settings`].
pub fn start_output(terminal: impl AsFd) -> Result<(), Errno> {
    // TCOON ends what TCOOFF has begun, and that takes over from ^S.
    let terminal = terminal.as_fd();
    stop_output(terminal)?;
    by_number(terminal, libc::TCXONC, libc::TCOON).map(drop)
}

/// Stops the output of a terminal (TCOOFF).
///
/// # Errors
/// As [`settings`].
pub fn stop_output(terminal: impl AsFd) -> Result<(), Errno> {
    by_number(terminal, libc::TCXONC, libc::TCOOFF).map(drop)
}
