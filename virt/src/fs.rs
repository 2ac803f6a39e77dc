//! A process's place in the file system: working directory, root directory, umask.

use crate::fd::{Graph, Job, Located, Made, Member, Trouble, is_first, locate, mount_id};
use crate::image::Bytes;
use crate::program::Program;
use crate::{Doing, Failure};
use rustix::fs::Stat;
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStringExt;

/// A process's place in the file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Fs {
    /// Its working directory.
    pub cwd: Place,
    /// Its root directory, when it has called chroot(2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Bytes>,
    /// The permissions that new files do not get.
    pub umask: u32,
    /// The mount namespace that it is in; 0 is that of the first process.
    #[serde(default, skip_serializing_if = "is_first")]
    pub namespace: u32,
    /// That of its working directory, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<u32>,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// From the container's root.
    Path(Bytes),
    /// A deleted one: which of [`crate::fd::Files::ghosts`].
    Deleted(u32),
}

impl Default for Place {
    fn default() -> Self {
        Place::Path("/".into())
    }
}

/// A link of `/proc/PID`, looked at.
struct Link {
    path: String,
    name: Vec<u8>,
    stat: Stat,
    mount: u64,
}

impl Link {
    fn look(path: String, graph: &Graph) -> Result<Link, Failure> {
        let name = std::fs::read_link(&path).doing(|| format!("read {path}"))?;
        let stat = rustix::fs::stat(&path).doing(|| format!("look at {path}"))?;
        let mount = mount_id(&path)?;
        let (_, container) = graph.home(mount);
        Ok(Link { name: container.relative(name.into_os_string().into_vec()), path, stat, mount })
    }
}

impl Fs {
    /// That of the member of number `at`.
    pub(crate) fn capture(job: &mut Job<'_>, at: usize, member: &Member) -> Result<Fs, Trouble> {
        let graph = job.graph();
        let (namespace, container) = graph.namespace(at);
        let [root, cwd] = ["root", "cwd"].map(|name| format!("/proc/{}/{name}", member.host));
        let root = if container.is_root(&root)? {
            if !container.is_whole() {
                return Err(Trouble::refused("root directory", "the job's first process has called chroot"));
            }
            None
        } else {
            let root = Link::look(root, graph)?;
            match locate(job, &root.name, &root.stat, root.mount).map_err(|e| e.of("root directory"))? {
                (home, Located::Named(path)) if home == namespace => Some(path.into()),
                (_, Located::Named(path)) => {
                    let name = String::from_utf8_lossy(&path).into_owned();
                    let why = "it is in another mount namespace than the process, or a mount hides it";
                    return Err(Trouble::refused(format!("root directory {name}"), why));
                }
                (_, Located::Deleted(path)) => {
                    let name = String::from_utf8_lossy(&path).into_owned();
                    return Err(Trouble::refused(format!("root directory {name}"), "it was deleted"));
                }
            }
        };
        let umask = member.umask;
        if container.is_root(&cwd)? {
            return Ok(Fs { root, umask, namespace, ..Fs::default() });
        }
        let cwd = Link::look(cwd, graph)?;
        let located = locate(job, &cwd.name, &cwd.stat, cwd.mount);
        let (home, located) = located.map_err(|trouble| trouble.of("working directory"))?;
        let cwd = match located {
            Located::Named(path) => Place::Path(path.into()),
            Located::Deleted(last) => {
                let ghost = job.ghost_at(&cwd.path, &cwd.stat, cwd.mount, &last)?.ghost;
                job.only_remains(ghost).map_err(|e| e.of("working directory"))?;
                Place::Deleted(ghost)
            }
        };
        let elsewhere = (home != namespace).then_some(home);
        Ok(Fs { cwd, root, umask, namespace, elsewhere })
    }

    /// Goes to its mount namespace, as long as it has no other threads, and to a deleted working directory, as long as there
    /// is a descriptor for it.
    pub(crate) fn place(&self, made: &Made, program: &mut Program) {
        if let Some(namespace) = made.namespace(self.namespace).filter(|_| self.namespace > 0) {
            let args = [namespace.handle.into(), libc::CLONE_NEWNS.into()];
            program.call("go to a mount namespace", libc::SYS_setns, &args);
        }
        // Whoever is in the directory of a task that has ended is in it from birth.
        if let Place::Deleted(ghost) = self.cwd
            && let Some(fd) = made.ghost(ghost)
        {
            program.call("go to a deleted directory", libc::SYS_fchdir, &[fd.into()]);
        }
    }

    /// Goes to any other, then into its root: paths have been the container's until now. chroot(2) leaves the working
    /// directory where it is.
    pub(crate) fn finish(&self, made: &Made, program: &mut Program) {
        if let Place::Path(path) = &self.cwd {
            let there = self.elsewhere.and_then(|elsewhere| made.namespace(elsewhere));
            if let Some(there) = there {
                let what = "go to the root of another mount namespace";
                program.call(what, libc::SYS_fchdir, &[there.root.into()]);
            }
            let relative = [&b"."[..], path].concat();
            let name = program.put_cstr(if there.is_some() { &relative } else { path });
            program.call(format!("go to {path}"), libc::SYS_chdir, &[name.into()]);
        }
        if let Some(root) = &self.root {
            let name = program.put_cstr(root);
            program.call(format!("change the root to {root}"), libc::SYS_chroot, &[name.into()]);
        }
        program.call("set the umask", libc::SYS_umask, &[self.umask.into()]);
    }
}
