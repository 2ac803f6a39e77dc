//! The ties of a job to what a restart may put somewhere else: devices of the host at paths of the container
//! (`--map /dev/emu0=/dev/pts/9`, or what a vendor's description says of a device), and addresses of sockets
//! (`--map tcp:emu:4000=10.77.0.2:5011`).
//!
//! A bind mount makes a rule for a path: it holds before the job, or a restart, opens anything, and costs nothing
//! afterwards. A rule for a socket says whose connections are neither kept nor refused: at a restart they are made anew, to
//! the address that the rule has then.

use crate::cdi;
use crate::error::{Error, Result};
use crate::intercept::hosts::Hosts;
use ckrun_plugin::binding::Address;
use ckrun_virt::image::Bytes;
use ckrun_virt::restore::Peer;
use ckrun_virt::table::rules::Rules;
use oci_spec::runtime::{Mount, Spec};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What `--map` says.
#[derive(Debug, Clone, Default)]
pub struct Maps {
    /// Of paths.
    pub paths: Rules,
    /// Of sockets: what they are here, by the job's names for them.
    pub sockets: BTreeMap<Bytes, Peer>,
    /// Devices that vendors describe.
    pub described: Vec<cdi::Owned>,
}

impl Maps {
    /// Reads the words behind `--map`.
    ///
    /// # Errors
    /// The first that is no rule, or contradicts another.
    pub fn parse(words: &[OsString]) -> Result<Maps> {
        let mut maps = Maps::default();
        let mut paths = Vec::new();
        for word in words {
            let said = |why: &str| Error::Usage(format!("--map {}: {why}", word.display()));
            let rule = match word.to_str().and_then(|text| text.split_once(':')) {
                Some(("tcp", rule)) => tcp(rule),
                Some(("unix", rule)) => unix(rule),
                _ => {
                    paths.push(word.as_os_str());
                    continue;
                }
            };
            let (name, peer) = rule.map_err(said)?;
            if maps.sockets.values().any(|other| other.name() == peer.name()) {
                return Err(said("two names can't stand for one address"));
            }
            if maps.sockets.insert(name, peer).is_some() {
                return Err(said("another rule speaks of the same name"));
            }
        }
        maps.paths = Rules::parse(paths).map_err(|e| Error::Usage(format!("--map: {e}")))?;
        Ok(maps)
    }

    /// The rules for all paths, with those that are made of vendors' descriptions, and the vendors' names for the latter.
    /// Where a rule speaks of a path, or of what is there, it is not what a vendor says that holds.
    pub fn devices(&self) -> (Rules, BTreeMap<Bytes, String>) {
        let (mut rules, mut names) = (self.paths.clone(), BTreeMap::new());
        for cdi::Owned { path, real, name } in &self.described {
            if self.paths.iter().any(|rule| path.starts_with(&rule.from)) {
                continue;
            }
            match rules.add(path, real) {
                Ok(()) => drop(names.insert(path.as_os_str().as_bytes().into(), name.clone())),
                Err(why) => log::debug!("{} of {name} stays this host's: {why}", path.display()),
            }
        }
        (rules, names)
    }
}

/// Where an address of a plugin's binding is, from here: `tcp:HOST:PORT`, `unix:PATH`, `unix:@NAME`.
///
/// # Errors
/// Why it is nowhere.
pub fn peer(address: &str) -> Result<Peer, String> {
    Ok(match address.parse()? {
        Address::Tcp(host, port) => {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let here = || Hosts::here().map_err(|e| e.to_string())?.find(bare).ok_or_else(|| unknown(bare));
            Peer::Tcp(SocketAddr::new(bare.parse().or_else(|_| here())?, port))
        }
        Address::Unix(path) => Peer::Unix(path.as_str().into()),
        Address::Abstract(name) => Peer::Unix(format!("@{name}").into()),
    })
}

fn unknown(host: &str) -> String {
    format!("{host:?} is no address, and this host's /etc/hosts does not know it")
}

type Rule = (Bytes, Peer);

/// `emu:4000=10.77.0.2:5011`
fn tcp(rule: &str) -> Result<Rule, &'static str> {
    const FORM: &str = "it is not of the form tcp:NAME:PORT=ADDRESS:PORT";
    let (name, address) = rule.split_once('=').ok_or(FORM)?;
    let port =
        name.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    if !matches!(port, Some(Ok(1..))) {
        return Err(FORM);
    }
    let address: SocketAddr = address.parse().map_err(|_| "what stands behind the = is no ADDRESS:PORT")?;
    Ok((name.into(), Peer::Tcp(address)))
}

