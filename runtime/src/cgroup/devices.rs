//! Device rules: which device nodes the container may open and make.
//!
//! The meaning is the same on both generations: nothing is allowed at first, the rules come in their order, and for
//! each kind of access (read, write, mknod) the last rule that matches decides. On cgroup2 a program is compiled from
//! the rules (see [`super::bpf`]). v1's kernel knows only a default and exceptions to it, all of one kind; what can't
//! be said so is an error.

use super::io::{self, Io};
use super::{Cgroups, bpf, refuse};
use crate::error::Result;
use ckrun_virt::Doing;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};
use rustix::fs::OFlags;
use std::fmt;
use std::path::Path;

/// The kinds of access, as bits: `BPF_DEVCG_ACC_*` of `linux/bpf.h`.
pub(super) const MKNOD: u8 = 1;
pub(super) const READ: u8 = 2;
pub(super) const WRITE: u8 = 4;
pub(super) const ALL: u8 = MKNOD | READ | WRITE;

/// The kinds of device node that a rule can speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Block,
    Char,
}

/// A set of devices of one kind and of accesses to them; None is every number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Devices {
    pub(super) kind: Kind,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) access: u8,
}

/// One rule, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Every access to every device.
    Everything {
        allow: bool,
    },
    Some {
        allow: bool,
        devices: Devices,
    },
}

/// What every container may do, whatever its configuration says: make nodes, and use the harmless devices that the
/// runtime-spec promises. Callers append these rules to those of the configuration.
pub fn default_device_rules() -> Vec<LinuxDeviceCgroup> {
    use LinuxDeviceType::{B, C};
    let rules = [
        (C, None, None, "m"),
        (B, None, None, "m"),
        (C, Some(1), Some(3), "rwm"),    // null
        (C, Some(1), Some(5), "rwm"),    // zero
        (C, Some(1), Some(7), "rwm"),    // full
        (C, Some(1), Some(8), "rwm"),    // random
        (C, Some(1), Some(9), "rwm"),    // urandom
        (C, Some(5), Some(0), "rwm"),    // tty
        (C, Some(5), Some(1), "rwm"),    // console
        (C, Some(5), Some(2), "rwm"),    // ptmx
        (C, Some(136), None, "rwm"),     // pts/*
        (C, Some(10), Some(200), "rwm"), // net/tun: the network namespace guards it, and VPNs in containers rely on it
    ];
    let rule = |(kind, major, minor, access): (_, Option<i64>, Option<i64>, &str)| {
        let mut builder = LinuxDeviceCgroupBuilder::default().allow(true).typ(kind).access(access);
        if let Some(major) = major {
            builder = builder.major(major);
        }
        if let Some(minor) = minor {
            builder = builder.minor(minor);
        }
        builder.build().ok()
    };
    rules.into_iter().filter_map(rule).collect()
}

impl Cgroups {
    /// Makes `rules` the device rules, in place of those before. The caller passes the complete list; nothing is
    /// allowed that no rule allows.
    ///
    /// # Errors
    /// [`crate::error::Error::Config`] for a rule that makes no sense or that cgroup v1 can't express;
    /// `EPERM` when the cgroup above doesn't allow a device itself. Rootless ckrun may not set device rules and does
    /// not need them: a user who is not root can't make or open other device nodes than before.
    pub fn apply_devices(&self, rules: &[LinuxDeviceCgroup]) -> Result<()> {
        let checked: Vec<Rule> =
            rules.iter().enumerate().map(|(n, rule)| check(n, rule)).collect::<Result<Vec<_>>>()?.concat();
        if self.rootless {
            return Ok(());
        }
        if let Some(dir) = self.v1("devices") {
            let target = Exceptions::of(&checked)?;
            apply_v1(&dir.path, &target).doing(|| format!("set device rules in {}", dir.path.display()))?;
            return Ok(());
        }
        match self.v2() {
            Some(dir) => bpf::apply(&dir.path, &checked),
            None if rules.is_empty() => Ok(()),
            None => Err(refuse("devices", "the container has no cgroup that could guard devices")),
        }
    }
}

/// Checks one rule of the configuration. A rule for all kinds that is not about everything is two rules.
fn check(index: usize, rule: &LinuxDeviceCgroup) -> Result<Vec<Rule>> {
    let field = |name: &str| format!("devices[{index}].{name}");
    let number = |name: &str, value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(n) => {
            u32::try_from(n).map(Some).map_err(|_| refuse(&field(name), format!("{n} is no device number")))
        }
    };
    let (major, minor) = (number("major", rule.major())?, number("minor", rule.minor())?);
    let allow = rule.allow();
    let access = match rule.access().as_deref().unwrap_or_default() {
        "" if allow => return Err(refuse(&field("access"), "is missing: say what is allowed (r, w, m)")),
        "" => ALL,
        letters => letters.chars().try_fold(0, |bits, letter| match letter {
            'r' => Ok(bits | READ),
            'w' => Ok(bits | WRITE),
            'm' => Ok(bits | MKNOD),
            _ => Err(refuse(&field("access"), format!("{letters:?} is not made of r, w and m"))),
        })?,
    };
    let some = |kind| Rule::Some { allow, devices: Devices { kind, major, minor, access } };
    Ok(match rule.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A if major.is_none() && minor.is_none() && access == ALL => {
            vec![Rule::Everything { allow }]
        }
        LinuxDeviceType::A => vec![some(Kind::Char), some(Kind::Block)],
        LinuxDeviceType::B => vec![some(Kind::Block)],
        LinuxDeviceType::C | LinuxDeviceType::U => vec![some(Kind::Char)],
        LinuxDeviceType::P => return Err(refuse(&field("type"), "a pipe is no device")),
    })
}

