//! Processes in whose name sockets are connected and messages are sent.
//!
//! The kernel notes who calls socketpair(2), connect(2), listen(2) and sendmsg(2), and tells the other side (SO_PEERCRED,
//! SCM_CREDENTIALS). At a restart all that happens before the processes of the job are there. So another process stands in
//! for each: it has the same id, shares the descriptors of the first process (CLONE_FILES), and ends before the one for
//! which it stood is made.

use super::Credentials;
use crate::endings;
use crate::fd::making::Making;
use crate::nursery;
use crate::program::Program;
use crate::worker::Worker;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// `linux/securebits.h`: a change of user ids does not touch capabilities.
const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
/// `kernel.overflowuid`: whom a user namespace does not know.
const NOBODY: u32 = 65534;

/// The processes, by their ids in the job.
#[derive(Debug, Default)]
pub(super) struct Agents(BTreeMap<i32, Worker>);

impl Agents {
    /// Has `work` done by the process that `who` names. What `making` has gathered is done first.
    pub fn act(
        &mut self,
        making: &mut Making<'_>,
        who: Option<&Credentials>,
        work: impl FnOnce(&mut Program),
    ) -> Result<(), Failure> {
        let Some(who) = who.filter(|who| !is_first(who)) else {
            work(&mut making.program);
            return making.run_if_large();
        };
        making.run()?;
        let mut program = Program::new();
        pose(who, &mut program);
        work(&mut program);
        unpose(&mut program);
        if who.pid > 1 {
            self.find(making, who.pid)?.run(&program).map(drop)
        } else {
            making.worker.run(&program).map(drop)
        }
    }

    /// The number of process `pid` in ckrun's pid namespace.
    pub fn host(&mut self, making: &mut Making<'_>, pid: i32) -> Result<Pid, Failure> {
        if pid > 1 { self.find(making, pid).map(|worker| worker.host()) } else { Ok(making.worker.host()) }
    }

    fn find(&mut self, making: &mut Making<'_>, pid: i32) -> Result<&mut Worker, Failure> {
        match self.0.entry(pid) {
            Entry::Occupied(there) => Ok(there.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(nursery::beget_agent(making.worker, pid)?)),
        }
    }

    /// Ends them.
    pub fn dismiss(self, making: &mut Making<'_>) -> Result<(), Failure> {
        for (pid, worker) in self.0 {
            endings::end(worker, 0)?;
            endings::reap(making.worker, pid)?;
        }
        Ok(())
    }
}

/// The first process as it is while descriptions are made.
fn is_first(who: &Credentials) -> bool {
    who.pid <= 1 && (who.uid, who.gid) == (0, 0) && who.groups.is_empty()
}

/// Takes on users and groups, and keeps all capabilities. The real and the saved ids stay root's, so that the way back is
/// open.
fn pose(who: &Credentials, program: &mut Program) {
    let known = |id: u32| if id == u32::MAX { NOBODY } else { id };
    let bits = [libc::PR_SET_SECUREBITS.into(), SECBIT_NO_SETUID_FIXUP.into()];
    program.call("keep the capabilities", libc::SYS_prctl, &bits);
    let groups: Vec<u8> = who.groups.iter().flat_map(|&group| known(group).to_ne_bytes()).collect();
    let list = program.put(&groups);
    program.call("change the groups", libc::SYS_setgroups, &[who.groups.len().into(), list.into()]);
    let gid = [(-1).into(), known(who.gid).into(), (-1).into()];
    program.call("change the group", libc::SYS_setresgid, &gid);
    let uid = [(-1).into(), known(who.uid).into(), (-1).into()];
    program.call("change the user", libc::SYS_setresuid, &uid);
}

fn unpose(program: &mut Program) {
    program.call("change the user", libc::SYS_setresuid, &[(-1).into(), 0.into(), (-1).into()]);
    program.call("change the group", libc::SYS_setresgid, &[(-1).into(), 0.into(), (-1).into()]);
    program.call("change the groups", libc::SYS_setgroups, &[0.into(), 0.into()]);
    program.call("reset the securebits", libc::SYS_prctl, &[libc::PR_SET_SECUREBITS.into(), 0.into()]);
}

/// The id that ckrun's user namespace has for `inside`, by the map `map` of process `host`; [`NOBODY`] for none.
pub(super) fn outward(host: Pid, map: &str, inside: u32) -> Result<u32, Failure> {
    let path = format!("/proc/{host}/{map}");
    let text = crate::proc::read(&path).doing(|| format!("read {path}"))?;
    let found = String::from_utf8_lossy(&text).lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (first, start, count) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
        let distance = inside.checked_sub(first).filter(|&distance| distance < count)?;
        start.checked_add(distance)
    });
    Ok(found.unwrap_or(NOBODY))
}
