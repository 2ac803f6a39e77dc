//! Parameters of the kernel that each network namespace has for itself: `/proc/sys/net`.
//!
//! There are hundreds, and reading them takes longer than all the rest of a namespace. So nobody looks where nobody could
//! have written: the sandbox makes `/proc/sys` read-only unless it is told otherwise, and what config.json asks for
//! (`linux.sysctl`) a restart's sandbox sets again.

use super::links::{Link, Origin};
use crate::fd::Mount;
use crate::{Doing, Error, Failure};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;
use rustix::fs::StatVfsMountFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

/// What is in files, by their paths below `/proc/sys/net`.
pub type Sysctls = BTreeMap<String, String>;

const ROOT: &str = "/proc/sys/net";
/// The most that an image may list.
const MOST: usize = 100_000;
/// How often they are listed at most.
const LISTINGS: usize = 20;
/// Nesting of the kernel's directories.
const DEPTH: usize = 8;

/// Whether somebody in the container can write there: through a procfs of which that part is not read-only.
pub(super) fn writable(init: Pid, mounted: &[(u64, Mount)]) -> bool {
    mounted.iter().map(|(_, mount)| mount).filter(|mount| mount.kind == b"proc" && !mount.read_only).any(
        |mount| {
            let Some(below) = ["/sys/net", "/net", ""]
                .into_iter()
                .zip(["/", "/sys", "/sys/net"])
                .find_map(|(below, root)| (mount.root.as_slice() == root.as_bytes()).then_some(below))
            else {
                return false;
            };
            let point = String::from_utf8_lossy(&mount.point).into_owned();
            let path = format!("/proc/{init}/root{}{below}", point.trim_end_matches('/'));
            // What can't be looked at lies under another mount, and is out of the job's reach as well.
            rustix::fs::statvfs(&path).is_ok_and(|fs| !fs.f_flag.contains(StatVfsMountFlags::RDONLY))
        },
    )
}

/// What differs from a new namespace, in the namespace that this thread is in; of each link, what differs from what a new
/// link begins with here.
///
/// # Errors
/// The kernel's.
pub(super) fn capture() -> Result<Sysctls, Failure> {
    let (mut all, new) = (here(), of_new()?);
    if all == new {
        return Ok(Sysctls::new());
    }
    let begun = all.clone();
    all.retain(|name, value| {
        // What neighbours of a link begin with is told in the host's namespace only.
        let first = |name: &str| begun.get(&of(name, "default")).or_else(|| new.get(&of(name, "lo")));
        let usual = if link(name).is_some() { first(name) } else { new.get(name) };
        usual != Some(value)
    });
    Ok(all)
}

/// All that can be written, in the namespace that this thread is in.
fn here() -> Sysctls {
    let names = names();
    names.into_iter().filter_map(|name| read(&name).map(|value| (name, value))).collect()
}

/// The names of all, by a listing that finds the same as the ones before. The kernel keeps the directories of all network
/// namespaces in one list: whoever reads it loses the place when a link comes or goes in another namespace.
fn names() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for _ in 0..LISTINGS {
        let mut found = BTreeSet::new();
        walk(Path::new(ROOT), DEPTH, &mut found);
        if found == all {
            break;
        }
        all.append(&mut found);
    }
    all
}

/// Those of a namespace in which nothing has been done. This thread goes there for a moment.
fn of_new() -> Result<Sysctls, Failure> {
    let home = File::open("/proc/thread-self/ns/net").doing(|| "open the network namespace")?;
    unshare(CloneFlags::CLONE_NEWNET).doing(|| "make a network namespace to compare with")?;
    let all = here();
    nix::sched::setns(&home, CloneFlags::CLONE_NEWNET).doing(|| "come back from a network namespace")?;
    Ok(all)
}

fn walk(dir: &Path, depth: usize, all: &mut BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth > 0 {
                walk(&path, depth - 1, all);
            }
        } else if let Some(name) = path.strip_prefix(ROOT).ok().and_then(Path::to_str)
            && !is_links_own(name)
        {
            all.insert(name.to_owned());
        }
    }
}

/// What a link has as an attribute, too.
fn is_links_own(name: &str) -> bool {
    name.ends_with("/addr_gen_mode") && link(name).is_some()
}

