//! Credentials: ids, groups, capabilities, and what goes with them.
//!
//! Per thread. [`Creds`] is restored in each thread as the last act but the seccomp filter's (which it must not meet:
//! install the filters before it, with `PTRACE_O_SUSPEND_SECCOMP`), because everything else needs privileges.
//! [`Dumpable`] belongs to the memory of a process: any change of credentials resets it, so it is restored in the leader
//! when all threads have theirs.
//!
//! Not carried: keyrings (a restarted job has that of the container's first process), and the label of a security module,
//! which is recorded for the sandbox to apply.

use crate::capabilities::{Capabilities, drop_from_bounding, name};
use crate::hex::Hex;
use crate::image::Bytes;
use crate::program::{Answers, Arg, Call, Place, Program};
use crate::resource::{Resource, Stopped};
use crate::{Doing, Failure, proc};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// `linux/securebits.h`: a change of user ids does not touch capabilities.
const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
/// More groups than most tasks have; who has more is asked in another way.
const GROUPS: usize = 64;

/// The credentials of a thread. Ids are those of its user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Creds {
    /// User ids.
    pub uids: Ids,
    /// Group ids.
    pub gids: Ids,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The five sets.
    pub capabilities: Capabilities,
    /// `SECBIT_*`, KEEP_CAPS included.
    pub securebits: Hex,
    /// execve grants nothing.
    pub no_new_privs: bool,
    /// The signal sent when the thread that made this one's process ends; 0 for none. The kernel forgets it when
    /// credentials change.
    pub parent_death_signal: i32,
    /// The label given by a security module (SELinux, AppArmor, Smack), known of leaders. It is for the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Bytes>,
}

/// Four ids of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ids {
    /// Who it is.
    pub real: u32,
    /// As whom it acts.
    pub effective: u32,
    /// Whom it may become again.
    pub saved: u32,
    /// As whom it opens files.
    pub fs: u32,
}

/// Where the answers are.
#[derive(Debug)]
pub struct Asked {
    uids: Place,
    gids: Place,
    fs_uid: Call,
    fs_gid: Call,
    groups: Place,
    group_count: Call,
    securebits: Call,
    parent_death_signal: Place,
}

impl Resource for Creds {
    type Asked = Asked;

    fn ask(program: &mut Program) -> Asked {
        // Three numbers, 16 bytes apart so that each is aligned whatever the kernel's width of an id.
        let three = |program: &mut Program, what: &'static str, nr| {
            let place = program.room(12);
            program.call(what, nr, &[place.at(0), place.at(4), place.at(8)]);
            place
        };
        let uids = three(program, "get the user ids", libc::SYS_getresuid);
        let gids = three(program, "get the group ids", libc::SYS_getresgid);
        // An invalid id changes nothing, and the answer is the old one: there is no other way to ask.
        let fs_uid = program.call("get the file system user id", libc::SYS_setfsuid, &[u32::MAX.into()]);
        let fs_gid = program.call("get the file system group id", libc::SYS_setfsgid, &[u32::MAX.into()]);
        let groups = program.room(GROUPS * size_of::<u32>());
        let group_count =
            program.attempt("get the groups", libc::SYS_getgroups, &[GROUPS.into(), groups.into()]);
        let securebits =
            program.call("get the securebits", libc::SYS_prctl, &[libc::PR_GET_SECUREBITS.into()]);
        let parent_death_signal = program.room(4);
        let args = [libc::PR_GET_PDEATHSIG.into(), parent_death_signal.into()];
        program.call("get the parent-death signal", libc::SYS_prctl, &args);
        Asked { uids, gids, fs_uid, fs_gid, groups, group_count, securebits, parent_death_signal }
    }

    fn capture(task: &Stopped, asked: &Asked, answers: &Answers) -> Result<Self, Failure> {
        let status = &task.status;
        let ids = |place, fs| Ids {
            real: answers.u32(place, 0),
            effective: answers.u32(place, 4),
            saved: answers.u32(place, 8),
            fs,
        };
        let id = |call, what: &'static str| number(answers, call).doing(|| what);
        let groups = match answers.of(asked.group_count) {
            Ok(count) => (0..count as usize).map(|k| answers.u32(asked.groups, k * 4)).collect(),
            Err(_) => groups_by_map(task)?,
        };
        Ok(Creds {
            uids: ids(asked.uids, id(asked.fs_uid, "get the file system user id")?),
            gids: ids(asked.gids, id(asked.fs_gid, "get the file system group id")?),
            groups,
            capabilities: Capabilities {
                inheritable: Hex(status.cap_inh),
                permitted: Hex(status.cap_prm),
                effective: Hex(status.cap_eff),
                bounding: Hex(status.cap_bnd),
                ambient: Hex(status.cap_amb),
            },
            securebits: Hex(id(asked.securebits, "get the securebits")?.into()),
            no_new_privs: status.no_new_privs,
            parent_death_signal: answers.u32(asked.parent_death_signal, 0).cast_signed(),
            label: if task.tid == task.pid { label(task) } else { None },
        })
    }

    fn restore(&self, program: &mut Program) {
        self.restore_over(None, program);
    }
}

