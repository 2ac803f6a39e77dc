//! Names of sockets.
//!
//! A name that is a path is what bind(2) was told, which may be relative to a directory where its caller has long left; its
//! file is where somebody has put it since. bind(2) makes a new file each time. So a socket is bound under its name in a
//! directory of its own, which is the working directory for the moment, or even the root if the name begins with a slash;
//! then its file takes the place of the old one, by rename(2). One without a file is bound on a file system that nobody else
//! sees.

use super::Place;
use crate::fd::container::{join, parent};
use crate::fd::making::Making;
use crate::mounts;
use crate::namespace::{Kind, Namespace};
use crate::program::{Place as Room, Program};
use crate::{Doing, Failure};
use nix::unistd::Pid;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// How long garbage may have a name.
const COLLECTED: Duration = Duration::from_secs(5);

/// Where a socket can be reached.
#[derive(Debug, Clone)]
pub(super) enum Address {
    /// By a name that is no path.
    Abstract(Vec<u8>),
    /// By its file, from the container's root.
    File(Vec<u8>),
    /// By its file of this name in a directory, of another mount namespace, that has this number.
    There(RawFd, Vec<u8>),
    /// By its file of this name on the file system that nobody else sees.
    Aside(String),
}

/// The places from which sockets are bound.
#[derive(Debug)]
pub(super) struct Yard {
    /// Numbers of the first process's root directory, working directory, and a file system that nobody else sees.
    root: RawFd,
    here: RawFd,
    aside: RawFd,
    /// The last one, for ckrun.
    own: OwnedFd,
    next: u32,
    /// Directories of other mount namespaces.
    there: Vec<RawFd>,
}

impl Yard {
    pub fn new(making: &mut Making<'_>) -> Result<Yard, Failure> {
        let own = nowhere().doing(|| "make a file system for the names of sockets")?;
        making.run()?;
        let given = making.worker.give(own.as_fd())?;
        let (root, here, aside) = (making.number(), making.number(), making.number());
        making.put_at(given.into(), aside);
        let flags = (libc::O_PATH | libc::O_DIRECTORY) as u32;
        making.open(b"/", flags, root);
        making.open(b".", flags, here);
        Ok(Yard { root, here, aside, own, next: 0, there: Vec::new() })
    }

    /// The file system that nobody else sees.
    pub fn aside(&self) -> &OwnedFd {
        &self.own
    }

    /// Gives socket `fd` its name, and its file the place `file`, or none.
    pub fn bind(&mut self, making: &mut Making<'_>, fd: RawFd, name: &[u8], file: Option<&Place>) -> Address {
        let elsewhere = file.filter(|file| file.namespace > 0);
        let root = elsewhere.and_then(|file| making.namespaces.get(file.namespace as usize)).map(|n| n.root);
        let there = root.map(|_| making.number());
        let program = &mut making.program;
        let what = format!("bind a socket to {}", super::readable(name));
        let (address, length) = address(program, name);
        let args = [fd.into(), address.into(), length.into()];
        if name.first() == Some(&0) {
            program.call(what, libc::SYS_bind, &args);
            return Address::Abstract(name.to_vec());
        }
        self.next += 1;
        if let Some(root) = root {
            mounts::go(root, program);
        }
        // Its own directory, by its name and the directory that it is in.
        let (from, directory) = match file {
            Some(file) => {
                (libc::AT_FDCWD, join(parent(&file.path), format!(".ckrun-{}", self.next).as_bytes()))
            }
            None => (self.aside, format!("d{}", self.next).into_bytes()),
        };
        let path = program.put_cstr(&directory);
        let made = format!("make the directory {}", String::from_utf8_lossy(&directory));
        program.call(made, libc::SYS_mkdirat, &[from.into(), path.into(), 0o700.into()]);
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let yard =
            program.call("open it", libc::SYS_openat, &[from.into(), path.into(), flags.into(), 0.into()]);
        let way = Way::to(name);
        program.call("go there", libc::SYS_fchdir, &[yard.into()]);
        let dot = program.put_cstr(b".");
        if way.absolute {
            program.call("take it as the root", libc::SYS_chroot, &[dot.into()]);
        }
        let directories: Vec<Room> = way.directories.iter().map(|path| program.put_cstr(path)).collect();
        for path in &directories {
            let args = [libc::AT_FDCWD.into(), (*path).into(), 0o700.into()];
            program.attempt("make a directory", libc::SYS_mkdirat, &args);
        }
        let start = program.put_cstr(&way.start);
        program.call("go there", libc::SYS_chdir, &[start.into()]);
        program.call(what, libc::SYS_bind, &args);
        match root {
            Some(root) => mounts::go(root, program),
            None => self.back(program),
        }
        let bound = program.put_cstr(&way.file);
        let answer = match file {
            Some(file) => {
                let what = |what: &str| format!("{what} {}", file.path);
                let (user, group) = file.owner;
                let args =
                    [yard.into(), bound.into(), user.into(), group.into(), libc::AT_SYMLINK_NOFOLLOW.into()];
                program.call(what("give to its owner"), libc::SYS_fchownat, &args);
                let args = [yard.into(), bound.into(), file.mode.into()];
                program.call(what("set the permissions of"), libc::SYS_fchmodat, &args);
                let place = program.put_cstr(&file.path);
                let args = [yard.into(), bound.into(), libc::AT_FDCWD.into(), place.into()];
                program.call(what("put a socket at"), libc::SYS_renameat, &args);
                for path in directories.iter().rev() {
                    let args = [yard.into(), (*path).into(), libc::AT_REMOVEDIR.into()];
                    program.call("remove a directory", libc::SYS_unlinkat, &args);
                }
                let args = [from.into(), path.into(), libc::AT_REMOVEDIR.into()];
                program.call("remove a directory", libc::SYS_unlinkat, &args);
                match there {
                    Some(there) => {
                        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
                        let directory = program.put_cstr(parent(&file.path));
                        let args = [libc::AT_FDCWD.into(), directory.into(), flags.into(), 0.into()];
                        let open = program.call("open the directory of a socket", libc::SYS_openat, &args);
                        let args = [open.into(), there.into(), libc::O_CLOEXEC.into()];
                        program.call("move a descriptor", libc::SYS_dup3, &args);
                        program.call("close a descriptor", libc::SYS_close, &[open.into()]);
                        self.there.push(there);
                        self.back(program);
                        Address::There(there, last(&file.path).to_vec())
                    }
                    None => Address::File(file.path.to_vec()),
                }
            }
            None => {
                let short = format!("s{}", self.next);
                let place = program.put_cstr(short.as_bytes());
                let args = [yard.into(), bound.into(), self.aside.into(), place.into()];
                program.call("put a socket aside", libc::SYS_renameat, &args);
                Address::Aside(short)
            }
        };
        program.call("close a descriptor", libc::SYS_close, &[yard.into()]);
        answer
    }

