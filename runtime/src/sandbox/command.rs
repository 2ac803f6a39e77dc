//! The command of a container: found, checked, and executed.

use crate::error::{Error, Result};
use ckrun_virt::error::text;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, stat};
use nix::unistd::{AccessFlags, access};
use oci_spec::runtime::Process;
use std::convert::Infallible;
use std::ffi::CString;
use std::path::{Path, PathBuf};

/// A command that is ready to run.
#[derive(Debug)]
pub struct Command {
    name: String,
    file: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Command {
    /// Finds `process.args[0]` in the root directory and working directory of the caller, as its user.
    ///
    /// # Errors
    /// Worded like Go's os/exec, since clients make exit codes of it: `executable file not found in $PATH`, `no such
    /// file or directory`, `permission denied`.
    pub fn find(process: &Process, more_env: &[String]) -> Result<Command> {
        let args = process.args().as_deref().unwrap_or_default();
        let name = args.first().ok_or_else(|| Error::config("process.args", "is empty"))?;
        let env = last_of_each(process.env().iter().flatten().chain(more_env));
        let path = env.iter().find_map(|var| var.strip_prefix("PATH=")).unwrap_or("");
        let file = if name.contains('/') { check(name)? } else { search(name, path)? };
        Ok(Command {
            name: name.clone(),
            file: string(&file.to_string_lossy())?,
            args: args.iter().map(|a| string(a)).collect::<Result<_>>()?,
            env: env.into_iter().map(|e| string(e)).collect::<Result<_>>()?,
        })
    }

    /// Adds `HOME` for the user when the configuration does not set it, as every login does.
    pub fn default_home(&mut self, uid: u32) {
        if !self.env.iter().any(|var| var.as_bytes().starts_with(b"HOME=")) {
            let home = home_of(uid).unwrap_or_else(|| "/".into());
            self.env.extend(CString::new(format!("HOME={home}")));
        }
    }

    /// Becomes the command. Only execve(2) is called: a seccomp filter may deny everything else.
    pub fn exec(&self) -> Result<Infallible> {
        let Err(errno) = nix::unistd::execve(&self.file, &self.args, &self.env);
        Err(Error::Exec { command: self.name.clone(), why: text(errno) })
    }
}

/// A variable that is set twice has its last value: getenv(3) would return the first.
fn last_of_each<'a>(variables: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    let name = |variable: &str| variable.split('=').next().map(str::len);
    let mut env: Vec<&String> = Vec::new();
    for variable in variables {
        let length = name(variable).unwrap_or(0);
        match env.iter_mut().find(|v| name(v) == Some(length) && v[..length] == variable[..length]) {
            Some(earlier) => *earlier = variable,
            None => env.push(variable),
        }
    }
    env
}

/// The home directory of `uid` in the container's /etc/passwd (passwd(5)).
fn home_of(uid: u32) -> Option<String> {
    let table = std::fs::read_to_string("/etc/passwd").ok()?;
    let entry =
        table.lines().find(|line| line.split(':').nth(2).and_then(|n| n.parse().ok()) == Some(uid))?;
    entry.split(':').nth(5).filter(|home| !home.is_empty()).map(str::to_owned)
}

fn string(s: &str) -> Result<CString> {
    CString::new(s).map_err(|_| Error::config("process", format!("{s:?} has a zero byte in it")))
}

fn check(name: &str) -> Result<PathBuf> {
    match runnable(Path::new(name)) {
        Ok(()) => Ok(name.into()),
        // execve(2) says EACCES, and Docker 20.10 gives 126 only for its text.
        Err((_, Errno::EISDIR)) => {
            Err(Error::Exec { command: name.into(), why: "permission denied: is a directory".into() })
        }
        Err((call, errno)) => {
            let call = if call.is_empty() { String::new() } else { format!("{call} {name}: ") };
            Err(Error::Exec { command: name.into(), why: format!("{call}{}", text(errno)) })
        }
    }
}

fn search(name: &str, path: &str) -> Result<PathBuf> {
    let mut denied = false;
    for dir in path.split(':').map(|dir| if dir.is_empty() { "." } else { dir }) {
        let file = Path::new(dir).join(name);
        match runnable(&file) {
            Ok(()) => return Ok(file),
            Err((_, Errno::EACCES)) => denied = true,
            Err(_) => {}
        }
    }
    let why = if denied { "permission denied" } else { "executable file not found in $PATH" };
    Err(Error::Exec { command: name.into(), why: why.into() })
}

fn runnable(file: &Path) -> Result<(), (&'static str, Errno)> {
    let found: FileStat = stat(file).map_err(|e| ("stat", e))?;
    if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
        return Err(("", Errno::EISDIR));
    }
    access(file, AccessFlags::X_OK).map_err(|e| ("", e))
}