impl Creds {
    /// Checks what an image says: its ids are ids.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        let ids = [self.uids, self.gids].map(|ids| [ids.real, ids.effective, ids.saved, ids.fs]).concat();
        // For the kernel this number says "as it is": the thread would stay root.
        let none = ids.iter().chain(&self.groups).any(|&id| id == u32::MAX);
        if none { Err(format!("{} is not an id", u32::MAX)) } else { Ok(()) }
    }

    /// The capabilities, by name, that a first process whose bounding set is `held` can't give this thread.
    pub fn missing(&self, held: u64) -> Vec<String> {
        Hex(self.capabilities.all().0 & !held).bits().map(name).collect()
    }

    /// Takes out of the bounding set of `task`, from which all other tasks of a job are to be made, what none of these will
    /// have.
    pub fn limit<'a>(wanted: impl Iterator<Item = &'a Creds>, task: &mut Stopped, program: &mut Program) {
        let wanted = wanted.fold(0, |all, creds| all | creds.capabilities.all().0);
        drop_from_bounding(Hex(task.status.cap_bnd & !wanted), program);
        task.status.cap_bnd &= wanted;
    }

    /// As [`Resource::restore`], for a task that is known to have the credentials `born`.
    pub fn restore_over(&self, born: Option<&Creds>, program: &mut Program) {
        let prctl = |program: &mut Program, what: &'static str, args: &[Arg]| {
            program.call(what, libc::SYS_prctl, args);
        };
        let sets = &self.capabilities;
        let ids = |creds: &Creds| (creds.uids, creds.gids, creds.groups.clone());
        let bits =
            |creds: &Creds| (creds.capabilities.bounding, creds.capabilities.ambient, creds.securebits);
        let another = born.is_none_or(|born| ids(born) != ids(self) || bits(born) != bits(self));
        if another {
            // From here on ids and capabilities do not influence each other.
            let args = [libc::PR_SET_SECUREBITS.into(), SECBIT_NO_SETUID_FIXUP.into()];
            prctl(program, "separate ids from capabilities", &args);
            self.restore_ids(program);
            sets.shrink(born.map_or(Hex(u64::MAX), |born| born.capabilities.bounding), program);
            sets.set_ambient(program);
            // They may forbid to raise ambient capabilities, so they come after. They take CAP_SETPCAP.
            prctl(program, "set the securebits", &[libc::PR_SET_SECUREBITS.into(), self.securebits.0.into()]);
        }
        if another || born.is_none_or(|born| born.capabilities != *sets) {
            sets.set(program);
        }
        if self.no_new_privs {
            let args = [libc::PR_SET_NO_NEW_PRIVS.into(), 1.into(), 0.into(), 0.into(), 0.into()];
            prctl(program, "set no_new_privs", &args);
        }
        // Whoever is made by another is born without; the first one has what it was seen to have.
        if self.parent_death_signal != 0 || born.is_none_or(|born| born.parent_death_signal != 0) {
            let args = [libc::PR_SET_PDEATHSIG.into(), self.parent_death_signal.into()];
            prctl(program, "set the parent-death signal", &args);
        }
    }

    fn restore_ids(&self, program: &mut Program) {
        let list: Vec<u8> = self.groups.iter().flat_map(|gid| gid.to_ne_bytes()).collect();
        let place = program.put(&list);
        program.call("set the groups", libc::SYS_setgroups, &[self.groups.len().into(), place.into()]);
        let three = |ids: &Ids| [ids.real.into(), ids.effective.into(), ids.saved.into()];
        program.call("set the group ids", libc::SYS_setresgid, &three(&self.gids));
        program.call("set the file system group id", libc::SYS_setfsgid, &[self.gids.fs.into()]);
        program.call("set the user ids", libc::SYS_setresuid, &three(&self.uids));
        program.call("set the file system user id", libc::SYS_setfsuid, &[self.uids.fs.into()]);
    }
}

fn number(answers: &Answers, call: Call) -> Result<u32, nix::errno::Errno> {
    answers.of(call)?.try_into().map_err(|_| nix::errno::Errno::ERANGE)
}

