//! Which ids processes had in the job that have ended since.
//!
//! A socket remembers who connected it, and a message who sent it, whether they still live or not; the kernel says it in
//! the numbers of the pid namespace of whoever asks. For those who live, `/proc` has both numbers. For the others a child
//! of ckrun asks that is in the job's pid namespace; the sockets are what ckrun has asked before, so that the answers can
//! be put side by side.

use super::peek::peek;
use crate::namespace::{Kind, Namespace};
use crate::sys::{Clone3, Cloned, Undo, sockopt};
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

/// SO_PEERCRED: who is at the other end; 0 for nobody, and for those of no number in the namespace of who asks.
pub(super) fn peer(socket: &OwnedFd) -> Result<(i32, u32, u32), Failure> {
    let mut bytes = [0; 12];
    sockopt::get(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut bytes)
        .doing(|| "ask who is at the other end of a unix socket")?;
    let word = |at: usize| bytes[at..].first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
    Ok((word(0).cast_signed(), word(4), word(8)))
}

/// The ids of everybody of whom these sockets, each with its type, tell: who is at the other end, then who has sent what
/// waits, as the process `init` knows them.
pub(super) fn ids(init: Pid, sockets: &[(OwnedFd, i32)]) -> Result<Vec<i32>, Failure> {
    let what = || "ask for the ids of processes that have ended";
    let (answer, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing(what)?;
    let namespace = Namespace::of(init, Kind::Pid)?;
    let abroad = namespace.as_ref().map(Namespace::enter).transpose()?;
    // SAFETY: ckrun has one thread.
    let cloned = unsafe { Clone3::default().call() };
    let child = match cloned.doing(what)? {
        Cloned::Child => {
            let told = tell_all(sockets, File::from(tell));
            // SAFETY: nothing of ckrun's is to be done again here.
            unsafe { libc::_exit(i32::from(told.is_err())) }
        }
        Cloned::Parent(pid, _) => pid,
    };
    drop(abroad);
    drop(tell);
    let mut bytes = Vec::new();
    let read = File::from(answer).read_to_end(&mut bytes).doing(what);
    waitpid(child, None).doing(what)?;
    read?;
    match bytes.split_last() {
        Some((0, bytes)) => Ok(bytes.as_chunks().0.iter().map(|id| i32::from_ne_bytes(*id)).collect()),
        _ => Err(Failure::new(what(), Errno::EIO)),
    }
}

fn tell_all(sockets: &[(OwnedFd, i32)], mut tell: File) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    // A kill of ckrun is none of this process.
    let mut undo = Undo::unwatched();
    for (socket, kind) in sockets {
        bytes.extend(peer(socket)?.0.to_ne_bytes());
        for message in peek(socket, *kind, &mut undo).or_else(super::world::unconnected)? {
            bytes.extend(message.by.map_or(0, |by| by.0).to_ne_bytes());
        }
    }
    bytes.push(0);
    tell.write_all(&bytes).doing(|| "tell ckrun")
}
