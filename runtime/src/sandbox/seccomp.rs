//! System call filters: `linux.seccomp` of config.json, compiled and loaded.
//!
//! A filter is compiled by the parent, before the sandbox exists, so that loading it is one system call: a profile may
//! deny everything but execve. It is loaded as late as the privileges allow, right before the exec, or, without
//! `process.noNewPrivileges`, before the capabilities go (loading then needs CAP_SYS_ADMIN).

mod asking;
mod bpf;
mod calls;
pub mod notify;

pub use asking::Asked;

use crate::error::{Error, Result};
use bpf::{Condition, Convention, Outcome, Range, Rule, Test};
use calls::{Abi, Entries};
use ckrun_virt::Failure;
use libc::sock_filter;
use nix::errno::Errno;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};
use std::os::fd::{FromRawFd, OwnedFd};

/// The longest program that the kernel takes (`BPF_MAXINSNS` of `linux/bpf_common.h`).
const LONGEST: usize = 4096;

/// The largest error number that the kernel returns from a filter (`MAX_ERRNO`).
const LARGEST_ERRNO: u32 = 4095;

/// A compiled filter.
#[derive(Debug, Clone)]
pub struct Filter {
    program: Vec<sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*`.
    flags: libc::c_ulong,
}

impl Filter {
    /// Compiles a profile.
    ///
    /// An unconditional rule for a call overrides the conditional ones for it, as in libseccomp; of these, the first
    /// that is met decides. Calls by a convention that is neither listed nor native kill. Calls newer than the newest
    /// one named in the profile fail with ENOSYS, as in runc, unless the default lets them through: the C library then
    /// falls back to an older call, which it would not do on EPERM.
    ///
    /// # Errors
    /// Names the field that can't be carried out, or that this kernel doesn't support.
    pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
        let default =
            value("linux.seccomp.defaultErrnoRet", profile.default_action(), profile.default_errno_ret())?;
        if profile.default_action() == Action::ScmpActNotify {
            return Err(refuse(
                "linux.seccomp.defaultAction",
                "SCMP_ACT_NOTIFY can't be the default: the filter could not be handed over",
            ));
        }
        let syscalls = profile.syscalls().as_deref().unwrap_or_default();
        check_available(profile, syscalls)?;

        let listed = profile.architectures().as_deref().unwrap_or_default();
        let mut tables: Vec<Table> = Vec::with_capacity(calls::FAMILY.len());
        for (i, abi) in calls::FAMILY.iter().enumerate() {
            if i == 0 || listed.contains(&abi.arch) {
                tables.push(Table { abi: *abi, highest: None, rules: Vec::new(), calls: Vec::new() });
            }
        }
        for (i, entry) in syscalls.iter().enumerate() {
            add_entry(&mut tables, i, entry, default)?;
        }

        let program = bpf::assemble(&conventions(tables, default), libc::SECCOMP_RET_KILL_THREAD);
        if program.len() > LONGEST {
            let why = format!("needs {} BPF instructions, the kernel takes {LONGEST}", program.len());
            return Err(refuse("linux.seccomp.syscalls", why));
        }
        Ok(Filter { program, flags: flags(profile)? })
    }

    /// Whether [`Filter::load`] returns a descriptor, on which a supervisor receives calls.
    pub fn notifies(&self) -> bool {
        self.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0
    }

    /// Puts the filter over this thread for good. It is one system call and nothing else: what comes after it is
    /// subject to the filter.
    ///
    /// # Errors
    /// `EACCES` without both no_new_privs and CAP_SYS_ADMIN; `EBUSY` when a filter with a listener is there already.
    pub fn load(&self) -> Result<Option<OwnedFd>, Failure> {
        let program =
            libc::sock_fprog { len: self.program.len() as u16, filter: self.program.as_ptr().cast_mut() };
        match seccomp(libc::SECCOMP_SET_MODE_FILTER, self.flags, &raw const program) {
            // SAFETY: with NEW_LISTENER the result is a new descriptor, which nobody else owns.
            Ok(fd) if self.notifies() => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
            Ok(_) => Ok(None),
            Err(errno) => Err(Failure::new("load the seccomp filter", errno)),
        }
    }
}

/// The flags that this kernel supports, by their names in a profile.
pub fn supported_flags() -> Vec<Flag> {
    let known = [
        Flag::SeccompFilterFlagTsync,
        Flag::SeccompFilterFlagSpecAllow,
        Flag::SeccompFilterFlagLog,
        Flag::SeccompFilterFlagWaitKillableRecv,
    ];
    known.into_iter().filter(|flag| supports(bits(*flag))).collect()
}

/// The rules for one calling convention.
struct Table {
    abi: Abi,
    /// The largest number that the profile names.
    highest: Option<u32>,
    rules: Vec<Rule>,
    /// The number of a call and the index of a rule for it; sorted, this is the order of the profile for each call.
    calls: Vec<(u32, usize)>,
}

impl Table {
    /// Adds alternative conditions for the calls `found`.
    fn add(&mut self, found: &[Entries], alternatives: &[&[Condition]], action: u32) {
        for conditions in alternatives {
            let rule = self.rules.len();
            self.rules.push(Rule { conditions: conditions.to_vec(), action });
            for entries in found {
                self.calls.extend(entries.own.map(|number| (number, rule)));
                if let Some((number, n)) = entries.shared {
                    self.calls.push((number, self.rules.len()));
                    self.rules.push(Rule { conditions: behind(n, conditions), action });
                }
            }
        }
    }

    /// Appends what becomes of each number, in order, with `unknown` for those above the highest.
    fn append_to(mut self, ranges: &mut Vec<Range>, default: u32, unknown: u32) {
        let wide = self.abi.wide;
        let mut push = |first, outcome| {
            if ranges.last().is_none_or(|last| last.outcome != outcome || last.wide != wide) {
                ranges.push(Range { first, wide, outcome });
            }
        };
        let mut next = if self.abi.arch == Arch::ScmpArchX32 { calls::X32_BIT } else { 0 };
        self.calls.sort_unstable();
        for same in self.calls.chunk_by(|a, b| a.0 == b.0) {
            let number = same[0].0;
            let rules = same.iter().map(|(_, rule)| &self.rules[*rule]);
            if number > next {
                push(next, Outcome::Always(default));
            }
            let outcome = match rules.clone().find(|rule| rule.conditions.is_empty()) {
                Some(rule) => Outcome::Always(rule.action),
                None => Outcome::FirstOf(rules.cloned().collect(), default),
            };
            push(number, outcome);
            next = number + 1;
        }
        match self.highest {
            None => push(next, Outcome::Always(default)),
            Some(highest) => {
                if next <= highest {
                    push(next, Outcome::Always(default));
                }
                push(next.max(highest + 1), Outcome::Always(unknown));
            }
        }
    }
}

/// The conditions on the n-th call behind socketcall or ipc. Its own arguments are in memory, out of a filter's sight;
/// libseccomp replaces a condition on the first and leaves the others, and so does this.
fn behind(n: u64, conditions: &[Condition]) -> Vec<Condition> {
    let which = Condition { argument: 0, test: Test::Equal, negated: false, mask: u64::MAX, value: n };
    let others = conditions.iter().filter(|c| c.argument != 0).copied();
    [which].into_iter().chain(others).collect()
}

fn conventions(tables: Vec<Table>, default: u32) -> Vec<Convention> {
    let lets_through = [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG, libc::SECCOMP_RET_TRACE];
    let unknown = if lets_through.contains(&(default & libc::SECCOMP_RET_ACTION_FULL)) {
        default
    } else {
        libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32
    };
    let with_x32 = tables.iter().any(|table| table.abi.arch == Arch::ScmpArchX32);

    let mut conventions: Vec<Convention> = Vec::with_capacity(tables.len());
    for table in tables {
        let arch = table.abi.arch;
        match conventions.last_mut() {
            // x32 shares the architecture of x86_64, which is always the one before it.
            Some(native) if arch == Arch::ScmpArchX32 => {
                table.append_to(&mut native.ranges, default, unknown);
                continue;
            }
            _ => conventions.push(Convention { audit_arch: arch as u32, ranges: Vec::new() }),
        }
        if let Some(convention) = conventions.last_mut() {
            table.append_to(&mut convention.ranges, default, unknown);
            if arch == Arch::ScmpArchX86_64 && !with_x32 {
                let kill = Outcome::Always(libc::SECCOMP_RET_KILL_THREAD);
                convention.ranges.push(Range { first: calls::X32_BIT, wide: true, outcome: kill });
                // -1 is how a tracer skips a call (seccomp(2)).
                convention.ranges.push(Range {
                    first: u32::MAX,
                    wide: true,
                    outcome: Outcome::Always(default),
                });
            }
        }
    }
    conventions
}

/// Adds the rules of `linux.seccomp.syscalls[i]`.
fn add_entry(tables: &mut [Table], i: usize, entry: &LinuxSyscall, default: u32) -> Result<()> {
    let field = |rest: &str| format!("linux.seccomp.syscalls[{i}].{rest}");
    let action = value(&field("errnoRet"), entry.action(), entry.errno_ret())?;
    let args = entry.args().as_deref().unwrap_or_default();
    let mut conditions = Vec::with_capacity(args.len());
    for (j, arg) in args.iter().enumerate() {
        conditions.push(condition(arg).map_err(|why| refuse(field(&format!("args[{j}].index")), why))?);
    }
    // Several conditions on one argument: each alone is enough. So it was in runc before it learned to combine
    // conditions, and profiles rely on it.
    let repeated = |c: &Condition| conditions.iter().filter(|other| other.argument == c.argument).count() > 1;
    let alternatives: Vec<&[Condition]> =
        if conditions.iter().any(repeated) { conditions.chunks(1).collect() } else { vec![&conditions] };

    if entry.action() == Action::ScmpActNotify && entry.names().iter().any(|name| name == "write") {
        let why = "SCMP_ACT_NOTIFY can't be used for write: the filter could not be handed over";
        return Err(refuse(field("action"), why));
    }
    let mut found = Vec::with_capacity(entry.names().len());
    for table in tables {
        found.clear();
        found.extend(entry.names().iter().filter_map(|name| calls::find(table.abi, name)));
        table.highest = found.iter().map(|entries| entries.own).max().flatten().max(table.highest);
        // A rule that says what the default says would only hide a later one.
        if action != default {
            table.add(&found, &alternatives, action);
        }
    }
    if found.len() < entry.names().len() {
        let unknown = entry.names().iter().filter(|name| calls::find(calls::FAMILY[0], name).is_none());
        log::debug!("{}: unknown and skipped: {:?}", field("names"), unknown.collect::<Vec<_>>());
    }
    Ok(())
}

fn condition(arg: &LinuxSeccompArg) -> Result<Condition, String> {
    let argument = match arg.index() {
        index @ 0..=5 => index as u32,
        index => return Err(format!("is {index}; a system call has arguments 0 to 5")),
    };
    let plain = |test, negated| Condition { argument, test, negated, mask: u64::MAX, value: arg.value() };
    Ok(match arg.op() {
        Operator::ScmpCmpEq => plain(Test::Equal, false),
        Operator::ScmpCmpNe => plain(Test::Equal, true),
        Operator::ScmpCmpGt => plain(Test::Greater, false),
        Operator::ScmpCmpLe => plain(Test::Greater, true),
        Operator::ScmpCmpGe => plain(Test::GreaterOrEqual, false),
        Operator::ScmpCmpLt => plain(Test::GreaterOrEqual, true),
        Operator::ScmpCmpMaskedEq => {
            let mask = arg.value();
            let value = arg.value_two().unwrap_or(0) & mask;
            Condition { argument, test: Test::Equal, negated: false, mask, value }
        }
    })
}

/// An action as BPF returns it.
fn value(field: &str, action: Action, errno: Option<u32>) -> Result<u32> {
    let (bits, largest) = match action {
        Action::ScmpActErrno => (libc::SECCOMP_RET_ERRNO, LARGEST_ERRNO),
        Action::ScmpActTrace => (libc::SECCOMP_RET_TRACE, libc::SECCOMP_RET_DATA),
        _ => {
            let bits = plain_action(action);
            return match errno {
                None => Ok(bits),
                Some(_) => Err(refuse(field, format!("{action} returns no error number"))),
            };
        }
    };
    match errno.unwrap_or(libc::EPERM as u32) {
        number if number <= largest => Ok(bits | number),
        number => Err(refuse(field, format!("{number} is above {largest}"))),
    }
}

fn plain_action(action: Action) -> u32 {
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        Action::ScmpActErrno => libc::SECCOMP_RET_ERRNO,
        Action::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
        Action::ScmpActTrace => libc::SECCOMP_RET_TRACE,
        Action::ScmpActLog => libc::SECCOMP_RET_LOG,
        Action::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
    }
}

/// Asks the kernel for the actions that are younger than filters themselves.
fn check_available(profile: &LinuxSeccomp, syscalls: &[LinuxSyscall]) -> Result<()> {
    let mut asked = [Action::ScmpActAllow, Action::ScmpActErrno, Action::ScmpActTrap].to_vec();
    let actions = syscalls.iter().enumerate().map(|(i, entry)| (Some(i), entry.action()));
    for (i, action) in [(None, profile.default_action())].into_iter().chain(actions) {
        if asked.contains(&action) {
            continue;
        }
        asked.push(action);
        let bits = plain_action(action);
        if seccomp(libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const bits).is_err() {
            let field = match i {
                None => "linux.seccomp.defaultAction".to_owned(),
                Some(i) => format!("linux.seccomp.syscalls[{i}].action"),
            };
            return Err(refuse(field, format!("this kernel does not support {action}")));
        }
    }
    let notifies = asked.contains(&Action::ScmpActNotify);
    if notifies && profile.listener_path().as_ref().is_none_or(|path| path.as_os_str().is_empty()) {
        let why = "is missing: SCMP_ACT_NOTIFY needs somebody to notify";
        return Err(refuse("linux.seccomp.listenerPath", why));
    }
    Ok(())
}

/// The filter of this profile has a listener.
pub fn notifies(profile: &LinuxSeccomp) -> bool {
    profile.syscalls().iter().flatten().any(|entry| entry.action() == Action::ScmpActNotify)
}

/// The flags to load with.
fn flags(profile: &LinuxSeccomp) -> Result<libc::c_ulong> {
    let notifies = notifies(profile);
    let mut all = if notifies { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    for (i, flag) in profile.flags().iter().flatten().enumerate() {
        if !supports(bits(*flag)) {
            let why = format!("this kernel does not support {flag}");
            return Err(refuse(format!("linux.seccomp.flags[{i}]"), why));
        }
        all |= match flag {
            // There is one thread, and the kernel refuses the flag together with a listener.
            Flag::SeccompFilterFlagTsync => 0,
            // About waiting for the listener's answer: the kernel refuses it without one.
            Flag::SeccompFilterFlagWaitKillableRecv if !notifies => 0,
            other => bits(*other),
        };
    }
    Ok(all)
}

fn bits(flag: Flag) -> libc::c_ulong {
    match flag {
        Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        Flag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        Flag::SeccompFilterFlagWaitKillableRecv => libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    }
}

/// The kernel checks the flags before it reads the program: without one, EFAULT means that it knows them.
fn supports(bits: libc::c_ulong) -> bool {
    let listener = match bits {
        libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV => libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
        _ => 0,
    };
    let nothing = std::ptr::null::<libc::sock_fprog>();
    seccomp(libc::SECCOMP_SET_MODE_FILTER, bits | listener, nothing) == Err(Errno::EFAULT)
}

fn seccomp<T>(operation: libc::c_uint, flags: libc::c_ulong, argument: *const T) -> Result<i32, Errno> {
    // SAFETY: the callers pass what the operation reads: a program that outlives the call, an action, or null.
    Errno::result(unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, argument) }).map(|fd| fd as i32)
}

fn refuse(field: impl Into<String>, why: impl Into<String>) -> Error {
    Error::config(field, why)
}

#[cfg(test)]
mod tests;