/// The value of a parameter that can be written to. The kernel keeps to the mode of the file whoever asks.
fn read(name: &str) -> Option<String> {
    let mut file = OpenOptions::new().read(true).write(true).open(format!("{ROOT}/{name}")).ok()?;
    let mut bytes = vec![0; 8192];
    // In one read: the kernel gives nothing to a second one. One that is not set yet is an error to read.
    let length = file.read(&mut bytes).ok()?;
    let text = std::str::from_utf8(bytes.get(..length)?.trim_ascii_end()).ok()?;
    Some(text.to_owned())
}

/// The link that a parameter is of, if it is of one.
fn link(name: &str) -> Option<&str> {
    let mut words = name.split('/');
    let (_, tree, link) = (words.next()?, words.next()?, words.next()?);
    let each =
        matches!(tree, "conf" | "neigh") && !matches!(link, "all" | "default") && words.next().is_some();
    each.then_some(link)
}

/// The same parameter of another link.
fn of(name: &str, other: &str) -> String {
    let mut words: Vec<&str> = name.split('/').collect();
    if let Some(link) = words.get_mut(2) {
        *link = other;
    }
    words.join("/")
}

/// In which order they are set: what changes others comes before those.
fn order(name: &str) -> (u8, bool) {
    let stage = match name.split('/').nth(2) {
        _ if !name.contains("/conf/") && !name.contains("/neigh/") => 0,
        Some("all") => 1,
        Some("default") => 2,
        _ => 3,
    };
    (stage, !name.ends_with("/forwarding"))
}

/// Sets those of the whole namespace, before links are made, which begin with what there is then.
///
/// # Errors
/// As [`set`].
pub(super) fn restore(wanted: &Sysctls) -> Result<(), Error> {
    if wanted.is_empty() {
        return Ok(());
    }
    // What is to stay as it is changes with others.
    let mut all = here();
    all.extend(wanted.iter().map(|(name, value)| (name.clone(), value.clone())));
    let mut all: Vec<_> = all.iter().filter(|(name, _)| link(name).is_none()).collect();
    all.sort_by_key(|(name, _)| order(name));
    all.into_iter().try_for_each(|(name, value)| set(name, value))
}

/// When parameters of links are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// While they are down still.
    Down,
    /// When they are up, which makes the kernel forget these.
    Up,
}

impl When {
    fn of(name: &str) -> When {
        if name.starts_with("ipv6/") && name.ends_with("/mtu") { When::Up } else { When::Down }
    }
}

/// Sets those of the links that are the job's.
///
/// # Errors
/// As [`set`].
pub(super) fn restore_links(wanted: &Sysctls, links: &[Link], when: When) -> Result<(), Error> {
    if wanted.is_empty() {
        return Ok(());
    }
    let own: BTreeSet<&str> =
        links.iter().filter(|own| own.origin != Origin::Given).map(|own| own.name.as_str()).collect();
    let here = here();
    // One that is not set yet can't be read.
    let first = here.keys().filter(|name| name.split('/').nth(2) == Some("default"));
    let begun: Vec<String> = first.flat_map(|name| own.iter().map(|link| of(name, link))).collect();
    let names: BTreeSet<&String> = here.keys().chain(wanted.keys()).chain(&begun).collect();
    let mut all: Vec<(&String, &String)> = names
        .into_iter()
        .filter(|name| link(name).is_some_and(|link| own.contains(link)) && When::of(name) == when)
        .filter_map(|name| Some((name, wanted.get(name).or_else(|| here.get(&of(name, "default")))?)))
        .collect();
    all.sort_by_key(|(name, _)| order(name));
    all.into_iter().try_for_each(|(name, value)| set(name, value))
}

/// Sets one. A kernel that has no such parameter can't do otherwise than it does.
fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = format!("{ROOT}/{name}");
    if read(name).as_deref() == Some(value) {
        return Ok(());
    }
    match OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes())) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            log::warn!("{path} is not there, in which the job had {value:?}");
            Ok(())
        }
        written => Ok(written.doing(|| format!("write {value:?} to {path}"))?),
    }
}

/// Checks what an image says.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(all: &Sysctls) -> Result<(), String> {
    if all.len() > MOST {
        return Err(format!("more than {MOST} parameters"));
    }
    let strange = |name: &&String| {
        name.contains('\0')
            || name.split('/').any(|word| matches!(word, "" | "." | ".."))
            || name.len() > 4096
    };
    match all.keys().find(strange) {
        Some(name) => Err(format!("{name:?} is no name of a parameter")),
        None => Ok(()),
    }
}
