//! One descriptor of a process, as `/proc` shows it.

use super::graph::Key;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use rustix::fs::{FileType, Stat};
use std::fs::File;
use std::io::Read;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;

/// Not a flag of the description but of the descriptor; `/proc` shows both in one number.
const CLOEXEC: u32 = libc::O_CLOEXEC as u32;

/// `/proc/PID/fdinfo/FD` (proc_pid_fdinfo(5)).
#[derive(Debug, Clone, Default)]
pub(crate) struct Info {
    /// What F_GETFL answers.
    pub flags: u32,
    /// The descriptor is closed by execve(2).
    pub cloexec: bool,
    pub position: i64,
    pub mount: u64,
    pub inode: u64,
    text: String,
}

impl Info {
    /// # Errors
    /// `ENOENT` when there is no such descriptor.
    pub fn read(host: Pid, fd: RawFd) -> Result<Info, Failure> {
        let path = format!("/proc/{host}/fdinfo/{fd}");
        let text = read_once(&path).doing(|| format!("read {path}"))?;
        Ok(Info::parse(text))
    }

    fn parse(text: String) -> Info {
        let mut info = Info { text, ..Info::default() };
        let flags = info.field("flags").and_then(|octal| u32::from_str_radix(octal, 8).ok()).unwrap_or(0);
        info.cloexec = flags & CLOEXEC != 0;
        info.flags = flags & !CLOEXEC;
        info.position = info.number("pos");
        info.mount = info.number("mnt_id");
        info.inode = info.number("ino");
        info
    }

    /// What tells most descriptions apart.
    pub fn key(&self) -> Key {
        (self.inode, self.mount, self.position, self.flags)
    }

    /// What stands behind `name:` in the first line that begins so.
    pub fn field(&self, name: &str) -> Option<&str> {
        let value = |line| str::strip_prefix(line, name)?.strip_prefix(':').map(str::trim);
        self.text.lines().find_map(value)
    }

    /// A number in decimal digits, or the default.
    pub fn number<T: std::str::FromStr + Default>(&self, name: &str) -> T {
        self.field(name).and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// What stands behind a first word and a space in all lines that begin so.
    pub fn rows<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> + Clone {
        self.text.lines().filter_map(move |line| line.strip_prefix(word)?.strip_prefix(' '))
    }

    /// What stands behind `name:` in all lines that begin so.
    pub fn lines<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.text.lines().filter_map(move |line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    }
}

/// Reads a file of `/proc` that the kernel writes in one piece: when it fits into the buffer, one read is all of it. There
/// are as many of these files as a job has descriptors.
fn read_once(path: &str) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = [0; 2048];
    let length = file.read(&mut buffer)?;
    let mut bytes = buffer[..length].to_vec();
    if length == buffer.len() {
        file.read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// An open file description, by the first descriptor that was found to lead to it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub info: Info,
    /// Where the link of `/proc/PID/fd` leads: a path, or the kernel's name for something that has none.
    pub link: Vec<u8>,
    pub stat: Stat,
}

impl Seen {
    /// # Errors
    /// `ENOENT` when there is no such descriptor.
    pub fn look(host: Pid, fd: RawFd, info: Info) -> Result<Seen, Failure> {
        let path = format!("/proc/{host}/fd/{fd}");
        let link = std::fs::read_link(&path).doing(|| format!("read {path}"))?;
        let stat = rustix::fs::stat(&path).doing(|| format!("look at {path}"))?;
        Ok(Seen { info, link: link.into_os_string().into_vec(), stat })
    }

    pub fn type_(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// It has, or had, a name in a file system.
    pub fn has_path(&self) -> bool {
        self.link.starts_with(b"/")
    }

    /// What kind of thing the kernel calls it: `eventfd` for `anon_inode:[eventfd]`. None for what has a path.
    pub fn anonymous(&self) -> Option<&[u8]> {
        let name = self.link.strip_prefix(b"anon_inode:").unwrap_or(&self.link);
        let name = name.strip_prefix(b"[").and_then(|name| name.strip_suffix(b"]")).unwrap_or(name);
        (!self.has_path()).then_some(name)
    }

    pub fn path_only(&self) -> bool {
        self.info.flags & libc::O_PATH as u32 != 0
    }

    pub fn access(&self) -> u32 {
        self.info.flags & libc::O_ACCMODE as u32
    }

    pub fn reads(&self) -> bool {
        !self.path_only() && self.access() != libc::O_WRONLY as u32
    }

    pub fn writes(&self) -> bool {
        !self.path_only() && self.access() != libc::O_RDONLY as u32
    }

    /// For people.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.link).into_owned()
    }
}

/// The numbers of the descriptors of a process.
///
/// # Errors
/// `ENOENT` when it has ended.
pub(super) fn descriptors(host: Pid) -> Result<Vec<RawFd>, Failure> {
    // To list a directory of /proc the kernel makes an inode of every entry. These are needed afterwards.
    let path = format!("/proc/{host}/fdinfo");
    let entries = std::fs::read_dir(&path).doing(|| format!("read {path}"))?;
    let mut numbers = Vec::new();
    for entry in entries {
        let entry = entry.doing(|| format!("read {path}"))?;
        numbers.extend(entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_names() {
        let text = "pos:\t7\nflags:\t02100002\nmnt_id:\t15\nino:\t4\neventfd-count:                1f\nlock:\t1: x\nlock:\t2: y\n";
        let info = Info::parse(text.into());
        assert_eq!((info.flags, info.cloexec, info.position), (0o100_002, true, 7));
        assert_eq!((info.mount, info.inode), (15, 4));
        assert_eq!(info.field("eventfd-count"), Some("1f"));
        assert_eq!(info.field("eventfd"), None);
        assert_eq!(info.lines("lock").collect::<Vec<_>>(), ["1: x", "2: y"]);
    }
}
