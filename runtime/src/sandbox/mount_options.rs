//! The `options` of a mount in config.json: which are flags of the mount, which of its propagation, which are commands
//! to ckrun, and which go to the file system.

use crate::error::{Error, Result};
use libc::{
    MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_STRICTATIME, MS_PRIVATE, MS_REC, MS_SHARED,
    MS_SLAVE, MS_UNBINDABLE,
};

/// The access-time modes are one field of several bits (`linux/mount.h`): it is cleared whole before one is set.
pub const ATIME_MASK: u64 = libc::MOUNT_ATTR__ATIME;

/// Attributes to set and to clear; `linux/mount.h`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
}

impl Attributes {
    /// A later option overrides an earlier one.
    fn add(&mut self, set: u64, clear: u64) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear | clear) & !(set & !ATIME_MASK);
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.set == 0 && self.clear == 0
    }
}

/// How an id-mapped mount gets its mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdMap {
    /// `idmap`: only the mount itself.
    Top,
    /// `ridmap`: and every mount below it.
    Tree,
}

/// The options of one mount, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// For the mount itself.
    pub attributes: Attributes,
    /// For the mount and all below it (`rro`, `rnosuid`, …).
    pub recursive: Attributes,
    /// `MS_PRIVATE`, … each perhaps with `MS_REC`, in order.
    pub propagation: Vec<u64>,
    /// A bind mount, not a new file system.
    pub bind: bool,
    /// The bind takes the mounts below along.
    pub recursive_bind: bool,
    /// Fill a new tmpfs with what the directory held.
    pub copy_up: bool,
    /// Map owners as the mount's uidMappings and gidMappings, or the container's, say.
    pub idmap: Option<IdMap>,
    /// For the file system, in order: `size=64k`, `gid=5`, and the superblock flags `ro`, `sync`, ….
    pub data: Vec<String>,
}

/// One name: the attributes it sets and those it clears.
const ATTRIBUTES: &[(&str, u64, u64)] = &[
    ("ro", MOUNT_ATTR_RDONLY, 0),
    ("rw", 0, MOUNT_ATTR_RDONLY),
    ("nosuid", MOUNT_ATTR_NOSUID, 0),
    ("suid", 0, MOUNT_ATTR_NOSUID),
    ("nodev", MOUNT_ATTR_NODEV, 0),
    ("dev", 0, MOUNT_ATTR_NODEV),
    ("noexec", MOUNT_ATTR_NOEXEC, 0),
    ("exec", 0, MOUNT_ATTR_NOEXEC),
    ("nodiratime", MOUNT_ATTR_NODIRATIME, 0),
    ("diratime", 0, MOUNT_ATTR_NODIRATIME),
    ("nosymfollow", MOUNT_ATTR_NOSYMFOLLOW, 0),
    ("symfollow", 0, MOUNT_ATTR_NOSYMFOLLOW),
    ("noatime", MOUNT_ATTR_NOATIME, ATIME_MASK),
    ("strictatime", MOUNT_ATTR_STRICTATIME, ATIME_MASK),
    // relatime is the field's zero, and what leaving the other modes falls back to.
    ("relatime", 0, ATIME_MASK),
    ("atime", 0, ATIME_MASK),
    ("norelatime", 0, ATIME_MASK),
    ("nostrictatime", 0, ATIME_MASK),
];

const PROPAGATION: &[(&str, u64)] = &[
    ("private", MS_PRIVATE),
    ("rprivate", MS_PRIVATE | MS_REC),
    ("shared", MS_SHARED),
    ("rshared", MS_SHARED | MS_REC),
    ("slave", MS_SLAVE),
    ("rslave", MS_SLAVE | MS_REC),
    ("unbindable", MS_UNBINDABLE),
    ("runbindable", MS_UNBINDABLE | MS_REC),
];

/// Flags of the superblock, which fsconfig(2) takes by these names. `ro` is also an attribute of the mount.
const SUPERBLOCK: &[&str] =
    &["ro", "rw", "sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand", "silent"];

