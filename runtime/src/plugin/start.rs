//! The process of a plugin, confined as PROTOCOL.md says under "How it is started".

use super::manifest::Manifest;
use crate::error::{Error, Result};
use ckrun_plugin::serve::SOCKET;
use ckrun_virt::{Doing, Failure, Process};
use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid, setsid};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// The descriptor that has the socket.
const NUMBER: RawFd = 3;

/// Where a plugin looks for programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process of a plugin. When this is dropped, it is killed with its group.
#[derive(Debug)]
pub struct Confined {
    child: Child,
    process: Process,
    ended: Option<ExitStatus>,
}

/// Starts a plugin. What it writes to its standard output and error goes to `log`. The answer is the process and
/// ckrun's end of the socket.
///
/// # Errors
/// [`Error::Usage`] for a user that does not exist, [`Error::Sys`] when it can't be executed.
pub fn start(manifest: &Manifest, log: BorrowedFd<'_>) -> Result<(Confined, OwnedFd)> {
    let doing = || format!("start plugin {} ({})", manifest.name, manifest.path().display());
    let user = manifest.user.as_deref().map(|user| User::find(user, &manifest.name)).transpose()?;
    let (ours, theirs) = UnixStream::pair().doing(doing)?;
    let stream = || log.try_clone_to_owned().map(Stdio::from);
    let mut command = Command::new(manifest.path());
    command.args(manifest.command.iter().skip(1)).current_dir("/");
    command.env_clear().env("PATH", PATH).envs(&manifest.env).env(SOCKET, NUMBER.to_string());
    command.stdin(Stdio::null()).stdout(stream().doing(doing)?).stderr(stream().doing(doing)?);
    let socket = theirs.as_raw_fd();
    let confine = move || Ok(confine(socket, user.as_ref())?);
    // SAFETY: between fork and exec there is one thread, as there was before, so that no lock is held by another.
    unsafe { command.pre_exec(confine) };
    let child = command.spawn().doing(doing)?;
    let pid = Pid::from_raw(child.id().cast_signed());
    // It is our child and has not been waited for, so the id is still its own.
    match Process::open_now(pid) {
        Some(process) => Ok((Confined { child, process, ended: None }, ours.into())),
        None => {
            let _ = killpg(pid, Signal::SIGKILL);
            Err(Failure::new(doing(), Errno::ESRCH).into())
        }
    }
}

/// What the child does before the exec. Descriptor 3 is never the pipe by which the standard library reports a failed
/// exec: before the spawn the lowest free numbers went to the pair of sockets.
fn confine(socket: RawFd, user: Option<&User>) -> Result<(), Errno> {
    setsid()?;
    if socket == NUMBER {
        // SAFETY: changes the flags of a descriptor of ours; dup2(2) would leave them as they are.
        Errno::result(unsafe { libc::fcntl(NUMBER, libc::F_SETFD, 0) })?;
    } else {
        // SAFETY: replaces a descriptor of the child, which execs next and uses none by number but this.
        Errno::result(unsafe { libc::dup2(socket, NUMBER) })?;
    }
    // Closed by the exec and not now, for the sake of the pipe of the standard library.
    // SAFETY: only sets flags.
    Errno::result(unsafe {
        libc::close_range(4, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int)
    })?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    if let Some(user) = user {
        setgroups(&user.groups)?;
        setresgid(user.gid, user.gid, user.gid)?;
        setresuid(user.uid, user.uid, user.uid)?;
    }
    set_no_new_privs()
}

impl Confined {
    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Waits for its end, and says whether that came within `limit`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ends_within(&self, limit: Duration) -> Result<bool, Failure> {
        self.process.wait(limit)
    }

    /// Kills what is left of its process group, and waits for it: how it ended.
    pub fn end(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        // The leader has not been waited for, so its id is no other's, and with it that of the group (setsid(2)).
        let _ = killpg(self.process.pid(), Signal::SIGKILL);
        let status = self.child.wait().unwrap_or_default();
        *self.ended.insert(status)
    }
}

/// Readable when it has ended.
impl AsFd for Confined {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        self.end();
    }
}

/// How a process ended, for a person: "exit status 3", "killed by SIGSEGV".
pub fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(number)) => {
            format!("killed by {}", Signal::try_from(number).map_or("a signal", Signal::as_str))
        }
        _ => "for a reason unknown".into(),
    }
}

/// To whom a plugin's folder must belong; None if that is ckrun's own user.
///
/// # Errors
/// [`Error::Usage`] for a user that does not exist.
pub fn owner(manifest: &Manifest) -> Result<Option<(u32, u32)>> {
    let user = manifest.user.as_deref().map(|user| User::find(user, &manifest.name)).transpose()?;
    Ok(user.map(|user| (user.uid.as_raw(), user.gid.as_raw())))
}

