use super::listen::{lock, serve};
use super::names::Name;
use super::pending::{Held, Pending};
use super::{Claims, Command, Route, filter};
use ckrun_plugin::binding::{Direction, Handle, Ioctl, Place};
use ckrun_plugin::number::Hex;
use nix::errno::Errno;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

/// Runs `job` in a thread whose claimed calls are answered. A filter is a thread's own.
fn under<T: Send>(claims: Claims, job: impl FnOnce() -> T + Send) -> (T, Arc<Claims>) {
    let claims = Arc::new(claims);
    let sockets = !lock(&claims.routes).is_empty();
    let filter = filter(sockets, claims.ioctls.iter().map(|command| &command.claim)).expect("claims");
    let (listeners, listener) = std::sync::mpsc::channel::<OwnedFd>();
    let done = std::thread::scope(|scope| {
        let job = scope.spawn(move || {
            listeners.send(filter.load().unwrap().expect("a listener")).unwrap();
            job()
        });
        serve(listener.recv().unwrap(), Arc::clone(&claims), Pending::new().unwrap()).unwrap();
        job.join().unwrap()
    });
    (done, claims)
}

fn inet(text: &str) -> Name {
    Name::Inet(text.parse().unwrap())
}

fn routed(routes: impl Into<Vec<Route>>) -> Claims {
    Claims { routes: routes.into().into(), ..Claims::default() }
}

#[test]
fn a_connection_goes_to_the_real_address_and_its_peer_has_the_virtual_one() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let real = server.local_addr().unwrap();
    let claims = routed([Route { name: String::new(), to: inet("198.18.0.1:4000"), real: Name::Inet(real) }]);
    let there = other.local_addr().unwrap();
    let (names, _) = under(claims, move || {
        let mut socket = TcpStream::connect("198.18.0.1:4000").unwrap();
        socket.write_all(b"hello").unwrap();
        // An address that is none of ours.
        let native = TcpStream::connect(there).unwrap();
        (socket.peer_addr().unwrap(), native.peer_addr().unwrap())
    });
    assert_eq!(names, ("198.18.0.1:4000".parse().unwrap(), there));
    let mut said = String::new();
    server.accept().unwrap().0.read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello");
}

#[test]
fn a_connection_that_was_given_is_the_jobs_first() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let real = server.local_addr().unwrap();
    let given = TcpStream::connect(real).unwrap();
    let (first, _) = server.accept().unwrap();
    let to = inet("198.18.0.1:4000");
    let claims = routed([Route { name: String::new(), to: to.clone(), real: Name::Inet(real) }]);
    lock(&claims.given).insert(to, given.into());
    let (seen, claims) = under(claims, move || {
        let mut socket = TcpStream::connect("198.18.0.1:4000").unwrap();
        socket.write_all(b"hello").unwrap();
        let flags = rustix::io::fcntl_getfd(&socket).unwrap();
        let again = TcpStream::connect("198.18.0.1:4000").unwrap();
        (socket.peer_addr().unwrap().to_string(), flags, again.peer_addr().unwrap().to_string())
    });
    let name = "198.18.0.1:4000".to_owned();
    assert_eq!(seen, (name.clone(), rustix::io::FdFlags::CLOEXEC, name));
    // The end of the job's descriptor is that of the connection.
    let mut said = String::new();
    (&first).read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello");
    server.accept().unwrap();
    assert!(lock(&claims.given).is_empty());
}

#[test]
fn an_ipv6_socket_reaches_an_ipv4_address() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let claims = routed([Route {
        name: String::new(),
        to: inet("[fd00::7]:4000"),
        real: Name::Inet(server.local_addr().unwrap()),
    }]);
    let (peer, _) = under(claims, || TcpStream::connect("[fd00::7]:4000").unwrap().peer_addr().unwrap());
    assert_eq!(peer, "[fd00::7]:4000".parse::<SocketAddr>().unwrap());
}