    /// Connects socket `fd`.
    pub fn connect(&self, program: &mut Program, fd: RawFd, to: &Address) {
        let connect = |program: &mut Program, name: &[u8]| {
            let what = format!("connect a socket to {}", super::readable(name));
            let (address, length) = address(program, name);
            program.call(what, libc::SYS_connect, &[fd.into(), address.into(), length.into()]);
        };
        match to {
            Address::Abstract(name) => connect(program, name),
            // The path may be too long for a name.
            Address::File(path) => {
                let directory = program.put_cstr(parent(path));
                program.call("go to the directory of a socket", libc::SYS_chdir, &[directory.into()]);
                connect(program, last(path));
                program.call("go back", libc::SYS_fchdir, &[self.here.into()]);
            }
            Address::There(directory, name) => {
                let what = "go to the directory of a socket";
                program.call(what, libc::SYS_fchdir, &[(*directory).into()]);
                connect(program, name);
                program.call("go back", libc::SYS_fchdir, &[self.here.into()]);
            }
            Address::Aside(name) => {
                program.call("go aside", libc::SYS_fchdir, &[self.aside.into()]);
                connect(program, name.as_bytes());
                program.call("go back", libc::SYS_fchdir, &[self.here.into()]);
            }
        }
    }

    fn back(&self, program: &mut Program) {
        let dot = program.put_cstr(b".");
        program.call("go back", libc::SYS_fchdir, &[self.root.into()]);
        program.call("take the root back", libc::SYS_chroot, &[dot.into()]);
        program.call("go back", libc::SYS_fchdir, &[self.here.into()]);
    }

    /// Removes what is aside, so that it is seen to be gone.
    pub fn clear(&self, making: &mut Making<'_>) {
        for number in 1..=self.next {
            let name = making.program.put_cstr(format!("s{number}").as_bytes());
            let args = [self.aside.into(), name.into(), 0.into()];
            making.program.attempt("remove a socket's file", libc::SYS_unlinkat, &args);
        }
        for &fd in [self.root, self.here, self.aside].iter().chain(&self.there) {
            making.program.call("close a descriptor", libc::SYS_close, &[fd.into()]);
        }
    }
}

