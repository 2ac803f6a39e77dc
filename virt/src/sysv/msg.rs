//! Message queues.

use super::{Access, Sort, all, create};
use crate::image::Bytes;
use crate::sys::check;
use crate::{Doing, Failure};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// `linux/msg.h`.
const MSG_INFO: libc::c_int = 12;
const MSG_STAT_ANY: libc::c_int = 13;
/// msgrcv(2) leaves the message where it is, and takes its place in the queue instead of a type.
const MSG_COPY: libc::c_int = 0o40000;
/// Bytes of a message's type, which its text follows.
const TYPE: usize = 8;

const SORT: Sort = Sort { name: "message queue", short: "msg", remove };

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Queue {
    /// Its id in the namespace.
    pub id: i32,
    /// Who may do what with it.
    pub access: Access,
    /// The most bytes that may wait in it.
    pub room: u64,
    /// What waits, the oldest first.
    pub messages: Vec<Message>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Message {
    /// Its type, above 0.
    #[serde(rename = "type")]
    pub kind: i64,
    /// Its content.
    pub text: Bytes,
}

/// msgctl(2) that fills a structure.
fn stat(id: i32, command: libc::c_int) -> Result<(i32, libc::msqid_ds), Errno> {
    // SAFETY: a plain C structure of numbers.
    let mut queue: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the commands fill a msqid_ds, or, MSG_INFO, the smaller msginfo.
    let answer = check(unsafe { libc::msgctl(id, command, &raw mut queue) }.into())?;
    Ok((answer as i32, queue))
}

fn remove(id: i32) {
    // SAFETY: IPC_RMID takes no structure.
    unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
}

pub(super) fn capture() -> Result<Vec<Queue>, Failure> {
    let (last, _) = stat(0, MSG_INFO).doing(|| "count message queues")?;
    let found = all(SORT, last, |index| stat(index, MSG_STAT_ANY))?;
    let queue = |(id, queue): (i32, libc::msqid_ds)| {
        let messages = peek(id, queue.__msg_cbytes as usize)
            .doing(|| format!("look at the messages in message queue {id} (CONFIG_CHECKPOINT_RESTORE)"))?;
        Ok(Queue { id, access: Access::of(&queue.msg_perm), room: queue.msg_qbytes, messages })
    };
    found.into_iter().map(queue).collect()
}

/// The messages of a queue, none of which has more than `most` bytes.
fn peek(id: i32, most: usize) -> Result<Vec<Message>, Errno> {
    let mut messages = Vec::new();
    let mut buffer = vec![0_u8; TYPE + most];
    loop {
        let place = messages.len() as libc::c_long;
        // SAFETY: the buffer has room for a type and `most` bytes.
        let got = check(unsafe {
            libc::msgrcv(id, buffer.as_mut_ptr().cast(), most, place, MSG_COPY | libc::IPC_NOWAIT)
                as libc::c_long
        });
        match got {
            Ok(len) => {
                let (kind, text) = buffer.split_first_chunk::<TYPE>().ok_or(Errno::EFAULT)?;
                let text = text.get(..len as usize).ok_or(Errno::EFAULT)?.into();
                messages.push(Message { kind: i64::from_ne_bytes(*kind), text });
            }
            Err(Errno::ENOMSG) => return Ok(messages),
            Err(errno) => return Err(errno),
        }
    }
}

impl Queue {
    pub(super) fn make(&self) -> Result<(), Failure> {
        let Queue { id, access, room, messages } = self;
        let what = || format!("set message queue {id}");
        // SAFETY: numbers only.
        create(SORT, *id, access.creator, || unsafe { libc::msgget(access.key, access.flags()) })?;
        let (_, mut queue) = stat(*id, libc::IPC_STAT).doing(what)?;
        // The room may have become smaller than what waits. A message without a text counts as well.
        let waiting = messages.iter().map(|message| message.text.len() as u64).sum::<u64>();
        let needed = waiting.max(messages.len() as u64).max(*room);
        let mut set = |room: u64| {
            queue.msg_qbytes = room;
            // SAFETY: IPC_SET reads a msqid_ds.
            check(unsafe { libc::msgctl(*id, libc::IPC_SET, &raw mut queue) }.into())
                .doing(|| format!("give message queue {id} room for {room} bytes"))
        };
        set(needed)?;
        for message in messages {
            let bytes = [&message.kind.to_ne_bytes()[..], &message.text].concat();
            // SAFETY: a type, and as many bytes as are told.
            let sent =
                unsafe { libc::msgsnd(*id, bytes.as_ptr().cast(), message.text.len(), libc::IPC_NOWAIT) };
            check(sent.into())
                .doing(|| format!("put a message of {} bytes into message queue {id}", message.text.len()))?;
        }
        access.apply(&mut queue.msg_perm);
        queue.msg_qbytes = *room;
        // SAFETY: as above.
        check(unsafe { libc::msgctl(*id, libc::IPC_SET, &raw mut queue) }.into()).doing(what)?;
        Ok(())
    }
}