#[test]
fn two_names_for_one_place_are_told_apart() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let real = Name::Inet(server.local_addr().unwrap());
    let names = ["198.18.0.1:4000", "198.18.0.1:4001"];
    let claims = routed(names.map(|to| Route { name: String::new(), to: inet(to), real: real.clone() }));
    let (peers, _) =
        under(claims, move || names.map(|name| TcpStream::connect(name).unwrap().peer_addr().unwrap()));
    assert_eq!(peers.map(|peer| peer.to_string()), names);
}

#[test]
fn errors_are_those_of_the_real_address() {
    // Bound and not listening: nobody else gets the port.
    let port =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&port, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let real: SocketAddr = rustix::net::getsockname(&port).unwrap().try_into().unwrap();
    let claims = routed([Route { name: String::new(), to: inet("198.18.0.1:4000"), real: Name::Inet(real) }]);
    let (error, _) = under(claims, || {
        let error = TcpStream::connect("198.18.0.1:4000").unwrap_err().kind();
        let bad = nix::sys::socket::getpeername::<()>(std::io::stdin().as_fd().as_raw_fd());
        (error, bad.unwrap_err())
    });
    assert_eq!(error, (std::io::ErrorKind::ConnectionRefused, Errno::ENOTSOCK));
}

#[test]
fn unix_paths_and_abstract_names_are_routed_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("real.sock");
    let server = UnixListener::bind(&path).unwrap();
    let real = Name::Path(path.as_os_str().as_encoded_bytes().to_vec());
    let claims = routed([
        Route { name: String::new(), to: Name::Path(b"/run/emu.sock".to_vec()), real: real.clone() },
        Route { name: String::new(), to: Name::Abstract(b"emu".to_vec()), real },
    ]);
    let (peers, _) = under(claims, || {
        let path = UnixStream::connect("/run/emu.sock").unwrap().peer_addr().unwrap();
        let address = std::os::unix::net::SocketAddr::from_abstract_name("emu").unwrap();
        UnixStream::connect_addr(&address).unwrap();
        path.as_pathname().map(Path::to_owned)
    });
    assert_eq!(peers.as_deref(), Some(Path::new("/run/emu.sock")));
    server.accept().unwrap();
    server.accept().unwrap();
}