impl Devices {
    /// Whether every device of `other` is one of these.
    fn covers(&self, other: &Devices) -> bool {
        let covers = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
        self.kind == other.kind && covers(self.major, other.major) && covers(self.minor, other.minor)
    }

    /// Whether some device is in both.
    fn meets(&self, other: &Devices) -> bool {
        let meets = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && meets(self.major, other.major) && meets(self.minor, other.minor)
    }
}

/// v1's way to say it: `c 1:3 rwm`.
impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.kind == Kind::Char { "c " } else { "b " })?;
        for (number, end) in [(self.major, ":"), (self.minor, " ")] {
            match number {
                Some(n) => write!(f, "{n}{end}")?,
                None => write!(f, "*{end}")?,
            }
        }
        let letters = [(READ, "r"), (WRITE, "w"), (MKNOD, "m")];
        letters.into_iter().filter(|(bit, _)| self.access & bit != 0).try_for_each(|(_, l)| f.write_str(l))
    }
}

/// v1's model: a default, and exceptions to it, in the order in which they were made.
#[derive(Debug, PartialEq, Eq)]
struct Exceptions {
    allow: bool,
    list: Vec<Devices>,
}

impl Exceptions {
    /// What `rules`, starting with nothing allowed, amount to.
    fn of(rules: &[Rule]) -> Result<Self> {
        let mut state = Exceptions { allow: false, list: Vec::new() };
        for rule in rules {
            match *rule {
                Rule::Everything { allow } => state = Exceptions { allow, list: Vec::new() },
                Rule::Some { allow, devices } if allow != state.allow => state.except(devices),
                Rule::Some { allow, devices } => state.take_back(allow, &devices)?,
            }
        }
        Ok(state)
    }

    /// Adds an exception as the kernel does: to the one for the same numbers, if there is one.
    fn except(&mut self, devices: Devices) {
        let same =
            |e: &&mut Devices| (e.kind, e.major, e.minor) == (devices.kind, devices.major, devices.minor);
        match self.list.iter_mut().find(same) {
            Some(exception) => exception.access |= devices.access,
            None => self.list.push(devices),
        }
    }

    /// A rule on the side of the default takes exceptions back, but the kernel can only take back what was given.
    fn take_back(&mut self, allow: bool, devices: &Devices) -> Result<()> {
        for exception in self.list.iter_mut().filter(|e| e.access & devices.access != 0) {
            if devices.covers(exception) {
                exception.access &= !devices.access;
            } else if devices.meets(exception) {
                let verb = if allow { "allow" } else { "deny" };
                let why = format!(
                    "cgroup v1 can't {verb} \"{devices}\" after a rule for the wider \"{exception}\""
                );
                return Err(refuse("devices", why));
            }
        }
        self.list.retain(|exception| exception.access != 0);
        Ok(())
    }

    /// What `devices.list` shows. A default that allows shows no exceptions, so those are not known.
    fn parse(text: &str) -> Option<Self> {
        let mut state = Exceptions { allow: false, list: Vec::new() };
        for line in text.lines() {
            let (kind, rest) = line.split_once(' ')?;
            let kind = match kind {
                "a" => return Some(Exceptions { allow: true, list: Vec::new() }),
                "b" => Kind::Block,
                _ => Kind::Char,
            };
            let (numbers, letters) = rest.split_once(' ')?;
            let (major, minor) = numbers.split_once(':')?;
            let bit = |letter, bit| if letters.contains(letter) { bit } else { 0 };
            let access = bit('r', READ) | bit('w', WRITE) | bit('m', MKNOD);
            state.list.push(Devices { kind, major: major.parse().ok(), minor: minor.parse().ok(), access });
        }
        Some(state)
    }
}

/// Goes from the rules in force to `target`, touching only the difference: a running container must not lose a device
/// for a moment that it keeps.
fn apply_v1(directory: &Path, target: &Exceptions) -> Io<()> {
    let (allow, deny) = ("devices.allow", "devices.deny");
    let current = Exceptions::parse(&io::read(directory, "devices.list")?);
    let mut kept = Vec::new();
    match current {
        Some(current) if !current.allow && !target.allow => {
            let (stay, go): (Vec<_>, Vec<_>) =
                current.list.into_iter().partition(|e| target.list.contains(e));
            write_lines(directory, deny, &go)?;
            kept = stay;
        }
        _ => io::write(directory, if target.allow { allow } else { deny }, "a")?,
    }
    let new: Vec<Devices> = target.list.iter().filter(|e| !kept.contains(e)).copied().collect();
    write_lines(directory, if target.allow { deny } else { allow }, &new)
}

fn write_lines(directory: &Path, file: &str, lines: &[Devices]) -> Io<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let file = io::open(directory, file, OFlags::WRONLY)?;
    lines.iter().try_for_each(|line| io::put(&file, &line.to_string()))
}

#[cfg(test)]
mod tests;
