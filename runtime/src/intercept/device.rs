//! Claimed ioctl(2) commands of devices: handles in their arguments are translated, the rest is the driver's.

use super::call::{Answer, Call};
use super::listen::lock;
use super::notes::Note;
use super::pending::{ROOM, Step};
use super::{Claims, Command};
use ckrun_plugin::binding::{Direction, Handle, Place};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// `asm-generic/ioctl.h`: where a command has the size of what its argument points to, and the direction.
const SIZE_SHIFT: u32 = 16;
const SIZE_MASK: u32 = (1 << 14) - 1;

/// Carries a claimed command out in the task's place, on the same open file description.
pub fn answer(call: &mut Call<'_>, claims: &Claims) -> Answer {
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
    call: &mut Call<'_>,
    claims: &Claims,
    command: &Command,
    device: &OwnedFd,
    argument: u64,
) -> Result<i64, Errno> {
    let number = command.claim.command.0 as u32;
    let handles = &command.claim.handles;
    let length = length(number, handles)?;
    let to_real = |handle: &Handle, known| {
        lock(&claims.handles).to_real(&handle.space, known).ok_or_else(|| {
            log::warn!("ioctl {number:#x}: {} {known} is bound to nothing", handle.space);
            Errno::EINVAL
        })
    };
    match call.slot.step() {
        Step::Received => {
            let mut argument = argument;
            call.fetch(argument, length)?;
            let bytes = &mut call.slot.room()[..length];
            for handle in handles.iter().filter(|handle| handle.direction != Direction::Out) {
                match handle.place {
                    Place::Within { offset, size } => {
                        let at = place(length, offset, size)?;
                        let real = to_real(handle, get(&bytes[at.clone()]))?;
                        put(&mut bytes[at], real)?;
                    }
                    Place::Argument { size } => {
                        let all = argument.to_le_bytes();
                        let known = &all[..place(all.len(), 0, size)?.len()];
                        argument = to_real(handle, get(known))?;
                    }
                    Place::Result => {}
                }
            }
            drive(call, device, number, argument, length);
        }
        // Whoever did it was killed. A driver that is interrupted has done it or not, and so says this error: to do it again
        // could be once too often.
        Step::Doing => return Err(Errno::EINTR),
        Step::Done => {}
    }
    let mut result = call.slot.result()?;
    // What the driver has said stays as it is until the answer is given.
    let mut bytes = call.slot.room()[..length].to_vec();
    for handle in handles {
        match handle.place {
            Place::Within { offset, size } => {
                let at = place(length, offset, size)?;
                let real = get(&bytes[at.clone()]);
                let number = match handle.direction {
                    // One that only goes in comes back as it went.
                    Direction::In => lock(&claims.handles).to_virtual(&handle.space, real).unwrap_or(real),
                    Direction::Out | Direction::Both => meet(claims, &handle.space, real),
                };
                put(&mut bytes[at], number)?;
            }
            Place::Result => {
                // ioctl(2) returns an int.
                let number = i32::try_from(meet(claims, &handle.space, result.cast_unsigned()));
                result = number.map_err(|_| Errno::EOVERFLOW)?.into();
            }
            Place::Argument { .. } => {}
        }
    }
    if length > 0 {
        call.write(argument, &bytes)?;
    }
    Ok(result)
}

/// How many bytes the argument points to; 0 for one that is no pointer.
fn length(number: u32, handles: &[Handle]) -> Result<usize, Errno> {
    let mut length = u64::from(number >> SIZE_SHIFT & SIZE_MASK);
    for handle in handles {
        match handle.place {
            Place::Within { offset, size } => length = length.max(offset.saturating_add(size)),
            Place::Argument { .. } => return Ok(0),
            Place::Result => {}
        }
    }
    usize::try_from(length).ok().filter(|length| *length <= ROOM).ok_or(Errno::EINVAL)
}

/// What the job calls a number of the driver. That is known for good before the job hears it.
fn meet(claims: &Claims, space: &str, real: u64) -> u64 {
    let (number, new) = lock(&claims.handles).meet(space, real);
    if new {
        claims.notes.add(&Note::Handle { space: space.into(), number, real });
    }
    number
}

/// Has the command carried out: with the argument as it is, or, if that points to `length` bytes, with the room of the call's
/// slot.
fn drive(call: &mut Call<'_>, device: &OwnedFd, number: u32, argument: u64, length: usize) {
    call.slot.begin();
    let argument = if length > 0 { call.slot.room().as_mut_ptr() as u64 } else { argument };
    // SAFETY: the command's driver takes the argument for a number, or for a pointer to a structure of the size that the
    // command or its claim says, and so many bytes are there. That it is such a command is the claim.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), number.into(), argument) };
    let done = Errno::result(done);
    call.slot.done(done);
}

/// The number at a handle's place.
fn get(bytes: &[u8]) -> u64 {
    let mut number = [0; 8];
    number[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(number)
}

fn put(bytes: &mut [u8], number: u64) -> Result<(), Errno> {
    let (whole, size) = (number.to_le_bytes(), bytes.len());
    if whole[size..].iter().any(|byte| *byte != 0) {
        return Err(Errno::EOVERFLOW);
    }
    bytes.copy_from_slice(&whole[..size]);
    Ok(())
}

fn place(length: usize, offset: u64, size: u64) -> Result<std::ops::Range<usize>, Errno> {
    let (from, size) = (offset as usize, size as usize);
    if !matches!(size, 1 | 2 | 4 | 8) || from + size > length {
        return Err(Errno::EINVAL);
    }
    Ok(from..from + size)
}