/// Waits until nobody has the abstract names, of sockets of these types, any more that the job of process `init` is to have.
/// Sockets of a job that has ended keep them for some milliseconds if they were on their way to each other: they are
/// garbage, which the kernel collects in its own time. Whoever has one for longer is told of by bind(2).
///
/// # Errors
/// The kernel's.
pub(super) fn await_free<'a>(init: Pid, names: impl Iterator<Item = (i32, &'a [u8])>) -> Result<(), Failure> {
    let names: BTreeSet<_> = names.filter(|(_, name)| name.first() == Some(&0)).collect();
    if names.is_empty() {
        return Ok(());
    }
    let net = Namespace::of(init, Kind::Net)?;
    let _abroad = net.as_ref().map(Namespace::enter).transpose()?;
    let began = Instant::now();
    for (kind, name) in names {
        while !is_free(kind, name).doing(|| format!("look who has the name {}", super::readable(name)))?
            && began.elapsed() < COLLECTED
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Closing a socket also makes the kernel look for garbage.
fn is_free(kind: i32, name: &[u8]) -> rustix::io::Result<bool> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::from_raw(kind.cast_unsigned()),
        SocketFlags::CLOEXEC,
        None,
    )?;
    let address = SocketAddrUnix::new_abstract_name(name.get(1..).unwrap_or_default())?;
    match rustix::net::bind(&socket, &address) {
        Err(rustix::io::Errno::ADDRINUSE) => Ok(false),
        bound => bound.map(|()| true),
    }
}

/// The last name of a path.
fn last(path: &[u8]) -> &[u8] {
    path.rsplit(|&b| b == b'/').next().unwrap_or_default()
}

/// `struct sockaddr_un`: where it is, and its length.
fn address(program: &mut Program, name: &[u8]) -> (Room, usize) {
    let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    bytes.extend(name);
    // The kernel marks the end of a path itself if there is no room for it.
    let length = bytes.len();
    (program.put_cstr(&bytes), length)
}

/// A file system without a place.
fn nowhere() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Root of the container may be another user.
    fsconfig_set_string(context.as_fd(), "mode", "0777")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// What has to be there for a name that is a path.
#[derive(Debug, PartialEq, Eq)]
struct Way {
    absolute: bool,
    /// The directories on it, each before those in it.
    directories: Vec<Vec<u8>>,
    /// Where it starts.
    start: Vec<u8>,
    /// Where it ends.
    file: Vec<u8>,
}

impl Way {
    fn to(name: &[u8]) -> Way {
        let absolute = name.first() == Some(&b'/');
        let parts: Vec<&[u8]> =
            name.split(|&b| b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
        let (last, parts) = parts.split_last().map_or((&b"."[..], &[][..]), |(last, rest)| (*last, rest));
        // How far above its start it leads. The root is above itself.
        let (mut depth, mut above) = (0_usize, 0_usize);
        for part in parts {
            match (*part, depth) {
                (b"..", 0) => above += usize::from(!absolute),
                (b"..", _) => depth -= 1,
                _ => depth += 1,
            }
        }
        let mut stack = vec![&b"u"[..]; above];
        let mut directories: Vec<Vec<u8>> = (1..=above).map(|depth| stack[..depth].join(&b'/')).collect();
        let start = if above == 0 { b".".to_vec() } else { stack.join(&b'/') };
        for part in parts {
            if *part == b".." {
                stack.pop();
            } else {
                stack.push(part);
                directories.push(stack.join(&b'/'));
            }
        }
        directories.sort_unstable();
        directories.dedup();
        stack.push(last);
        Way { absolute, directories, start, file: stack.join(&b'/') }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;
    use std::os::fd::AsRawFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[test]
    fn a_name_is_free_when_garbage_has_been_collected() {
        let name = format!("\0ckrun-test-{}", std::process::id()).into_bytes();
        let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
        // A socket on its way to itself, which nobody else has.
        let (one, other) = UnixDatagram::pair().unwrap();
        let named = UnixDatagram::bind_addr(&address).unwrap();
        named.connect_addr(&address).unwrap();
        let fds = [named.as_raw_fd(), one.as_raw_fd(), other.as_raw_fd()];
        let rights = [nix::sys::socket::ControlMessage::ScmRights(&fds)];
        let flags = nix::sys::socket::MsgFlags::empty();
        nix::sys::socket::sendmsg::<()>(fds[0], &[IoSlice::new(b"x")], &rights, flags, None).unwrap();
        drop((one, other, named));
        await_free(Pid::this(), std::iter::once((libc::SOCK_DGRAM, &name[..]))).unwrap();
        UnixDatagram::bind_addr(&address).unwrap();
    }

    #[test]
    fn the_way_to_a_name_has_all_its_directories() {
        let way = |name: &[u8]| {
            let Way { absolute, directories, start, file } = Way::to(name);
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            let directories = directories.into_iter().map(text).collect::<Vec<_>>().join(" ");
            (absolute, directories, text(start), text(file))
        };
        let expect = |absolute, directories: &str, start: &str, file: &str| {
            (absolute, directories.to_owned(), start.to_owned(), file.to_owned())
        };
        assert_eq!(way(b"s"), expect(false, "", ".", "s"));
        assert_eq!(way(b"/run/a/s"), expect(true, "run run/a", ".", "run/a/s"));
        assert_eq!(way(b"./a//s"), expect(false, "a", ".", "a/s"));
        assert_eq!(way(b"../a/../../s"), expect(false, "u u/a u/u", "u/u", "s"));
        assert_eq!(way(b"/../s"), expect(true, "", ".", "s"));
    }
}
