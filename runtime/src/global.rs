//! The options that every verb takes.

use clap::ValueEnum;
use std::path::PathBuf;

/// Options that every verb takes, before or after its name.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Directory of the containers' state [default: /run/ckrun, for ordinary users $XDG_RUNTIME_DIR/ckrun]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Write errors and warnings to this file (errors go to stderr too)
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Form of the lines in the log
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Say what is being done, and how long it took
    #[arg(long, global = true)]
    pub debug: bool,
    /// Let systemd make the cgroups; linux.cgroupsPath is then "slice:prefix:name"
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
    /// Who manages cgroups
    #[arg(long, global = true, value_enum, value_name = "MANAGER")]
    pub cgroup_manager: Option<CgroupManager>,
    /// Directory of the manifests of plugins
    #[arg(long, global = true, value_name = "DIR", default_value = crate::plugin::manifest::DIR)]
    pub plugin_dir: PathBuf,
    /// Ignore denied cgroup access and the like: true, false, or auto (when not root); before the verb
    #[arg(long, value_name = "BOOL", default_value = "auto", hide_default_value = true)]
    pub rootless: Rootless,
    /// Taken for compatibility; ckrun needs no criu
    #[arg(long, global = true, value_name = "PATH", hide = true)]
    pub criu: Option<PathBuf>,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, as runc's clients parse it.
    Json,
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CgroupManager {
    /// ckrun, in the cgroup file system.
    Cgroupfs,
    /// systemd.
    Systemd,
    /// Nobody: the container stays in the caller's cgroups.
    Disabled,
}

/// The answer to `--rootless`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rootless {
    /// When ckrun is not run by the host's root.
    Auto,
    /// Yes.
    True,
    /// No.
    False,
}

impl Global {
    /// Whether ckrun has to do without the host's root.
    pub fn is_rootless(&self) -> bool {
        match self.rootless {
            Rootless::Auto => !crate::user::is_host_root(),
            Rootless::True => true,
            Rootless::False => false,
        }
    }

    /// Whether systemd makes the cgroups.
    pub fn systemd(&self) -> bool {
        self.systemd_cgroup || self.cgroup_manager == Some(CgroupManager::Systemd)
    }
}
