//! The command line: runc's, since that is what podman, containerd, Docker and Slurm call.

use crate::verbs;
use clap::{Parser, Subcommand, ValueEnum};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Run OCI containers whose jobs can be moved between hosts and hardware emulators
///
/// ckrun takes a bundle (a directory with a config.json and a root file system, as the OCI runtime-spec describes it) and
/// runs it as a container. It speaks runc's command line, so that podman, containerd, Docker, CRI-O and Slurm can use
/// it in place of runc or crun.
#[derive(Debug, Parser)]
#[command(
    name = "ckrun",
    version = version(),
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = false,
    after_help = "Examples:\n  \
        ckrun run bundle/                     run a bundle in the foreground under a name made up for it\n  \
        ckrun create -b bundle/ web           build the sandbox; `ckrun start web` starts the job in it\n  \
        ckrun exec -t web /bin/sh             a shell in the running container\n  \
        ckrun kill web TERM; ckrun delete web\n\n\
        `ckrun help VERB` tells all about one verb."
)]
pub struct Cli {
    /// What holds for every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

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

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Run(verbs::run::Args),
    Create(verbs::create::Args),
    Start(verbs::start::Args),
    State(verbs::state::Args),
    Kill(verbs::kill::Args),
    Delete(verbs::delete::Args),
    Exec(verbs::exec::Args),
    List(verbs::list::Args),
    Ps(verbs::ps::Args),
    Pause(verbs::pause::Args),
    Resume(verbs::resume::Args),
    Update(verbs::update::Args),
    Events(verbs::events::Args),
    Spec(verbs::spec::Args),
    Features(verbs::features::Args),
    Completions(verbs::completions::Args),
}

/// The first line is "NAME version X", the second "commit: Y": `docker info` parses both.
fn version() -> &'static str {
    concat!("version ", env!("CARGO_PKG_VERSION"), "\ncommit: ", env!("CKRUN_COMMIT"), "\nspec: 1.3.0")
}

/// The arguments in the form that the parser knows.
///
/// runc's flag library takes a long option with one dash as well, and containerd's shim relies on it (`-no-subreaper`).
/// Here `-word` gets its second dash if `--word` is an option of ours. What follows the command of `exec` is not ours.
pub fn normalise(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = args.into_iter().collect();
    let mut positional = 0;
    let mut exec = false;
    for word in words.iter_mut().skip(1) {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            break;
        }
        if let Some(name) = bytes.strip_prefix(b"-").filter(|n| n.len() > 1 && n[0] != b'-') {
            if SINGLE_DASH.iter().any(|long| name.split(|b| *b == b'=').next() == Some(long.as_bytes())) {
                *word = OsString::from_vec([b"--", name].concat());
            }
            continue;
        }
        if !bytes.starts_with(b"-") {
            exec |= positional == 0 && word.as_os_str() == OsStr::new("exec");
            positional += 1;
            // The verb, the id, the command: from there on the words are the job's.
            if exec && positional > 2 {
                break;
            }
        }
    }
    words
}

/// Long options that clients are known to write with one dash.
const SINGLE_DASH: &[&str] = &[
    "all",
    "bundle",
    "console-socket",
    "cwd",
    "debug",
    "detach",
    "env",
    "force",
    "format",
    "keep",
    "log",
    "log-format",
    "no-new-keyring",
    "no-pivot",
    "no-subreaper",
    "pid-file",
    "preserve-fds",
    "process",
    "quiet",
    "resources",
    "root",
    "rootless",
    "stats",
    "systemd-cgroup",
    "tty",
    "user",
];

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(normalise(words(line))).unwrap()
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_calls_of_the_clients_parse() {
        for line in [
            "ckrun --root /r --log /b/log.json --log-format json create --bundle /b --pid-file /b/init.pid web",
            "ckrun --root /r create --bundle /b --pid-file /p --no-pivot --no-new-keyring --preserve-fds 2 --console-socket /s x",
            "ckrun --systemd-cgroup start x",
            "ckrun kill --all x 9",
            "ckrun kill x SIGTERM",
            "ckrun --rootless=false --debug delete --force x",
            "ckrun exec --pid-file /p --process /q --detach --tty --console-socket /s x",
            "ckrun --debug exec x /bin/ls -l --all",
            "ckrun exec --user 1:2 --cap CAP_KILL --env A=b --cwd / -t x sh -c true",
            "ckrun update --resources=- x",
            "ckrun update --resources - x",
            "ckrun ps --format json x",
            "ckrun events --stats x",
            "ckrun events --interval=5s x",
            "ckrun list --format=json",
            "ckrun create x --bundle /b",
            "ckrun run x -b /b",
            "ckrun run -b /b x",
            "ckrun run /b",
            "ckrun create --bundle /b -no-subreaper --pid-file /p x",
            "ckrun --cgroup-manager disabled state x",
        ] {
            let _ = parse(line);
        }
    }

    #[test]
    fn the_words_of_the_job_stay_as_they_are() {
        assert_eq!(normalise(words("ckrun exec x find -all -log")), words("ckrun exec x find -all -log"));
        assert_eq!(normalise(words("ckrun exec -tty x find -log")), words("ckrun exec --tty x find -log"));
    }
}
