//! Shares of caches and memory bandwidth: `linux.intelRdt`, by the kernel's resctrl file system.
//!
//! A directory of resctrl is a class of service: tasks listed in it share what its `schemata` grants. A directory below
//! `mon_groups` counts what its tasks use. Unlike cgroups there are few of them: as many as the processor has numbers.

use crate::error::{Error, Result};
use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxIntelRdt;
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

const FIELD: &str = "linux.intelRdt";

/// Where resctrl is mounted, unless somebody chose another place.
const USUAL_PLACE: &str = "/sys/fs/resctrl";

/// `RDTGROUP_SUPER_MAGIC` of `linux/magic.h`.
const MAGIC: u64 = 0x0765_5821;

/// The groups of one container. It is remembered from creation to deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The class of service.
    class: PathBuf,
    /// Whether the class was made for this container and goes with it.
    own_class: bool,
    /// The group that counts.
    monitor: Option<PathBuf>,
}

impl Group {
    /// Makes or finds the groups of container `id`. A class of the container's own gets the wanted shares; a class that
    /// was there under the wanted `closID` must have them already.
    ///
    /// # Errors
    /// Names the field: no resctrl, a class that is not there or has other shares, shares that the processor can't
    /// grant, or no number left for a group. Nothing is left behind.
    pub fn prepare(id: &str, wanted: &LinuxIntelRdt) -> Result<Group> {
        let root = mount_point().ok_or_else(|| {
            Error::config(
                FIELD,
                "this kernel has no resctrl mounted: the processor may lack it, or mount it first",
            )
        })?;
        Self::prepare_in(&root, id, wanted)
    }

    fn prepare_in(root: &Path, id: &str, wanted: &LinuxIntelRdt) -> Result<Group> {
        let schemata = schemata(wanted)?;
        let class_id = wanted.clos_id().as_deref().filter(|class| !class.is_empty());
        let class = match class_id {
            Some("/") => root.to_owned(),
            Some(name) if name == "." || name == ".." || name.contains(['/', '\n']) => {
                let why = format!("{name:?} is no name of a directory, nor / for the default class");
                return Err(Error::config("linux.intelRdt.closID", why));
            }
            name => root.join(name.unwrap_or(id)),
        };
        let made = match fs::create_dir(&class) {
            Ok(()) if class_id.is_some() && schemata.is_empty() => {
                // Found out by making it, so that nobody else can make it in between.
                fs::remove_dir(&class).doing(|| format!("remove {}", class.display()))?;
                let why = format!("there is no {}, and no shares to make it with", class.display());
                return Err(Error::config("linux.intelRdt.closID", why));
            }
            Ok(()) => true,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(refused(root, FIELD, &format!("make {}", class.display()), &e)),
        };
        let mut group = Group { class, own_class: made, monitor: None };
        match group.fill(root, id, wanted, &schemata, made || class_id.is_none()) {
            Ok(()) => {
                // A class with a name outlives the container.
                group.own_class &= class_id.is_none();
                Ok(group)
            }
            Err(e) => {
                group.remove()?;
                Err(e)
            }
        }
    }

    fn fill(
        &mut self,
        root: &Path,
        id: &str,
        wanted: &LinuxIntelRdt,
        schemata: &[&str],
        write: bool,
    ) -> Result<()> {
        let file = self.class.join("schemata");
        if write && !schemata.is_empty() {
            let lines: String = schemata.iter().flat_map(|line| [*line, "\n"]).collect();
            write_to(&file, &lines).map_err(|e| {
                refused(
                    root,
                    "linux.intelRdt.schemata",
                    &format!("write {lines:?} to {}", file.display()),
                    &e,
                )
            })?;
        } else if !schemata.is_empty() {
            let there = fs::read_to_string(&file).map_err(|e| Error::file(&file, &e))?;
            if let Some(line) = schemata.iter().find(|line| !grants(&there, line)) {
                let why = format!("{line:?} is not what {} grants: {:?}", file.display(), there.trim());
                return Err(Error::config("linux.intelRdt.schemata", why));
            }
        }
        if *wanted.enable_monitoring() == Some(true) {
            let monitor = self.class.join("mon_groups").join(id);
            fs::create_dir(&monitor).map_err(|e| {
                refused(root, "linux.intelRdt.enableMonitoring", &format!("make {}", monitor.display()), &e)
            })?;
            self.monitor = Some(monitor);
        }
        Ok(())
    }