/// The label as a security module shows it. Without such a module the kernel gives an error for every task.
fn label(task: &Stopped) -> Option<Bytes> {
    static NONE: LazyLock<bool> = LazyLock::new(|| {
        let own = proc::read("/proc/thread-self/attr/current");
        own.is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL))
    });
    if *NONE {
        return None;
    }
    let label = task.read("attr/current").ok()?;
    let label = label.trim_ascii_end().trim_suffix_nul();
    (!label.is_empty()).then(|| label.into())
}

/// SELinux ends its label by a NUL.
trait TrimNul {
    fn trim_suffix_nul(&self) -> &[u8];
}

impl TrimNul for [u8] {
    fn trim_suffix_nul(&self) -> &[u8] {
        self.strip_suffix(b"\0").unwrap_or(self)
    }
}

/// `status` shows all groups, but with the numbers that ckrun's user namespace has for them.
fn groups_by_map(task: &Stopped) -> Result<Vec<u32>, Failure> {
    let map = task.read("gid_map")?;
    let inside = |gid: &u32| translate(&map, *gid).ok_or(nix::errno::Errno::ERANGE);
    let groups: Result<Vec<u32>, _> = task.status.groups.iter().map(inside).collect();
    groups.doing(|| "translate the groups into the user namespace")
}

/// The id inside for the id `outside`, by the lines `INSIDE OUTSIDE COUNT` of user_namespaces(7).
pub(crate) fn translate(map: &[u8], outside: u32) -> Option<u32> {
    std::str::from_utf8(map).ok()?.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (first, start, count) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
        let distance = outside.checked_sub(start)?;
        if distance < count { first.checked_add(distance) } else { None }
    })
}

/// Whether others may look at and dump a process (`PR_SET_DUMPABLE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dumpable {
    /// Nobody.
    No,
    /// Whoever has its credentials.
    Yes,
    /// Root alone. Only the kernel itself sets this (`/proc/sys/fs/suid_dumpable` is 2), so a restart makes it
    /// [`Dumpable::No`].
    Root,
}

impl Resource for Dumpable {
    type Asked = Call;

    fn ask(program: &mut Program) -> Call {
        program.call("ask whether it is dumpable", libc::SYS_prctl, &[libc::PR_GET_DUMPABLE.into()])
    }

    fn capture(_: &Stopped, asked: &Call, answers: &Answers) -> Result<Self, Failure> {
        Ok(match answers.of(*asked).doing(|| "ask whether it is dumpable")? {
            0 => Dumpable::No,
            1 => Dumpable::Yes,
            _ => Dumpable::Root,
        })
    }

    fn restore(&self, program: &mut Program) {
        let value = u64::from(*self == Dumpable::Yes);
        let args = [libc::PR_SET_DUMPABLE.into(), value.into()];
        program.call("set whether it is dumpable", libc::SYS_prctl, &args);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_are_translated_by_the_map() {
        let map = b"         0     100000       1000\n      5000     200000         10\n";
        assert_eq!(translate(map, 100_000), Some(0));
        assert_eq!(translate(map, 100_999), Some(999));
        assert_eq!(translate(map, 101_000), None);
        assert_eq!(translate(map, 200_009), Some(5009));
        assert_eq!((translate(map, 0), translate(b"", 0), translate(b"x y z\n", 0)), (None, None, None));
        assert_eq!(translate(b"0 0 4294967295\n", u32::MAX - 1), Some(u32::MAX - 1));
    }

    proptest! {
        #[test]
        fn nothing_makes_the_map_panic(bytes: Vec<u8>, lines in "([0-9]{1,11} ){0,4}\n?", id: u32) {
            let _ = (translate(&bytes, id), translate(lines.as_bytes(), id));
        }

        #[test]
        fn credentials_are_read_as_they_were_written(
            (uids, gids, groups) in any::<([u32; 4], [u32; 4], Vec<u32>)>(),
            (sets, securebits, signal) in any::<([u64; 5], u64, i32)>(),
            (no_new_privs, label) in any::<(bool, Option<Vec<u8>>)>(),
        ) {
            let ids = |[real, effective, saved, fs]: [u32; 4]| Ids { real, effective, saved, fs };
            let [inheritable, permitted, effective, bounding, ambient] = sets.map(Hex);
            let creds = Creds {
                uids: ids(uids),
                gids: ids(gids),
                groups,
                capabilities: Capabilities { inheritable, permitted, effective, bounding, ambient },
                securebits: Hex(securebits),
                no_new_privs,
                parent_death_signal: signal,
                label: label.map(Bytes::from),
            };
            let json = serde_json::to_string(&creds).unwrap();
            prop_assert_eq!(serde_json::from_str::<Creds>(&json).unwrap(), creds);
        }
    }
}