/// `/run/emu.sock=/run/other.sock`; a name that begins with `@` is none in the file system.
fn unix(rule: &str) -> Result<Rule, &'static str> {
    const FORM: &str = "it is not of the form unix:/PATH=/PATH (or @NAME)";
    let at = rule.find("=/").or_else(|| rule.find("=@")).ok_or(FORM)?;
    let (name, to) = (&rule[..at], &rule[at + 1..]);
    if !name.starts_with(['/', '@']) || name.len() < 2 || to.len() < 2 {
        return Err(FORM);
    }
    Ok((name.into(), Peer::Unix(OsStr::new(to).as_bytes().into())))
}

/// Adds the mounts that carry out `rules`, after those of the configuration. `who` has said so: `--map`, or a plugin.
///
/// # Errors
/// The host has no such path.
pub fn apply(spec: &mut Spec, rules: &Rules, who: &str) -> Result<()> {
    let mut rules: Vec<_> = rules.iter().collect();
    // A path below another one is mounted on top of it.
    rules.sort_by_key(|rule| rule.from.components().count());
    for rule in rules {
        let shown = format!("{who} {}={}", rule.from.display(), rule.to.display());
        match std::fs::metadata(&rule.to) {
            Ok(_) if rule.from == Path::new("/") => {
                return Err(Error::Usage(format!("{shown}: the root of the container is the bundle's")));
            }
            Ok(_) => {}
            Err(_) if nameless(&rule.to) => {
                let why = "has no path on this host by which it could be shown in the container";
                return Err(Error::Usage(format!("{shown}: {} {why}", rule.to.display())));
            }
            Err(e) => return Err(Error::Usage(format!("{shown}: {}: {e}", rule.to.display()))),
        }
        let mut mount = Mount::default();
        mount
            .set_destination(rule.from.clone())
            .set_source(Some(rule.to.clone()))
            .set_typ(Some("bind".into()))
            .set_options(Some(vec!["rbind".into(), "rprivate".into()]));
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        mounts.push(mount);
        spec.set_mounts(Some(mounts));
    }
    Ok(())
}

/// What the kernel calls a file without a path: one that was deleted, or a memfd.
fn nameless(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b" (deleted)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Maps> {
        Maps::parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn paths_and_sockets() {
        let maps = parse(&[
            "/dev/emu0=/dev/pts/9",
            "tcp:emu:4000=10.77.0.2:5011",
            "tcp:10.0.0.7:5011=[::1]:7",
            "unix:/run/emu.sock=/run/other.sock",
        ])
        .unwrap();
        assert_eq!(maps.paths.iter().count(), 1);
        let names: Vec<_> = maps.sockets.iter().map(|(name, to)| format!("{name}={}", to.name())).collect();
        assert_eq!(
            names,
            ["/run/emu.sock=/run/other.sock", "10.0.0.7:5011=[::1]:7", "emu:4000=10.77.0.2:5011"]
        );
    }

    #[test]
    fn a_rule_comes_before_what_a_vendor_says() {
        let mut maps = parse(&["/dev/emu0=/dev/pts/9"]).unwrap();
        let described = |path: &str, real: &str| cdi::Owned {
            path: path.into(),
            real: real.into(),
            name: "v/c=d".into(),
        };
        // The last one's file has a name already.
        maps.described = [("/dev/emu0", "/dev/a"), ("/dev/emu1", "/dev/b"), ("/dev/emu2", "/dev/b")]
            .map(|(path, real)| described(path, real))
            .to_vec();
        let (rules, names) = maps.devices();
        let all: Vec<_> = rules.iter().map(|r| (r.from.to_str().unwrap(), r.to.to_str().unwrap())).collect();
        assert_eq!(all, [("/dev/emu0", "/dev/pts/9"), ("/dev/emu1", "/dev/b")]);
        assert_eq!(names.into_iter().collect::<Vec<_>>(), [("/dev/emu1".into(), "v/c=d".to_owned())]);
    }

    #[test]
    fn what_is_no_rule_is_told_so() {
        for bad in [
            &["tcp:emu=10.0.0.1:1"][..],
            &["tcp:emu:0=10.0.0.1:1"],
            &["tcp::5=10.0.0.1:1"],
            &["tcp:emu:5=host:1"],
            &["tcp:emu:5"],
            &["unix:run=/x"],
            &["unix:/run"],
            &["tcp:a:1=10.0.0.1:1", "tcp:a:1=10.0.0.1:2"],
            &["tcp:a:1=10.0.0.1:1", "tcp:b:1=10.0.0.1:1"],
        ] {
            let said = parse(bad).unwrap_err().to_string();
            assert!(said.contains(&format!("--map {}", bad[bad.len() - 1])), "{said}");
        }
    }
}
