//! Links and addresses by rtnetlink(7), in whichever network namespace the socket was made.
//!
//! Replies are taken apart only as far as they are needed: a new kernel's new attributes are no reason to fail.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, Parseable,
};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressMessage, AddressMessageBuffer};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, LinkMessageBuffer};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::os::fd::AsFd;

/// How often a list is asked for again that changed while the kernel wrote it.
const RETRIES: u32 = 16;

/// A socket to one network namespace.
pub(super) struct Route {
    socket: Socket,
    sequence: u32,
}

impl Route {
    /// To the namespace that this thread is in.
    pub(super) fn here() -> Result<Route, Errno> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(errno)?;
        socket.bind_auto().map_err(errno)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(errno)?;
        Ok(Route { socket, sequence: 0 })
    }

    /// To the namespace `there`: a socket stays in the namespace that it was made in, so the thread enters it only for
    /// the making and returns to `here`.
    pub(super) fn inside(there: impl AsFd, here: impl AsFd) -> Result<Route, Errno> {
        setns(there, CloneFlags::CLONE_NEWNET)?;
        let route = Route::here();
        setns(here, CloneFlags::CLONE_NEWNET)?;
        route
    }

    /// The index of the link `name`; `ENODEV` if there is none.
    pub(super) fn index_of(&mut self, name: &str) -> Result<u32, Errno> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.into()));
        let replies = self.request(Message::GetLink(link), 0)?;
        replies.first().and_then(|reply| link_index(reply)).ok_or(Errno::EBADMSG)
    }

    /// The indices of all links.
    pub(super) fn links(&mut self) -> Result<Vec<u32>, Errno> {
        let replies = self.list(|| Message::GetLink(LinkMessage::default()))?;
        replies.iter().map(|reply| link_index(reply).ok_or(Errno::EBADMSG)).collect()
    }

    /// All addresses of all links.
    pub(super) fn addresses(&mut self) -> Result<Vec<AddressMessage>, Errno> {
        let replies = self.list(|| Message::GetAddress(AddressMessage::default()))?;
        let parse = |reply: &Vec<u8>| {
            let buffer = AddressMessageBuffer::new_checked(reply).map_err(|_| Errno::EBADMSG)?;
            AddressMessage::parse(&buffer).map_err(|_| Errno::EBADMSG)
        };
        replies.iter().map(parse).collect()
    }

    /// Adds an address to the link that it names.
    pub(super) fn add_address(&mut self, address: AddressMessage) -> Result<(), Errno> {
        self.request(Message::NewAddress(address), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Changes attributes of the link `index`.
    pub(super) fn change(&mut self, index: u32, attributes: Vec<LinkAttribute>) -> Result<(), Errno> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = attributes;
        self.request(Message::SetLink(link), 0).map(drop)
    }

    /// Sets the link `index` up.
    pub(super) fn set_up(&mut self, index: u32) -> Result<(), Errno> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.request(Message::SetLink(link), 0).map(drop)
    }

    /// Sends a request and waits for its acknowledgement; returns the replies before that.
    pub(super) fn request(&mut self, message: Message, flags: u16) -> Result<Vec<Vec<u8>>, Errno> {
        self.send(message, flags | NLM_F_ACK)?;
        self.receive().map(|(replies, _)| replies)
    }

    fn list(&mut self, message: impl Fn() -> Message) -> Result<Vec<Vec<u8>>, Errno> {
        for _ in 0..RETRIES {
            self.send(message(), NLM_F_DUMP)?;
            let (replies, interrupted) = self.receive()?;
            if !interrupted {
                return Ok(replies);
            }
        }
        Err(Errno::EBUSY)
    }

    fn send(&mut self, message: Message, flags: u16) -> Result<(), Errno> {
        self.sequence += 1;
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        packet.header.flags = flags | NLM_F_REQUEST;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(errno)?;
        Ok(())
    }

    /// The replies, and whether the list changed while it was written.
    fn receive(&mut self) -> Result<(Vec<Vec<u8>>, bool), Errno> {
        let (mut replies, mut interrupted) = (Vec::new(), false);
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(errno)?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(|_| Errno::EBADMSG)?;
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                let payload = message.payload();
                match message.message_type() {
                    NLMSG_DONE => return Ok((replies, interrupted)),
                    NLMSG_ERROR => {
                        let code = payload.first_chunk().ok_or(Errno::EBADMSG)?;
                        return match i32::from_ne_bytes(*code) {
                            0 => Ok((replies, interrupted)),
                            code => Err(Errno::from_raw(-code)),
                        };
                    }
                    _ => replies.push(payload.to_vec()),
                }
                // Messages begin at multiples of four.
                rest = rest.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn link_index(reply: &[u8]) -> Option<u32> {
    LinkMessageBuffer::new_checked(reply).ok().map(|link| link.link_index())
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
