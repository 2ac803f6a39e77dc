//! Claimed ioctl(2) commands of devices: handles in their arguments are translated, the rest is the driver's.

use super::call::{Answer, Call};
use super::listen::lock;
use super::{Claims, Command};
use ckrun_plugin::binding::{Direction, Handle};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// `asm-generic/ioctl.h`: where a command has the size of what its argument points to, and the direction.
const SIZE_SHIFT: u32 = 16;
const SIZE_MASK: u32 = (1 << 14) - 1;

/// The longest argument: what a command can say, and a page for handles beyond that in commands that say nothing.
const LARGEST: u64 = 1 << 16;

/// Carries a claimed command out in the task's place, on the same open file description.
pub fn answer(call: &Call<'_>, claims: &Claims) -> Answer {
    let [number, command, argument, ..] = call.args;
    let command = command as u32;
    let mut claimed = claims.ioctls.iter().filter(|c| c.claim.command.0 as u32 == command).peekable();
    if claimed.peek().is_none() {
        return Answer::GoOn;
    }
    let Ok(device) = call.descriptor(number) else { return Answer::GoOn };
    let Some(claimed) = claimed.find(|command| is(&device, command)) else { return Answer::GoOn };
    match carry_out(call, claims, claimed, &device, argument) {
        Ok(result) => Answer::Done(result),
        Err(e) => e.into(),
    }
}

/// The descriptor is of that device.
fn is(device: &OwnedFd, command: &Command) -> bool {
    let (Ok(one), Ok(other)) = (rustix::fs::fstat(device), rustix::fs::stat(&command.device)) else {
        return false;
    };
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

fn carry_out(
    call: &Call<'_>,
    claims: &Claims,
    command: &Command,
    device: &OwnedFd,
    address: u64,
) -> Result<i64, Errno> {
    let number = command.claim.command.0 as u32;
    let handles = &command.claim.handles;
    let said = u64::from(number >> SIZE_SHIFT & SIZE_MASK);
    let length = handles.iter().map(|handle| handle.offset.saturating_add(handle.size)).fold(said, u64::max);
    if length > LARGEST {
        return Err(Errno::EINVAL);
    }
    let mut bytes = call.read(address, length as usize)?;
    if bytes.len() < length as usize {
        return Err(Errno::EFAULT);
    }
    for handle in handles.iter().filter(|handle| handle.direction != Direction::Out) {
        let known = get(&bytes, handle)?;
        let Some(real) = lock(&claims.handles).to_real(&handle.space, known) else {
            log::warn!("ioctl {number:#x}: {} {known} is bound to nothing", handle.space);
            return Err(Errno::EINVAL);
        };
        put(&mut bytes, handle, real)?;
    }
    // SAFETY: the command's driver takes the argument for a pointer to a structure of the size that the command or its claim
    // says, and so many bytes are there. That it is such a command is the claim.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), number.into(), bytes.as_mut_ptr()) };
    let result = Errno::result(done)?;
    for handle in handles {
        let real = get(&bytes, handle)?;
        let mut known = lock(&claims.handles);
        // One that only goes in comes back as it went.
        let number = match handle.direction {
            Direction::In => known.to_virtual(&handle.space, real).unwrap_or(real),
            Direction::Out | Direction::Both => known.meet(&handle.space, real),
        };
        drop(known);
        put(&mut bytes, handle, number)?;
    }
    call.write(address, &bytes)?;
    Ok(result.into())
}

/// The number at a handle's place.
fn get(bytes: &[u8], handle: &Handle) -> Result<u64, Errno> {
    let mut number = [0; 8];
    let at = place(bytes.len(), handle)?;
    number[..at.len()].copy_from_slice(&bytes[at]);
    Ok(u64::from_le_bytes(number))
}

fn put(bytes: &mut [u8], handle: &Handle, number: u64) -> Result<(), Errno> {
    let at = place(bytes.len(), handle)?;
    let (whole, size) = (number.to_le_bytes(), at.len());
    if whole[size..].iter().any(|byte| *byte != 0) {
        return Err(Errno::EOVERFLOW);
    }
    bytes[at].copy_from_slice(&whole[..size]);
    Ok(())
}

fn place(length: usize, handle: &Handle) -> Result<std::ops::Range<usize>, Errno> {
    let (from, size) = (handle.offset as usize, handle.size as usize);
    if !matches!(size, 1 | 2 | 4 | 8) || from + size > length {
        return Err(Errno::EINVAL);
    }
    Ok(from..from + size)
}