/// Every option that is not the file system's own, for `ckrun features`.
pub fn known() -> Vec<String> {
    let own = [
        "bind",
        "rbind",
        "defaults",
        "idmap",
        "ridmap",
        "tmpcopyup",
        "loud",
        "iversion",
        "noiversion",
        "remount",
    ];
    let recursive = ATTRIBUTES.iter().map(|(name, ..)| format!("r{name}"));
    let mut all: Vec<String> = ATTRIBUTES.iter().map(|(name, ..)| (*name).to_owned()).collect();
    all.extend(recursive);
    all.extend(PROPAGATION.iter().map(|(name, _)| (*name).to_owned()));
    all.extend(SUPERBLOCK.iter().chain(&own).map(|name| (*name).to_owned()));
    all.sort();
    all.dedup();
    all
}

impl Options {
    /// Sorts the options of the mount `field` (`mounts[3]`).
    ///
    /// # Errors
    /// Options that exclude each other.
    pub fn parse(field: &str, options: &[String]) -> Result<Options> {
        let mut parsed = Options::default();
        for option in options {
            parsed.add(option);
        }
        if parsed.copy_up && parsed.bind {
            return Err(Error::config(
                format!("{field}.options"),
                "tmpcopyup is for tmpfs, not for a bind mount",
            ));
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) {
        let mut known = true;
        match option {
            "defaults" | "loud" | "iversion" | "noiversion" | "remount" | "" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive_bind) = (true, true),
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.idmap = Some(IdMap::Top),
            "ridmap" => self.idmap = Some(IdMap::Tree),
            _ => known = false,
        }
        if known {
            return;
        }
        if let Some((_, flags)) = PROPAGATION.iter().find(|(name, _)| *name == option) {
            return self.propagation.push(*flags);
        }
        let attribute = |name: &str| ATTRIBUTES.iter().find(|(n, ..)| *n == name);
        let (own, recursive) = (attribute(option), option.strip_prefix('r').and_then(attribute));
        if let Some((_, set, clear)) = own {
            self.attributes.add(*set, *clear);
        } else if let Some((_, set, clear)) = recursive {
            return self.recursive.add(*set, *clear);
        }
        if own.is_none() || SUPERBLOCK.contains(&option) {
            self.data.push(option.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        Options::parse("mounts[0]", &options.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_later_option_wins() {
        assert_eq!(parse(&["ro", "rw"]).attributes, Attributes { set: 0, clear: MOUNT_ATTR_RDONLY });
        assert_eq!(parse(&["rw", "ro"]).attributes, Attributes { set: MOUNT_ATTR_RDONLY, clear: 0 });
    }

    #[test]
    fn a_time_mode_clears_the_whole_field_first() {
        let both = parse(&["strictatime", "noatime"]).attributes;
        assert_eq!(both, Attributes { set: MOUNT_ATTR_NOATIME, clear: ATIME_MASK });
        assert_eq!(parse(&["relatime"]).attributes, Attributes { set: 0, clear: ATIME_MASK });
    }

    #[test]
    fn recursive_and_own_attributes_are_apart() {
        let o = parse(&["rbind", "rro", "nosuid", "rslave"]);
        assert_eq!(o.recursive.set, MOUNT_ATTR_RDONLY);
        assert_eq!(o.attributes.set, MOUNT_ATTR_NOSUID);
        assert_eq!(o.propagation, [MS_SLAVE | MS_REC]);
        assert!(o.bind && o.recursive_bind && o.data.is_empty());
    }

    #[test]
    fn what_is_not_ours_is_the_file_systems() {
        assert_eq!(parse(&["nosuid", "mode=755", "size=64k", "ro"]).data, ["mode=755", "size=64k", "ro"]);
    }

    #[test]
    fn rw_is_not_taken_for_a_recursive_w() {
        assert!(parse(&["rw"]).recursive.is_empty());
        assert_eq!(parse(&["rrw"]).recursive.clear, MOUNT_ATTR_RDONLY);
    }
}