/// A user and the groups that go with him.
#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl User {
    /// `NAME`, `UID` or `UID:GID`, by the host's files: a static binary can't ask the name service (getpwnam(3)).
    fn find(text: &str, plugin: &str) -> Result<User> {
        let wrong = |why: &str| Error::Usage(format!("plugin {plugin}: user {text:?}: {why}"));
        if let Some((uid, gid)) = text.split_once(':') {
            let id = |text: &str| text.parse().map_err(|_| wrong("a UID and a GID are numbers"));
            return Ok(User {
                uid: Uid::from_raw(id(uid)?),
                gid: Gid::from_raw(id(gid)?),
                groups: Vec::new(),
            });
        }
        let read = |path: &str| std::fs::read_to_string(path).map_err(|e| Error::file(Path::new(path), &e));
        User::among(text, &read("/etc/passwd")?, &read("/etc/group")?)
            .ok_or_else(|| wrong("/etc/passwd has no such user; UID:GID does without"))
    }

    /// passwd(5), group(5).
    fn among(text: &str, passwd: &str, group: &str) -> Option<User> {
        let fields = |line: &'_ str| line.split(':').map(str::to_owned).collect::<Vec<String>>();
        let entry = passwd.lines().map(fields).find(|f| f.len() >= 4 && (f[0] == text || f[2] == text))?;
        let (uid, gid) = (Uid::from_raw(entry[2].parse().ok()?), Gid::from_raw(entry[3].parse().ok()?));
        let member = |f: &Vec<String>| f.len() >= 4 && f[3].split(',').any(|name| name == entry[0]);
        let more = group.lines().map(fields).filter(member);
        let more = more.filter_map(|f| f[2].parse().ok()).map(Gid::from_raw).filter(|other| *other != gid);
        Some(User { uid, gid, groups: std::iter::once(gid).chain(more).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// A shell script as a plugin; what it said until its end.
    fn said(script: &str, user: Option<&str>) -> String {
        let mut manifest = Manifest::of("/bin/sh", Path::new("/nowhere")).unwrap();
        manifest.command.extend(["-c".into(), script.into()]);
        manifest.env.insert("EMU".into(), "1".into());
        manifest.user = user.map(str::to_owned);
        let (mut log, writer) = std::io::pipe().unwrap();
        let (mut confined, socket) = start(&manifest, writer.as_fd()).unwrap();
        drop(writer);
        let mut said = String::new();
        log.read_to_string(&mut said).unwrap();
        drop(socket);
        confined.end();
        said
    }

    #[test]
    fn it_inherits_nothing_but_what_the_protocol_names() {
        // Not closed by an exec, unlike those that the standard library opens.
        let stray = std::fs::File::open("/").unwrap();
        rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
        let script = "ls /proc/$$/fd; readlink /proc/$$/fd/0; env; pwd; \
                      cut -d' ' -f1,5,6 /proc/$$/stat; grep NoNewPrivs /proc/$$/status; ulimit -c";
        let said = said(script, None);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..5], ["0", "1", "2", "3", "/dev/null"], "{said}");
        let mut env: Vec<&str> = lines[5..].iter().copied().take_while(|line| line.contains('=')).collect();
        env.sort_unstable();
        assert_eq!(env[..2], ["CKRUN_PLUGIN_SOCKET=3", "EMU=1"], "{said}");
        let rest = &lines[5 + env.len()..];
        let ids: Vec<&str> = rest[1].split(' ').collect();
        assert_eq!(
            (rest[0], ids[0], ids[0]),
            ("/", ids[1], ids[2]),
            "not the leader of a group and a session"
        );
        assert_eq!(rest[2..], ["NoNewPrivs:\t1", "0"]);
    }

    #[test]
    fn it_runs_as_the_user_of_its_manifest() {
        assert_eq!(said("id -u; id -g; id -G", Some("65534:65533")), "65534\n65533\n65533\n");
        assert_eq!(said("id -un", Some("nobody")), "nobody\n");
        let manifest = Manifest {
            user: Some("no such".into()),
            ..Manifest::of("/bin/sh", Path::new("/nowhere")).unwrap()
        };
        let null = std::fs::File::open("/dev/null").unwrap();
        let why = start(&manifest, null.as_fd()).unwrap_err().to_string();
        assert!(why.contains("\"no such\": /etc/passwd has no such user"), "{why}");
    }

    #[test]
    fn groups_are_those_of_the_host() {
        let passwd = "root:x:0:0::/:/bin/sh\nemu:x:7:8::/:/bin/false\n";
        let user = User::among("emu", passwd, "emu:x:8:\nlab:x:20:root,emu\nlabs:x:21:emus\n").unwrap();
        assert_eq!((user.uid.as_raw(), user.groups), (7, vec![Gid::from_raw(8), Gid::from_raw(20)]));
        assert_eq!(User::among("7", passwd, "").unwrap().gid.as_raw(), 8);
    }

    #[test]
    fn its_group_is_killed_with_it() {
        let mut manifest = Manifest::of("/bin/sh", Path::new("/nowhere")).unwrap();
        manifest.command.extend(["-c".into(), "sleep 1000 & wait".into()]);
        let (reader, writer) = std::io::pipe().unwrap();
        let (confined, _socket) = start(&manifest, writer.as_fd()).unwrap();
        drop(writer);
        drop(confined);
        // The sleep had the pipe too.
        assert_eq!(std::io::read_to_string(reader).unwrap(), "");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let why = start(&Manifest::of("/no/such", Path::new("/nowhere")).unwrap(), null.as_fd())
            .unwrap_err()
            .to_string();
        assert_eq!(why, "start plugin such (/no/such): no such file or directory");
    }
}