    /// Puts a process, and what it will fork, into the groups.
    ///
    /// # Errors
    /// `ESRCH`: it has ended.
    pub fn join(&self, pid: Pid) -> Result<()> {
        for group in [Some(&self.class), self.monitor.as_ref()].into_iter().flatten() {
            let tasks = group.join("tasks");
            write_to(&tasks, &pid.to_string()).doing(|| format!("write {pid} to {}", tasks.display()))?;
        }
        Ok(())
    }

    /// Removes what was made for this container. What is gone already is no error.
    ///
    /// # Errors
    /// Any other failure of rmdir(2).
    pub fn remove(&self) -> Result<()> {
        let class = self.own_class.then_some(&self.class);
        for group in [self.monitor.as_ref(), class].into_iter().flatten() {
            match fs::remove_dir(group) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::file(group, &e)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The lines for `schemata`, in the order that the runtime-spec wants.
fn schemata(wanted: &LinuxIntelRdt) -> Result<Vec<&str>> {
    let mut lines = Vec::new();
    let cache = wanted.l3_cache_schema().as_deref().map(|line| ("l3CacheSchema", line));
    let bandwidth = wanted.mem_bw_schema().as_deref().map(|line| ("memBwSchema", line));
    let others = wanted.schemata().iter().flatten().map(|line| ("schemata", line.as_str()));
    for (field, line) in cache.into_iter().chain(bandwidth).chain(others) {
        let misplaced = field == "memBwSchema" && !line.is_empty() && !line.starts_with("MB:");
        if line.contains('\n') || misplaced {
            return Err(Error::config(
                format!("{FIELD}.{field}"),
                format!("{line:?} is no line of schemata"),
            ));
        }
        if !line.is_empty() {
            lines.push(line);
        }
    }
    Ok(lines)
}

/// Whether the text of a `schemata` file grants exactly what `line` asks for. The kernel pads and reorders.
fn grants(there: &str, line: &str) -> bool {
    let Some((resource, wanted)) = line.split_once(':') else { return false };
    let Some(granted) = there.lines().find_map(|l| l.trim().strip_prefix(resource.trim())?.strip_prefix(':'))
    else {
        return false;
    };
    let share = |entry: &str| {
        let (domain, value) = entry.split_once('=')?;
        let value = value.trim().trim_start_matches('0').to_ascii_lowercase();
        Some((domain.trim().trim_start_matches('0').to_owned(), value))
    };
    let granted: Vec<_> = granted.split(';').map(share).collect();
    wanted.split(';').map(share).all(|entry| entry.is_some() && granted.contains(&entry))
}

fn write_to(file: &Path, text: &str) -> std::io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

/// The kernel explains itself in a file.
fn refused(root: &Path, field: &str, what: &str, error: &std::io::Error) -> Error {
    let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let why = Failure::new(what, errno).to_string();
    match fs::read_to_string(root.join("info/last_cmd_status")) {
        Ok(status) if !status.trim().is_empty() && status.trim() != "ok" => {
            Error::config(field, format!("{why}: {}", status.trim()))
        }
        _ if errno == Errno::ENOSPC => Error::config(field, format!("{why}: no number is left for a group")),
        _ => Error::config(field, why),
    }
}

/// Where resctrl is mounted, if it is.
fn mount_point() -> Option<PathBuf> {
    if rustix::fs::statfs(USUAL_PLACE).is_ok_and(|fs| fs.f_type as u64 == MAGIC) {
        return Some(USUAL_PLACE.into());
    }
    fs::read_to_string("/proc/self/mountinfo").ok()?.lines().find_map(resctrl_mount)
}

/// The mount point of a line of mountinfo (proc_pid_mountinfo(5)) that is about resctrl.
fn resctrl_mount(line: &str) -> Option<PathBuf> {
    let (mount, file_system) = line.split_once(" - ")?;
    file_system.starts_with("resctrl ").then(|| mount.split(' ').nth(4))?.map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wanted(json: serde_json::Value) -> LinuxIntelRdt {
        serde_json::from_value(json).unwrap()
    }

    /// A directory in the place of resctrl, with a class `gold`.
    fn resctrl() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for class in ["", "gold"] {
            let class = root.path().join(class);
            fs::create_dir_all(class.join("mon_groups")).unwrap();
            fs::write(class.join("schemata"), "    MB:0=  20;1=70\n    L3:0=07f0;1=001f\n").unwrap();
            fs::write(class.join("tasks"), "").unwrap();
        }
        root
    }

    #[test]
    fn without_resctrl_the_field_is_refused() {
        if mount_point().is_none() {
            let said = Group::prepare("box", &wanted(json!({}))).unwrap_err().to_string();
            assert!(said.starts_with("linux.intelRdt: this kernel has no resctrl mounted"), "{said}");
        }
        let line = "36 25 0:32 / /mnt/rdt rw,relatime shared:9 - resctrl resctrl rw";
        assert_eq!(resctrl_mount(line), Some("/mnt/rdt".into()));
        assert_eq!(resctrl_mount("36 25 0:32 / /mnt/resctrl rw - tmpfs tmpfs rw"), None);
    }

    #[test]
    fn a_class_with_a_name_must_be_there_and_stays() {
        let root = resctrl();
        let asked = wanted(json!({"closID": "gold", "enableMonitoring": true}));
        let group = Group::prepare_in(root.path(), "box", &asked).unwrap();
        let monitor = root.path().join("gold/mon_groups/box");
        fs::write(monitor.join("tasks"), "").unwrap();
        group.join(Pid::from_raw(42)).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("gold/tasks")).unwrap(), "42");
        assert_eq!(fs::read_to_string(monitor.join("tasks")).unwrap(), "42");
        // resctrl removes a directory with its files.
        fs::remove_file(monitor.join("tasks")).unwrap();
        group.remove().unwrap();
        group.remove().unwrap();
        assert!(!monitor.exists() && root.path().join("gold").exists());

        let asked = wanted(json!({"closID": "silver"}));
        let said = Group::prepare_in(root.path(), "box", &asked).unwrap_err().to_string();
        assert!(said.starts_with("linux.intelRdt.closID: there is no "), "{said}");
        assert!(!root.path().join("silver").exists());
    }

