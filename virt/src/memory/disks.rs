//! Whether the disks have done what a stopped process has asked of them.
//!
//! No process can be asked for its own requests. But what it has asked for before it was stopped is done when its disks have
//! been seen idle once since then.

use nix::unistd::Pid;
use rustix::fs::FileType;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often, and how long after one another, the disks are looked at.
const LOOKS: u32 = 200;
const MOMENT: Duration = Duration::from_millis(1);
/// So many looks in a row find a disk idle: the answer comes a moment after the disk's.
const QUIET: u32 = 3;

/// The device numbers of disks.
type Disks = BTreeSet<(u32, u32)>;

/// Waits until nothing is on its way to a disk that process `host`, which stands still, may have asked for. Best is that all
/// disks of the host are idle. If that does not happen, those will do on which its open files are.
pub(super) fn settle(host: Pid) -> bool {
    let own = disks_of(host);
    let (mut all, mut mine, mut done) = (0, 0, false);
    for _ in 0..LOOKS {
        let busy = busy(&std::fs::read_to_string("/proc/diskstats").unwrap_or_default());
        all = if busy.is_empty() { all + 1 } else { 0 };
        mine = if own.as_ref().is_some_and(|own| own.is_disjoint(&busy)) { mine + 1 } else { 0 };
        done |= mine == QUIET;
        if all == QUIET {
            return true;
        }
        std::thread::sleep(MOMENT);
    }
    done
}

/// The disks, and parts of disks, to which requests are on their way.
fn busy(diskstats: &str) -> Disks {
    let line = |line: &str| {
        // Major, minor, name, eight counters, and how many requests are on their way.
        let mut fields = line.split_ascii_whitespace();
        let number = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (fields.nth(9)? != "0").then_some(number)
    };
    diskstats.lines().filter_map(line).collect()
}

/// The disks on which the open files of a process are; None if one of them may be on any.
fn disks_of(host: Pid) -> Option<Disks> {
    let mut found = Disks::new();
    for entry in std::fs::read_dir(format!("/proc/{host}/fd")).ok()? {
        let path = entry.ok()?.path();
        let Ok(about) = rustix::fs::stat(&path) else { continue };
        let device = match FileType::from_raw_mode(about.st_mode) {
            FileType::BlockDevice => about.st_rdev,
            FileType::RegularFile => about.st_dev,
            _ => continue,
        };
        match (rustix::fs::major(device), rustix::fs::minor(device)) {
            // No disk's: the kernel's own or in memory, or it says nothing of the disks below it.
            (0, _) => match rustix::fs::statfs(&path).ok()?.f_type {
                libc::TMPFS_MAGIC | libc::PROC_SUPER_MAGIC | libc::SYSFS_MAGIC | libc::HUGETLBFS_MAGIC => {}
                _ => return None,
            },
            number => {
                found.insert(number);
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_with_requests_on_their_way_are_busy() {
        let text = "   7       0 loop0 9 0 9 9 0 0 0 0 0 9 9 0 0 0 0 0 0\n \
                    254       0 vda 1 2 3 4 5 6 7 8 2 10 11 0 0 0 0 0 0\n \
                    254       1 vda1 1 2 3 4 5 6 7 8 0 10 11\n";
        assert_eq!(busy(text), Disks::from([(254, 0)]));
        assert_eq!(busy(""), Disks::new());
    }

    #[test]
    fn open_files_tell_the_disks() {
        // Whatever else is open, a file of the kernel's is on no disk.
        let _of_the_kernel = std::fs::File::open("/proc/version").unwrap();
        let own = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let device = rustix::fs::fstat(&own).unwrap().st_dev;
        let number = (rustix::fs::major(device), rustix::fs::minor(device));
        let found = disks_of(Pid::this());
        assert_eq!(found.is_some_and(|found| found.contains(&number)), number.0 != 0);
    }
}
