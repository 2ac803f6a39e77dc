//! By which calls the sockets of an image come to be.

use super::{Credentials, State, Unix, all, unix_of};
use crate::Error;
use crate::fd::Files;
use std::collections::BTreeSet;

/// A pair of connected sockets; None for the one that is gone.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pair<'a> {
    /// From socketpair(2).
    Twins {
        one: u32,
        other: Option<u32>,
        /// The other one's name, if it is gone.
        name: Option<&'a [u8]>,
        by: Option<&'a Credentials>,
    },
    /// From connect(2) and accept(2).
    Accepted {
        client: Option<u32>,
        server: Option<u32>,
        /// One of them, for the class of both.
        of: u32,
        /// The name of the socket that listened.
        name: &'a [u8],
        /// That one, if it is there; its description.
        listener: Option<u32>,
        /// Who has called listen(2), and who connect(2).
        listened: Option<&'a Credentials>,
        connected: Option<&'a Credentials>,
    },
}

/// What is to be made.
#[derive(Debug, Default)]
pub(super) struct Plan<'a> {
    /// Sockets that are not one of a pair.
    pub single: Vec<u32>,
    pub pairs: Vec<Pair<'a>>,
}

impl<'a> Plan<'a> {
    pub fn of(files: &'a Files) -> Result<Plan<'a>, Error> {
        let mut plan = Plan::default();
        let mut done = BTreeSet::new();
        for (id, class, unix) in all(files) {
            if !done.insert(id) {
                continue;
            }
            let packets = class.kind == libc::SOCK_DGRAM;
            match &unix.state {
                State::Alone | State::Listening { .. } | State::Waiting | State::Outside { .. } => {
                    plan.single.push(id)
                }
                State::Connected { to, with } => {
                    let (to, with) = (*to, with.as_ref());
                    let Some((_, other)) = unix_of(files, to) else { continue };
                    let back = match &other.state {
                        State::Connected { to, with } if *to == id => Some(with.as_ref()),
                        _ => None,
                    };
                    if to != id
                        && (packets && (back.is_some() || other.name.is_none()) || is_twin(unix, other))
                    {
                        done.insert(to);
                        plan.pairs.push(Pair::Twins { one: id, other: Some(to), name: None, by: with });
                    } else if packets {
                        plan.single.push(id);
                    } else if let Some(back) = back {
                        done.insert(to);
                        plan.pairs.push(accepted(files, (id, unix, with), (to, other, back)));
                    } else {
                        let why = format!("description {id}: a connection that leads nowhere");
                        return Err(Error::Damaged(format!("{}: {why}", crate::fd::FILE)));
                    }
                }
                State::Orphaned { from, with, .. } => {
                    let with = with.as_ref();
                    let gone = from.as_deref();
                    let listener = unix.name.as_deref().and_then(|name| listener(files, id, name));
                    plan.pairs.push(match (gone, unix.name.as_deref()) {
                        (name, _) if packets => Pair::Twins { one: id, other: None, name, by: with },
                        (None, None) => Pair::Twins { one: id, other: None, name: None, by: with },
                        (None, Some(name)) => Pair::Accepted {
                            client: None,
                            server: Some(id),
                            of: id,
                            name,
                            listener,
                            listened: None,
                            connected: with,
                        },
                        (Some(name), _) => Pair::Accepted {
                            client: Some(id),
                            server: None,
                            of: id,
                            name,
                            // Nobody is to find a connection at it.
                            listener: None,
                            listened: with,
                            connected: None,
                        },
                    });
                }
            }
        }
        Ok(plan)
    }
}

fn is_twin(one: &Unix, other: &Unix) -> bool {
    one.name.is_none() && other.name.is_none()
}

type End<'a> = (u32, &'a Unix, Option<&'a Credentials>);

/// Which one was accepted: it has the name of the socket at which it was.
fn accepted<'a>(files: &Files, one: End<'a>, other: End<'a>) -> Pair<'a> {
    let at = |end: End<'a>| end.1.name.as_deref().and_then(|name| listener(files, end.0, name));
    let (client, server, listener) = match (at(one), at(other)) {
        (_, Some(listener)) => (one, other, Some(listener)),
        (Some(listener), None) => (other, one, Some(listener)),
        (None, None) if other.1.name.is_some() => (one, other, None),
        (None, None) => (other, one, None),
    };
    Pair::Accepted {
        client: Some(client.0),
        server: Some(server.0),
        of: client.0,
        name: server.1.name.as_deref().unwrap_or_default(),
        listener,
        listened: client.2,
        connected: server.2,
    }
}

/// A socket of this name, and of the type of description `like`, that listens.
fn listener(files: &Files, like: u32, name: &[u8]) -> Option<u32> {
    let (class, _) = unix_of(files, like)?;
    all(files)
        .find(|(_, of, unix)| {
            of.kind == class.kind
                && unix.name.as_deref() == Some(name)
                && matches!(unix.state, State::Listening { .. })
        })
        .map(|(id, ..)| id)
}
