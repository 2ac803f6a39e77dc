//! What ckrun reads of `/proc`.

use crate::Failure;
use nix::errno::Errno;
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Read};

/// Reads a file of `/proc` to its end. Such a file says that it is empty, so that the standard library would begin with a
/// few bytes and double them; most fit into one page.
///
/// # Errors
/// Those of open(2) and read(2).
pub fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    let mut page = [0; 4096];
    loop {
        match file.read(&mut page) {
            Ok(0) => return Ok(bytes),
            Ok(length) => bytes.extend_from_slice(&page[..length]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Something of `process` has failed because the process, or what was looked at in it, has gone since it was listed. The
/// links in its directory (`ns/mnt`, `fd/3`, `cwd`) answer EACCES when it is reaped on the way to them (proc_ns_get_link()
/// and proc_fd_access_allowed() in fs/proc).
pub(crate) fn is_gone(failure: &Failure, process: Pid) -> bool {
    match failure.errno {
        Errno::ENOENT | Errno::ESRCH => true,
        Errno::EACCES => Stat::of(process).is_none(),
        _ => false,
    }
}

/// The fields of `/proc/PID/stat` that identify a process, and say whether it lives and how its memory is divided
/// (proc_pid_stat(5)). To write this file takes the kernel longer than others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `D`, `T`, `Z`, …
    pub state: char,
    /// The parent's id.
    pub parent: Pid,
    /// Its process group's id (field 5).
    pub group: i32,
    /// Its session's id (field 6).
    pub session: i32,
    /// The device number of its controlling terminal as the kernel packs it, 0 for none (field 7).
    pub terminal: u32,
    /// The foreground process group of that terminal, -1 for none (field 8).
    pub foreground: i32,
    /// Clock ticks from boot to the start of the process (field 22): with the pid it names one process for good.
    pub started: u64,
    /// What its parent is told of its end by: a signal's number, 0 for none (field 38).
    pub exit_signal: i32,
    /// Addresses in its memory, for who may trace it: start and end of its code, bottom of its first thread's stack (fields 26
    /// to 28); start and end of its data, start of its heap, start and end of its arguments, and of its environment (45 to 51).
    pub addresses: [u64; 10],
    /// The wait status of a zombie; of a stopped process the stop that its parent has not asked for yet (field 52).
    pub exit_code: i32,
}

impl Stat {
    /// Reads the state of `pid`; None when there is no such process.
    pub fn of(pid: Pid) -> Option<Stat> {
        Self::parse(&read(&format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(line: &[u8]) -> Option<Stat> {
        // The command name, in parentheses, may itself hold spaces and parentheses: only the last one ends it.
        let end = line.iter().rposition(|&b| b == b')')?;
        let mut fields = std::str::from_utf8(line.get(end + 2..)?).ok()?.trim_end().split(' ');
        let state = fields.next()?.chars().next()?;
        let parent = Pid::from_raw(fields.next()?.parse().ok()?);
        let group = fields.next()?.parse().ok()?;
        let session = fields.next()?.parse().ok()?;
        // The state is field 3, so this is field 7, and field 22 the 14th after field 8.
        let terminal: i32 = fields.next()?.parse().ok()?;
        let foreground = fields.next()?.parse().ok()?;
        let started = fields.nth(13)?.parse().ok()?;
        let mut addresses = [0; 10];
        let (first, last) = addresses.split_at_mut(3);
        fields.nth(2)?;
        for address in first {
            *address = fields.next()?.parse().ok()?;
        }
        let exit_signal = fields.nth(9)?.parse().ok()?;
        fields.nth(5)?;
        for address in last {
            *address = fields.next()?.parse().ok()?;
        }
        let exit_code = fields.next()?.parse().ok()?;
        Some(Stat {
            state,
            parent,
            group,
            session,
            terminal: terminal.cast_unsigned(),
            foreground,
            started,
            exit_signal,
            addresses,
            exit_code,
        })
    }

    /// A zombie has ended and only waits for its parent.
    pub fn ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Doing;
    use rustix::fs::{Mode, OFlags};

    #[test]
    fn a_hostile_command_name_does_not_shift_the_fields() {
        let rest: String = (4..=52).map(|field| format!(" {field}")).collect();
        let stat = Stat::parse(format!("42 (a) R 1 (x)) S{rest}\n").as_bytes()).unwrap();
        assert_eq!((stat.state, stat.parent, stat.terminal, stat.started), ('S', Pid::from_raw(4), 7, 22));
        assert_eq!((stat.exit_signal, stat.exit_code), (38, 52));
        assert_eq!(stat.addresses, [26, 27, 28, 45, 46, 47, 48, 49, 50, 51]);
        assert_eq!(Stat::parse(b"42 (x) S 1 2"), None);
        assert_eq!(Stat::parse(b""), None);
    }

    #[test]
    fn this_process_lives() {
        let stat = Stat::of(Pid::this()).unwrap();
        assert!(!stat.ended());
        assert_eq!(stat.exit_signal, libc::SIGCHLD);
    }

    #[test]
    fn a_link_of_one_that_has_been_reaped_is_gone() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let host = Pid::from_raw(child.id() as i32);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let link = rustix::fs::open(format!("/proc/{host}/ns/mnt"), flags, Mode::empty()).unwrap();
        let denied = Failure::new("read a link", Errno::EACCES);
        assert!(!is_gone(&denied, host));
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        let answer = rustix::fs::readlinkat(&link, "", Vec::new()).doing(|| "read a link");
        assert_eq!(answer, Err(denied.clone()));
        assert!(is_gone(&denied, host));
    }
}
