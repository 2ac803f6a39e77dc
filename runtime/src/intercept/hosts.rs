//! Hosts that a job knows by their names: who listens there is decided elsewhere, but the job has to get an address.
//!
//! A name that the container's `/etc/hosts` does not have gets one there, from 198.18.0.0/15: a range for benchmarks
//! (RFC 2544), which is on no network. It follows from the name alone, since a job may keep the address over a restart.

use crate::error::{Error, Result};
use crate::supervisor::names;
use oci_spec::runtime::{Mount, Spec};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// Where names are looked up (hosts(5)).
const HOSTS: &str = "/etc/hosts";

/// The file of a host or a container, and what has to be added to it.
#[derive(Debug, Default)]
pub struct Hosts {
    text: String,
    new: BTreeMap<String, Ipv4Addr>,
}

impl Hosts {
    /// Those of this host.
    ///
    /// # Errors
    /// It can't be read.
    pub fn here() -> Result<Hosts> {
        Hosts::read(Path::new(HOSTS))
    }

    /// Those that a container would have.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn of(spec: &Spec, rootfs: &Path) -> Result<Hosts> {
        let mounts = spec.mounts().iter().flatten();
        let mounted = mounts.rev().find(|mount| mount.destination() == Path::new(HOSTS));
        match mounted.and_then(|mount| mount.source().as_ref()) {
            Some(source) => Hosts::read(source),
            None => Hosts::read(&inside(rootfs)),
        }
    }

    fn read(path: &Path) -> Result<Hosts> {
        match std::fs::read(path) {
            Ok(text) => Ok(Hosts { text: String::from_utf8_lossy(&text).into_owned(), new: BTreeMap::new() }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Hosts::default()),
            Err(e) => Err(Error::file(path, &e)),
        }
    }

    /// The address that the file has for a name.
    pub fn find(&self, name: &str) -> Option<IpAddr> {
        self.text.lines().find_map(|line| {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
        })
    }

    /// The same, with an address of its own for a name that the file does not have.
    pub fn find_or_add(&mut self, name: &str) -> IpAddr {
        if let Some(known) = self.find(name) {
            return known;
        }
        if let Some(known) = self.new.get(name) {
            return (*known).into();
        }
        let taken = |address: &Ipv4Addr| self.new.values().any(|other| other == address);
        let first = number(name);
        let free =
            (0..=u32::from(u16::MAX)).map(|step| address(first.wrapping_add(step))).find(|a| !taken(a));
        let address = free.unwrap_or_else(|| address(first));
        self.new.insert(name.to_owned(), address);
        address.into()
    }

    /// Puts the file with what was added into `home`, and mounts it in the container; if nothing was added, nothing.
    ///
    /// # Errors
    /// It can't be written.
    pub fn mount(&self, spec: &mut Spec, home: &Path) -> Result<bool> {
        if self.new.is_empty() {
            return Ok(false);
        }
        let path = home.join(names::HOSTS);
        let mut text = self.text.clone();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.extend(self.new.iter().map(|(name, address)| format!("{address} {name}\n")));
        std::fs::write(&path, text).map_err(|e| Error::file(&path, &e))?;
        let mut mount = Mount::default();
        mount
            .set_destination(HOSTS.into())
            .set_source(Some(path))
            .set_typ(Some("bind".into()))
            .set_options(Some(["rbind", "rprivate"].map(str::to_owned).to_vec()));
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        mounts.retain(|old| old.destination() != Path::new(HOSTS));
        mounts.push(mount);
        spec.set_mounts(Some(mounts));
        Ok(true)
    }
}

/// The container's file, unless it leads out of the container.
fn inside(rootfs: &Path) -> PathBuf {
    let path = rootfs.join(HOSTS.trim_start_matches('/'));
    match (path.canonicalize(), rootfs.canonicalize()) {
        (Ok(real), Ok(root)) if real.starts_with(&root) => real,
        _ => PathBuf::from("/dev/null"),
    }
}

/// FNV-1a: some number for a name, on every host the same.
fn number(name: &str) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(16_777_619);
    name.bytes().fold(2_166_136_261, step)
}

/// One of 198.18.0.0/15 that ends neither in 0 nor in 255.
fn address(number: u32) -> Ipv4Addr {
    let [_, high, middle, low] = number.to_be_bytes();
    Ipv4Addr::new(198, 18 + (high & 1), middle, 1 + low % 254)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str) -> Hosts {
        Hosts { text: text.into(), new: BTreeMap::new() }
    }

    #[test]
    fn a_name_of_the_file_is_found() {
        let hosts =
            hosts("127.0.0.1 localhost # not emu\nfd00::7\temu-b  emu # last\n# 10.0.0.1 no\nbad line");
        assert_eq!(hosts.find("EMU"), Some("fd00::7".parse().unwrap()));
        assert_eq!((hosts.find("no"), hosts.find("line"), hosts.find("not")), (None, None, None));
    }

    #[test]
    fn a_new_name_has_the_same_address_everywhere() {
        let (mut one, mut other) = (hosts(""), hosts("127.0.0.1 localhost"));
        other.find_or_add("other");
        let address = one.find_or_add("emu");
        assert_eq!((other.find_or_add("emu"), one.find_or_add("emu")), (address, address));
        assert!(matches!(address, IpAddr::V4(ip) if ip.octets()[0] == 198 && ip.octets()[1] & !1 == 18));
    }

    #[test]
    fn names_do_not_share_an_address() {
        let mut hosts = hosts("");
        let all: std::collections::BTreeSet<_> =
            (0..2000).map(|n| hosts.find_or_add(&format!("emu{n}"))).collect();
        assert_eq!(all.len(), 2000);
    }

    #[test]
    fn the_container_gets_a_file_with_the_new_names() {
        let home = tempfile::tempdir().unwrap();
        let mut spec = Spec::default();
        let mut hosts = hosts("127.0.0.1 localhost");
        assert!(!hosts.mount(&mut spec, home.path()).unwrap());
        let address = hosts.find_or_add("emu");
        assert!(hosts.mount(&mut spec, home.path()).unwrap());
        let again = Hosts::of(&spec, Path::new("/nowhere")).unwrap();
        assert_eq!((again.find("emu"), again.find("localhost")), (Some(address), hosts.find("localhost")));
    }

    #[test]
    fn a_container_can_not_have_a_file_of_the_host_read() {
        let rootfs = tempfile::tempdir().unwrap();
        std::fs::create_dir(rootfs.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/hosts", rootfs.path().join("etc/hosts")).unwrap();
        let spec = Spec::default();
        assert_eq!(Hosts::of(&spec, rootfs.path()).unwrap().text, "");
        std::fs::remove_file(rootfs.path().join("etc/hosts")).unwrap();
        assert_eq!(Hosts::of(&spec, rootfs.path()).unwrap().text, "");
    }
}
