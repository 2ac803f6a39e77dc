//! `/proc/TID/status`, read once for everything that it tells (proc_pid_status(5)).

/// KiB of memory for which a page by page look takes about a millisecond.
const LARGE: u64 = 16 << 10;

/// The fields that ckrun uses. Signal sets have bit N-1 for signal N; ids in `ns_*` are those of the innermost pid
/// namespace: the job's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The command name, as text.
    pub name: String,
    /// `R`, `S`, `D`, `T` (stopped), `t` (traced), `Z`, …
    pub state: char,
    /// File mode creation mask.
    pub umask: u32,
    /// The process's id as ckrun sees it.
    pub tgid: i32,
    /// The parent's id as ckrun sees it; 0 when it is out of sight.
    pub ppid: i32,
    /// Who traces it, as ckrun sees its id; 0 for nobody, and for somebody out of sight.
    pub tracer: i32,
    /// The process's id in each pid namespace, from ckrun's to the innermost.
    pub ns_tgid: Vec<i32>,
    /// The thread's id, likewise.
    pub ns_pid: Vec<i32>,
    /// The process group's id, likewise; 0 where it is out of sight.
    pub ns_pgid: Vec<i32>,
    /// The session's id, likewise.
    pub ns_sid: Vec<i32>,
    /// Real, effective, saved and file system user id.
    pub uid: [u32; 4],
    /// Real, effective, saved and file system group id.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Memory that the process has, in KiB, roughly.
    pub resident: u64,
    /// Its address space, in KiB: what RLIMIT_AS bounds.
    pub mapped: u64,
    /// Private memory that is writable, in KiB, stacks aside: what RLIMIT_DATA bounds.
    pub data: u64,
    /// How many threads the process has.
    pub threads: u32,
    /// Signals pending for the thread.
    pub sig_pnd: u64,
    /// Signals pending for the process.
    pub shd_pnd: u64,
    /// Blocked signals.
    pub sig_blk: u64,
    /// Ignored signals.
    pub sig_ign: u64,
    /// Signals with a handler.
    pub sig_cgt: u64,
    /// Inheritable capabilities.
    pub cap_inh: u64,
    /// Permitted capabilities.
    pub cap_prm: u64,
    /// Effective capabilities.
    pub cap_eff: u64,
    /// The bounding set.
    pub cap_bnd: u64,
    /// Ambient capabilities.
    pub cap_amb: u64,
    /// no_new_privs is set.
    pub no_new_privs: bool,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// How many filters.
    pub seccomp_filters: u32,
    /// Transparent huge pages are not disabled for it.
    pub thp_enabled: bool,
}

/// `1234 kB`.
fn kib(value: &str) -> u64 {
    value.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl Status {
    /// Whether what the kernel does for every page of the process takes long.
    pub fn is_large(&self) -> bool {
        Self::are_large([self])
    }

    /// The same for every page of several processes.
    pub fn are_large<'a>(all: impl IntoIterator<Item = &'a Status>) -> bool {
        all.into_iter().map(|status| status.resident).sum::<u64>() >= LARGE
    }

    /// Reads what there is; a field that the kernel does not show stays at its default.
    pub fn parse(text: &[u8]) -> Status {
        let mut status = Status { thp_enabled: true, ..Status::default() };
        for line in text.split(|&b| b == b'\n') {
            let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
            if let Some(name) = line.strip_prefix(b"Name:\t") {
                status.name = unescaped(name);
                continue;
            }
            // The name, which a hostile task chooses, is the first line and escapes its newlines: no field can be forged.
            let Ok(value) = std::str::from_utf8(&line[colon + 1..]) else { continue };
            status.take(&line[..colon], value.trim());
        }
        status
    }

    /// It is a zombie, or less.
    pub fn ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    fn take(&mut self, name: &[u8], value: &str) {
        let hex = || u64::from_str_radix(value, 16).unwrap_or(0);
        match name {
            b"State" => self.state = value.chars().next().unwrap_or('?'),
            b"Umask" => self.umask = u32::from_str_radix(value, 8).unwrap_or(0),
            b"Tgid" => self.tgid = value.parse().unwrap_or(0),
            b"PPid" => self.ppid = value.parse().unwrap_or(0),
            b"TracerPid" => self.tracer = value.parse().unwrap_or(0),
            b"NStgid" => self.ns_tgid = list(value),
            b"NSpid" => self.ns_pid = list(value),
            b"NSpgid" => self.ns_pgid = list(value),
            b"NSsid" => self.ns_sid = list(value),
            b"Uid" => self.uid = four(value),
            b"Gid" => self.gid = four(value),
            b"Groups" => self.groups = list(value),
            b"VmRSS" => self.resident = kib(value),
            b"VmSize" => self.mapped = kib(value),
            b"VmData" => self.data = kib(value),
            b"Threads" => self.threads = value.parse().unwrap_or(0),
            b"SigPnd" => self.sig_pnd = hex(),
            b"ShdPnd" => self.shd_pnd = hex(),
            b"SigBlk" => self.sig_blk = hex(),
            b"SigIgn" => self.sig_ign = hex(),
            b"SigCgt" => self.sig_cgt = hex(),
            b"CapInh" => self.cap_inh = hex(),
            b"CapPrm" => self.cap_prm = hex(),
            b"CapEff" => self.cap_eff = hex(),
            b"CapBnd" => self.cap_bnd = hex(),
            b"CapAmb" => self.cap_amb = hex(),
            b"NoNewPrivs" => self.no_new_privs = value == "1",
            b"Seccomp" => self.seccomp = value.parse().unwrap_or(0),
            b"Seccomp_filters" => self.seccomp_filters = value.parse().unwrap_or(0),
            b"THP_enabled" => self.thp_enabled = value == "1",
            _ => {}
        }
    }
}

/// A command name may be any bytes; of these the kernel writes a newline and a backslash with a backslash before.
fn unescaped(name: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.iter();
    while let Some(&byte) = rest.next() {
        bytes.push(match byte {
            b'\\' if rest.next() == Some(&b'n') => b'\n',
            byte => byte,
        });
    }
    String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned()
}

fn list<T: std::str::FromStr>(value: &str) -> Vec<T> {
    value.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn four(value: &str) -> [u32; 4] {
    list(value).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_read_as_it_is() {
        let status = Status::parse(&std::fs::read("/proc/self/status").unwrap());
        assert_eq!(status.tgid, std::process::id().cast_signed());
        assert_eq!(status.uid[1], nix::unistd::geteuid().as_raw());
        assert_eq!(status.ns_tgid.last(), Some(&std::process::id().cast_signed()));
        assert!(status.cap_bnd != 0 && status.threads >= 1);
    }

    #[test]
    fn a_name_is_read_as_it_was_given() {
        let name = |text: &[u8]| Status::parse(text).name;
        assert_eq!(name(b"Name:\t a\\\\n\\nb: \nState:\tS"), " a\\n\nb:");
        assert_eq!(name(b"Name:\t\\"), "\\");
    }

    #[test]
    fn a_name_forges_no_field() {
        let status =
            Status::parse(b"Name:\tx\\nUid:\t7\t7\t7\t7\nUmask:\t0027\nUid:\t1\t2\t3\t4\nGroups:\t \n");
        assert_eq!(status.name, "x\nUid:\t7\t7\t7\t7");
        assert_eq!((status.uid, status.umask, status.groups.len()), ([1, 2, 3, 4], 0o027, 0));
    }
}