    #[test]
    fn a_class_that_is_there_must_grant_what_is_asked() {
        let root = resctrl();
        let prepare = |mut json: serde_json::Value| {
            json["closID"] = json!("gold");
            Group::prepare_in(root.path(), "box", &wanted(json))
        };
        prepare(json!({"l3CacheSchema": "L3:0=7F0;1=1f", "memBwSchema": "MB:1=70"})).unwrap();
        prepare(json!({"schemata": ["L3:1=1f", "MB:0=20"]})).unwrap();
        for schemata in ["L3:0=7f1", "L2:0=f", "L3:2=1", "nonsense"] {
            let said = prepare(json!({"schemata": [schemata]})).unwrap_err().to_string();
            assert!(said.starts_with("linux.intelRdt.schemata: ") && said.contains("grants"), "{said}");
        }
    }

    #[test]
    fn a_class_of_its_own_goes_with_the_container() {
        let root = resctrl();
        let group = Group::prepare_in(root.path(), "box", &wanted(json!({}))).unwrap();
        assert!(root.path().join("box").exists());
        group.remove().unwrap();
        assert!(!root.path().join("box").exists());
        let text = serde_json::to_string(&group).unwrap();
        assert_eq!(serde_json::from_str::<Group>(&text).unwrap(), group);
    }

    #[test]
    fn a_failure_leaves_nothing_behind_and_quotes_the_kernel() {
        let root = resctrl();
        fs::create_dir(root.path().join("info")).unwrap();
        fs::write(root.path().join("info/last_cmd_status"), "Unknown domain\n").unwrap();
        // The stand-in makes no schemata file in a new class.
        let asked = wanted(json!({"l3CacheSchema": "L3:9=f"}));
        let said = Group::prepare_in(root.path(), "box", &asked).unwrap_err().to_string();
        assert!(said.starts_with("linux.intelRdt.schemata: write \"L3:9=f\\n\" to "), "{said}");
        assert!(said.ends_with(": Unknown domain"), "{said}");
        assert!(!root.path().join("box").exists());
    }

    #[test]
    fn the_default_class_and_bad_names() {
        let root = resctrl();
        let group = Group::prepare_in(root.path(), "box", &wanted(json!({"closID": "/"}))).unwrap();
        group.join(Pid::from_raw(7)).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("tasks")).unwrap(), "7");
        for (asked, field) in [
            (json!({"closID": "../x"}), "linux.intelRdt.closID: "),
            (json!({"memBwSchema": "L3:0=f"}), "linux.intelRdt.memBwSchema: "),
            (json!({"schemata": ["L3:0=f\nMB:0=1"]}), "linux.intelRdt.schemata: "),
        ] {
            let said = Group::prepare_in(root.path(), "box", &wanted(asked)).unwrap_err().to_string();
            assert!(said.starts_with(field), "{said}");
        }
    }
}
