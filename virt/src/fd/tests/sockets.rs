//! Unix sockets of all types, in all states.

use super::*;
use crate::sys::sockopt;
use nix::sys::socket::{
    Backlog, ControlMessage, MsgFlags, Shutdown, UnixAddr, accept, bind, connect, listen, send, sendmsg,
    sendto, setsockopt, shutdown, socket, sockopt as options,
};
use std::io::IoSlice;

fn new(kind: SockType) -> OwnedFd {
    socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

fn named(kind: SockType, address: &UnixAddr) -> OwnedFd {
    let fd = new(kind);
    bind(fd.as_raw_fd(), address).unwrap();
    fd
}

fn at(path: &str) -> UnixAddr {
    UnixAddr::new(path).unwrap()
}

fn put(fd: &OwnedFd, text: &[u8]) {
    assert_eq!(send(fd.as_raw_fd(), text, MsgFlags::MSG_DONTWAIT).unwrap(), text.len());
}

/// A name that no other test has, for the network namespace is everybody's.
fn hidden(name: &str) -> UnixAddr {
    UnixAddr::new_abstract(format!("ckrun-{}-{name}", std::process::id()).as_bytes()).unwrap()
}

pub(super) fn guest() -> Vec<OwnedFd> {
    let mut all = Vec::new();
    // Data in both directions, and more than one piece may hold.
    let (a, b) = pair(SockType::Stream);
    put(&a, b"to b");
    put(&b, &vec![b'x'; 100_000]);
    put(&b, b"the end");
    all.extend([a, b]);
    // Borders of packets, empty ones among them.
    for kind in [SockType::SeqPacket, SockType::Datagram] {
        let (a, b) = pair(kind);
        for text in [&b"first"[..], b"", b"third", b""] {
            put(&a, text);
        }
        all.extend([a, b]);
    }
    // Half closed, and closed with something unread on either side.
    let (a, b) = pair(SockType::Stream);
    put(&a, b"last words");
    shutdown(a.as_raw_fd(), Shutdown::Write).unwrap();
    all.extend([a, b]);
    let (a, b) = pair(SockType::Stream);
    put(&a, b"legacy");
    drop(a);
    all.push(b);
    let (a, b) = pair(SockType::Stream);
    put(&b, b"never read");
    drop(a);
    all.push(b);
    let (a, b) = pair(SockType::Datagram);
    put(&a, b"from nobody");
    drop(a);
    all.push(b);
    // A listening socket, one accepted, and two that wait.
    std::fs::create_dir("run").unwrap();
    let address = at("run/listener");
    let listener = named(SockType::Stream, &address);
    listen(&listener, Backlog::new(5).unwrap()).unwrap();
    for _ in 0..3 {
        let client = new(SockType::Stream);
        connect(client.as_raw_fd(), &address).unwrap();
        all.push(client);
    }
    let accepted = accept(listener.as_raw_fd()).unwrap();
    // SAFETY: it is new, and nobody else's.
    let accepted = unsafe { OwnedFd::from_raw_fd(accepted) };
    put(&accepted, b"welcome");
    all.extend([listener, accepted]);
    // Accepted by one that is gone, with its file renamed; and by one with an abstract name.
    for address in [at("gone"), hidden("gone")] {
        let listener = named(SockType::SeqPacket, &address);
        listen(&listener, Backlog::new(5).unwrap()).unwrap();
        let client = new(SockType::SeqPacket);
        connect(client.as_raw_fd(), &address).unwrap();
        // SAFETY: it is new, and nobody else's.
        all.push(unsafe { OwnedFd::from_raw_fd(accept(listener.as_raw_fd()).unwrap()) });
        put(&client, b"hello");
        all.push(client);
    }
    // Names whose files were moved and deleted, and one that another socket has taken.
    let absolute = std::env::current_dir().unwrap().join("absolute");
    all.push(named(SockType::Datagram, &at(absolute.to_str().unwrap())));
    all.push(named(SockType::Datagram, &at("moved")));
    std::fs::rename("moved", "run/here").unwrap();
    all.push(named(SockType::Datagram, &at("taken")));
    std::fs::remove_file("taken").unwrap();
    let mailbox = named(SockType::Datagram, &at("taken"));
    // One way, from sockets with a name, without one, and with one that is gone.
    let postman = named(SockType::Datagram, &hidden("postman"));
    connect(postman.as_raw_fd(), &at("taken")).unwrap();
    put(&postman, b"one");
    let flags = MsgFlags::empty();
    for from in [new(SockType::Datagram), named(SockType::Datagram, &at("leaver"))] {
        sendto(from.as_raw_fd(), b"two", &at("taken"), flags).unwrap();
    }
    all.extend([mailbox, postman]);
    let own = named(SockType::Datagram, &hidden("self"));
    connect(own.as_raw_fd(), &hidden("self")).unwrap();
    put(&own, b"to myself");
    all.push(own);
    // Descriptors in flight: a pipe's ends, one of which nobody has else; and sockets in sockets.
    let (a, b) = pair(SockType::Stream);
    let (reader, writer) = nix::unistd::pipe().unwrap();
    nix::unistd::write(&writer, b"in flight").unwrap();
    let (inner, other) = pair(SockType::Stream);
    put(&other, b"deep");
    let fds = [reader.as_raw_fd(), inner.as_raw_fd(), a.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    put(&a, b"before");
    sendmsg::<()>(a.as_raw_fd(), &[IoSlice::new(b"with")], &rights, flags, None).unwrap();
    put(&a, b"after");
    all.extend([a, b, writer, other]);
    // Who has sent it.
    let (a, b) = pair(SockType::Datagram);
    setsockopt(&b, options::PassCred, &true).unwrap();
    put(&a, b"signed");
    all.extend([a, b]);
    // A byte out of band, in the middle.
    let (a, b) = pair(SockType::Stream);
    put(&a, b"abc");
    send(a.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
    put(&a, b"def");
    all.extend([a, b]);
    // Options.
    let (a, b) = pair(SockType::Stream);
    setsockopt(&a, options::SndBuf, &65536).unwrap();
    sockopt::set_number(&a, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 7).unwrap();
    setsockopt(&a, options::ReceiveTimeout, &nix::sys::time::TimeVal::new(3, 500_000)).unwrap();
    setsockopt(&b, options::Linger, &libc::linger { l_onoff: 1, l_linger: 5 }).unwrap();
    sockopt::attach_filter(&b, &[0xffff_0000_0000_0006]).unwrap();
    nix::fcntl::fcntl(&a, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    all.extend([a, b]);
    all
}

#[test]
fn unix_sockets_in_all_states() {
    let mut guest = Guest::start("sockets");
    let (before, pids) = guest.capture().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (image, files) = through_image(&before, dir.path());
    println!("{}", serde_json::to_string_pretty(&files.descriptions).unwrap());
    end(&guest);
    // Others are waited for from here on.
    guest.child.wait().unwrap();
    let files = renamed(files, pids[0]);
    let restored = restore(&image, &files);
    let after = restored.capture();
    assert_same(&files, &after.files);
    same_contents(&before, &after);
}
