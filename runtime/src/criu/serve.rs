//! ckrun when it is called `criu`.
//!
//! podman, and containerd from version 2 on, don't ask a runtime whether it can checkpoint: they start `criu swrk FD` and
//! ask that, over a SOCK_SEQPACKET socket, for its version. So where the user installs ckrun under that name, it answers;
//! the checkpoints themselves are ckrun's own, and nobody ever asks this `criu` for one. If somebody does, he is told.
//!
//! The messages are protobuf (rpc.proto of CRIU): a request is `type = 1`, `keep_open = 4`; a response is `type = 1`,
//! `success = 2`, `cr_errno = 7`, `features = 8`, `cr_errmsg = 9`, `version = 10`.

use super::wire::{number, skip, text, varint};
use crate::error::{Error, Result};
use ckrun_virt::Doing;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::Path;
use std::process::ExitCode;

/// The version of CRIU whose protocol is spoken: major, minor. podman wants 3.11 at least, for pods 3.16.
const VERSION: (u64, u64) = (4, 2);

/// CRIU gives a request 1 KiB at first; its options, which nobody needs to give here, may take more.
const LONGEST: usize = 64 << 10;

/// Kinds of requests.
const FEATURE_CHECK: u64 = 9;
const VERSION_ASKED: u64 = 10;

/// Whether ckrun was called by that name.
pub fn is_meant(program: Option<&OsStr>) -> bool {
    program.and_then(|path| Path::new(path).file_name()) == Some(OsStr::new("criu"))
}

/// Does what a `criu` was called for.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let words: Vec<&str> = args.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    let done = match words[..] {
        ["--version" | "-V"] => {
            println!("Version: {}.{} (ckrun {})", VERSION.0, VERSION.1, env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        ["swrk", fd] => {
            fd.parse().map_err(|_| Error::Usage(format!("swrk {fd}: is not a descriptor"))).and_then(serve)
        }
        _ => Err(Error::Usage(refusal(&words.join(" ")))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("criu: {e}");
            ExitCode::FAILURE
        }
    }
}

fn refusal(what: &str) -> String {
    format!(
        "{what}: this criu is ckrun, and only tells clients its version: \
         use `ckrun checkpoint` and `ckrun restore`, or install CRIU"
    )
}

/// Answers one request, or as many as the client says that it has.
fn serve(fd: RawFd) -> Result<()> {
    let mut buffer = vec![0; LONGEST];
    loop {
        let length =
            recv(fd, &mut buffer, MsgFlags::empty()).doing(|| format!("read from descriptor {fd}"))?;
        if length == 0 {
            return Ok(());
        }
        let request = Request::parse(&buffer[..length])
            .ok_or_else(|| Error::Usage("what came is not a request of CRIU's protocol".into()))?;
        // A client that has gone is no reason to be killed.
        send(fd, &request.answer(), MsgFlags::MSG_NOSIGNAL).doing(|| format!("write to descriptor {fd}"))?;
        if !request.more {
            return Ok(());
        }
    }
}

/// What of a request matters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    kind: u64,
    /// Another one will follow.
    more: bool,
}

impl Request {
    fn parse(mut bytes: &[u8]) -> Option<Request> {
        let mut request = Request::default();
        let mut typed = false;
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            match (key >> 3, key & 7) {
                (1, 0) => (request.kind, typed) = (varint(&mut bytes)?, true),
                (4, 0) => request.more = varint(&mut bytes)? != 0,
                (_, 0) => drop(varint(&mut bytes)?),
                (_, 1) => skip(&mut bytes, 8)?,
                (_, 2) => {
                    let length = varint(&mut bytes)?;
                    skip(&mut bytes, usize::try_from(length).ok()?)?;
                }
                (_, 5) => skip(&mut bytes, 4)?,
                _ => return None,
            }
        }
        typed.then_some(request)
    }

    fn answer(&self) -> Vec<u8> {
        let mut out = Vec::new();
        number(&mut out, 1, self.kind);
        match self.kind {
            VERSION_ASKED => {
                number(&mut out, 2, 1);
                let mut version = Vec::new();
                number(&mut version, 1, VERSION.0);
                number(&mut version, 2, VERSION.1);
                text(&mut version, 6, concat!("ckrun ", env!("CARGO_PKG_VERSION")).as_bytes());
                text(&mut out, 10, &version);
            }
            FEATURE_CHECK => {
                number(&mut out, 2, 1);
                let mut features = Vec::new();
                // Memory ahead of a checkpoint (mem_track), and after it (lazy_pages): neither is there.
                number(&mut features, 1, 0);
                number(&mut features, 2, 0);
                text(&mut out, 8, &features);
            }
            kind => {
                number(&mut out, 2, 0);
                number(&mut out, 7, Errno::EOPNOTSUPP as u64);
                text(&mut out, 9, refusal(&format!("request {kind}")).as_bytes());
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::AsRawFd;

    #[test]
    fn the_name_decides() {
        for (program, meant) in
            [("criu", true), ("/usr/sbin/criu", true), ("/x/criu/ckrun", false), ("ckrun", false)]
        {
            assert_eq!(is_meant(Some(OsStr::new(program))), meant, "{program}");
        }
        assert!(!is_meant(None));
    }

    #[test]
    fn a_client_hears_the_version_and_what_there_is_not() {
        let pair =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let ask = |request: &[u8]| {
            send(pair.0.as_raw_fd(), request, MsgFlags::empty()).unwrap();
            serve(pair.1.as_raw_fd()).unwrap();
            let mut answer = vec![0; 1024];
            let length = recv(pair.0.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
            answer.truncate(length);
            answer
        };
        let version = ask(&[0x08, 0x0a]);
        let name = format!("ckrun {}", env!("CARGO_PKG_VERSION"));
        let inner = [&[0x08, 4, 0x10, 2, 0x32, name.len() as u8], name.as_bytes()].concat();
        assert_eq!(version, [&[0x08, 0x0a, 0x10, 1, 0x52, inner.len() as u8], &inner[..]].concat());
        // mem_track is asked for, and said not to be there.
        assert_eq!(ask(&[0x08, 9, 0x2a, 2, 0x08, 1]), [0x08, 9, 0x10, 1, 0x42, 4, 0x08, 0, 0x10, 0]);
        // A dump.
        let refused = ask(&[0x08, 1]);
        assert_eq!(refused[..4], [0x08, 1, 0x10, 0]);
        assert!(String::from_utf8_lossy(&refused).contains("this criu is ckrun"));
    }

    #[test]
    fn requests_are_read_however_they_are_written() {
        let parse = Request::parse;
        // The options (2), a fixed number of each width, keep_open, and the type last.
        let long = [0x12, 3, 1, 2, 3, 0x71, 1, 2, 3, 4, 5, 6, 7, 8, 0x75, 1, 2, 3, 4, 0x20, 1, 0x08, 0x8a, 0];
        assert_eq!(parse(&long), Some(Request { kind: 10, more: true }));
        for bad in [&[][..], &[0x12, 9, 1], &[0x08], &[0x0b], &[0x20, 1], &[0x08, 0x80], &[0xff; 12]] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        for length in 0..long.len() {
            let _ = parse(&long[..length]);
        }
    }
}