/// As [`under`], but the first call comes to a process that ends without an answer, when it has done `some` of it.
fn orphaned<T: Send>(
    claims: Claims,
    job: impl FnOnce() -> T + Send,
    some: impl FnOnce(&mut Held, &OwnedFd),
) -> T {
    let claims = Arc::new(claims);
    let sockets = !lock(&claims.routes).is_empty();
    let filter = filter(sockets, claims.ioctls.iter().map(|command| &command.claim)).expect("claims");
    let (listeners, listener) = std::sync::mpsc::channel::<OwnedFd>();
    let pending = Pending::new().unwrap();
    std::thread::scope(|scope| {
        let job = scope.spawn(move || {
            listeners.send(filter.load().unwrap().expect("a listener")).unwrap();
            job()
        });
        let listener = listener.recv().unwrap();
        // SAFETY: the child allocates nothing: another thread may hold the lock of the allocator.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                if let Some(mut held) = pending.claim()
                    && held.receive(listener.as_fd()).is_ok()
                {
                    some(&mut held, &listener);
                    // SAFETY: nothing of this process is to be run any more, and its slot stays taken.
                    unsafe { libc::_exit(0) }
                }
                // SAFETY: likewise.
                unsafe { libc::_exit(1) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                let end = nix::sys::wait::waitpid(child, None).unwrap();
                assert_eq!(end, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
        serve(listener, claims, pending).unwrap();
        job.join().unwrap()
    })
}

#[test]
fn a_call_that_was_received_by_one_who_was_killed_is_answered() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let real = server.local_addr().unwrap();
    let route = || Route { name: String::new(), to: inet("198.18.0.1:4000"), real: Name::Inet(real) };
    let job = || TcpStream::connect("198.18.0.1:4000").unwrap().peer_addr().unwrap().to_string();
    assert_eq!(orphaned(routed([route()]), job, |_, _| ()), "198.18.0.1:4000");
    server.accept().unwrap();
    // It had begun, and had not come to the connection.
    assert_eq!(orphaned(routed([route()]), job, |held, _| held.begin()), "198.18.0.1:4000");
    server.accept().unwrap();
}

#[test]
fn a_connection_that_was_made_by_one_who_was_killed_is_not_made_twice() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let real = server.local_addr().unwrap();
    let claims = routed([Route { name: String::new(), to: inet("198.18.0.1:4000"), real: Name::Inet(real) }]);
    let job = || TcpStream::connect("198.18.0.1:4000").map(drop);
    let done = orphaned(claims, job, |held, _| {
        held.begin();
        let call = held.call().unwrap();
        // The job is a thread of the parent.
        let process = rustix::process::Pid::from_raw(nix::unistd::getppid().as_raw()).unwrap();
        let process = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).unwrap();
        let none = rustix::process::PidfdGetfdFlags::empty();
        let socket = rustix::process::pidfd_getfd(process, call.data.args[0] as i32, none).unwrap();
        rustix::net::connect(&socket, &real).unwrap();
    });
    done.unwrap();
    server.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    assert_eq!(server.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn an_ioctl_is_never_carried_out_twice() {
    let pty = nix::pty::posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY).unwrap();
    let fd = pty.as_raw_fd();
    let ask = move || {
        let mut number: libc::c_int = -1;
        // SAFETY: the command is about one int.
        Errno::result(unsafe { libc::ioctl(fd, libc::TIOCGPTLCK, &raw mut number) })
            .map(|result| (result, number))
    };
    let claims = || {
        let get = locked(Path::new("/dev/ptmx"), libc::TIOCGPTLCK, Direction::Out);
        let claims = Claims { ioctls: vec![get], ..Claims::default() };
        lock(&claims.handles).bind("lock", 41, 1).unwrap();
        lock(&claims.handles).bind("lock", 47, 7).unwrap();
        claims
    };
    assert_eq!(orphaned(claims(), ask, |_, _| ()), Ok((0, 41)));
    assert_eq!(orphaned(claims(), ask, |held, _| held.begin()), Err(Errno::EINTR));
    // What the driver has answered reaches the job, even if nobody could ask again.
    let answered = orphaned(claims(), ask, |held, _| {
        held.room()[..4].copy_from_slice(&7_i32.to_ne_bytes());
        held.done(Ok(3));
    });
    assert_eq!(answered, Ok((3, 47)));
    let refused = orphaned(claims(), ask, |held, _| held.done(Err(Errno::EBUSY)));
    assert_eq!(refused, Err(Errno::EBUSY));
}

#[test]
fn a_slow_connection_keeps_no_other_waiting() {
    // Nobody accepts, and the queue of one is full: the connection waits.
    let dir = tempfile::tempdir().unwrap();
    let full =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    let path = dir.path().join("full");
    rustix::net::bind(&full, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let claims = routed([
        Route {
            name: String::new(),
            to: Name::Path(b"/slow".to_vec()),
            real: Name::Path(path.as_os_str().as_encoded_bytes().to_vec()),
        },
        Route {
            name: String::new(),
            to: inet("198.18.0.1:4000"),
            real: Name::Inet(server.local_addr().unwrap()),
        },
    ]);
    under(claims, move || {
        std::thread::scope(|scope| {
            // Threads that are made later have the filter as well.
            let slow = scope.spawn(|| UnixStream::connect("/slow").unwrap());
            TcpStream::connect("198.18.0.1:4000").unwrap();
            // Only now is there room for the slow one.
            rustix::net::accept(&full).unwrap();
            slow.join().unwrap();
        });
    });
}

/// A claimed command with one handle: TIOCSPTLCK and TIOCGPTLCK take an int, which every pty has.
fn locked(device: &Path, command: u64, direction: Direction) -> Command {
    let place = Place::Within { offset: 0, size: 4 };
    let handle = Handle { space: "lock".into(), place, direction };
    let claim = Ioctl { device: "/dev/emu0".into(), command: Hex(command), handles: vec![handle] };
    Command { claim, device: device.into() }
}

#[test]
fn handles_in_a_claimed_ioctl_are_translated_both_ways() {
    let pty = nix::pty::posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY).unwrap();
    let set = locked(Path::new("/dev/ptmx"), libc::TIOCSPTLCK, Direction::In);
    let get = locked(Path::new("/dev/ptmx"), libc::TIOCGPTLCK, Direction::Out);
    let claims = Claims { ioctls: vec![set, get], ..Claims::default() };
    {
        let mut handles = lock(&claims.handles);
        handles.bind("lock", 40, 0).unwrap();
        handles.bind("lock", 41, 1).unwrap();
    }
    let fd = pty.as_raw_fd();
    let (results, _) = under(claims, move || {
        let ask = |command, mut number: libc::c_int| {
            // SAFETY: both commands are about one int.
            let done = unsafe { libc::ioctl(fd, command, &raw mut number) };
            Errno::result(done).map(|_| number)
        };
        [
            ask(libc::TIOCSPTLCK, 40),
            ask(libc::TIOCGPTLCK, 0),
            ask(libc::TIOCSPTLCK, 41),
            ask(libc::TIOCGPTLCK, 0),
            ask(libc::TIOCSPTLCK, 1),
            // Not claimed.
            ask(libc::TIOCGPTN, -1).map(|number| number.min(0)),
        ]
    });
    assert_eq!(results, [Ok(40), Ok(40), Ok(41), Ok(41), Err(Errno::EINVAL), Ok(0)]);
}

#[test]
fn an_argument_and_a_result_that_are_handles_are_translated() {
    let pty = nix::pty::posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY).unwrap();
    nix::pty::unlockpt(&pty).unwrap();
    // Its argument is open(2)'s flags, and it returns a descriptor; here both count as handles.
    let handle = |place, direction| Handle { space: "s".into(), place, direction };
    let handles =
        vec![handle(Place::Argument { size: 4 }, Direction::In), handle(Place::Result, Direction::Out)];
    let claim = Ioctl { device: "/dev/emu0".into(), command: Hex(libc::TIOCGPTPEER), handles };
    let claims = Claims { ioctls: vec![Command { claim, device: "/dev/ptmx".into() }], ..Claims::default() };
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    lock(&claims.handles).bind("s", 7, flags as u64).unwrap();
    let fd = pty.as_raw_fd();
    let (results, claims) = under(claims, move || {
        // SAFETY: the command is about a number.
        let ask = |argument: u64| Errno::result(unsafe { libc::ioctl(fd, libc::TIOCGPTPEER, argument) });
        // Of a number of four bytes the rest is anything. No descriptor has the second one.
        [ask(0xffff_ffff_0000_0007), ask(0x7fff_0008)]
    });
    let Ok(number) = results[0] else { panic!("{results:?}") };
    assert_eq!(results[1], Err(Errno::EINVAL));
    let real = lock(&claims.handles).to_real("s", number as u64).unwrap();
    // SAFETY: the listener's thread has made it for the job, whose it would be.
    drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(real as i32) });
}

#[test]
fn the_same_command_of_another_device_is_native() {
    let pty = nix::pty::posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY).unwrap();
    let get = locked(Path::new("/dev/null"), libc::TIOCGPTLCK, Direction::Out);
    let fd = pty.as_raw_fd();
    let (locked, claims) = under(Claims { ioctls: vec![get], ..Claims::default() }, move || {
        let mut number: libc::c_int = -1;
        // SAFETY: the command is about one int.
        Errno::result(unsafe { libc::ioctl(fd, libc::TIOCGPTLCK, &raw mut number) }).map(|_| number)
    });
    assert_eq!((locked, lock(&claims.handles).iter().count()), (Ok(1), 0));
}
