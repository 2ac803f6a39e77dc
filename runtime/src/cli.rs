//! The command line: runc's, since that is what podman, containerd, Docker and Slurm call.

use crate::error::Result;
use crate::global::Global;
use crate::journal::Journal;
use crate::named::{self, Named};
use crate::report::Report;
use crate::state::Store;
use crate::verbs::{self, Context};
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

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

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Run(Named<verbs::run::Args>),
    Create(Named<verbs::create::Args>),
    Start(Named<verbs::start::Args>),
    State(Named<verbs::state::Args>),
    Kill(Named<verbs::kill::Args>),
    Delete(Named<verbs::delete::Args>),
    Exec(Named<verbs::exec::Args>),
    List(Named<verbs::list::Args>),
    Ps(Named<verbs::ps::Args>),
    Pause(Named<verbs::pause::Args>),
    Resume(Named<verbs::resume::Args>),
    Checkpoint(Named<verbs::checkpoint::Args>),
    Restore(Named<verbs::restore::Args>),
    Migrate(Named<verbs::migrate::Args>),
    Update(Named<verbs::update::Args>),
    Events(Named<verbs::events::Args>),
    Ids(Named<verbs::ids::Args>),
    Inspect(Named<verbs::inspect::Args>),
    Image(Named<verbs::image::Args>),
    Plugin(Named<verbs::plugin::Args>),
    Spec(Named<verbs::spec::Args>),
    Features(Named<verbs::features::Args>),
    Completions(Named<verbs::completions::Args>),
    ClearAway(Named<verbs::clear_away::Args>),
    Supervise(Named<verbs::supervise::Args>),
}

impl Cli {
    /// Reads a command line.
    ///
    /// # Errors
    /// What is wrong with it, or the help that it asks for.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> std::result::Result<Cli, clap::Error> {
        let words = normalise(words);
        named::only::<Verb>(&words);
        Cli::try_parse_from(words)
    }

    /// The journal of a verb that keeps one.
    pub fn journal(&self) -> Option<Journal> {
        match &self.verb {
            Verb::Checkpoint(Named(args)) => args.journal(),
            Verb::Restore(Named(args)) => args.journal(),
            _ => None,
        }
    }

    /// Carries it out. The answer is ckrun's exit status.
    pub fn run(self, report: &Report) -> Result<i32> {
        let store = Store::new(self.global.root.clone());
        let context = Context { global: self.global, store, report: report.clone() };
        let done = |result: Result<()>| result.map(|()| 0);
        match self.verb {
            Verb::Run(Named(args)) => verbs::run::run(args, &context),
            Verb::Create(Named(args)) => done(verbs::create::run(args, &context)),
            Verb::Start(Named(args)) => done(verbs::start::run(&args, &context)),
            Verb::State(Named(args)) => done(verbs::state::run(&args, &context)),
            Verb::Kill(Named(args)) => done(verbs::kill::run(&args, &context)),
            Verb::Delete(Named(args)) => done(verbs::delete::run(&args, &context)),
            Verb::Exec(Named(args)) => verbs::exec::run(args, &context),
            Verb::List(Named(args)) => done(verbs::list::run(&args, &context)),
            Verb::Ps(Named(args)) => verbs::ps::run(&args, &context),
            Verb::Pause(Named(args)) => done(verbs::pause::run(&args, &context)),
            Verb::Resume(Named(args)) => done(verbs::resume::run(&args, &context)),
            Verb::Checkpoint(Named(args)) => verbs::checkpoint::run(&args, &context),
            Verb::Restore(Named(args)) => verbs::restore::run(&args, &context),
            Verb::Migrate(Named(args)) => done(verbs::migrate::run(&args, &context)),
            Verb::Update(Named(args)) => done(verbs::update::run(&args, &context)),
            Verb::Events(Named(args)) => done(verbs::events::run(&args, &context)),
            Verb::Ids(Named(args)) => done(verbs::ids::run(&args, &context)),
            Verb::Inspect(Named(args)) => done(verbs::inspect::run(&args)),
            Verb::Image(Named(args)) => done(verbs::image::run(args)),
            Verb::Plugin(Named(args)) => verbs::plugin::run(args, &context),
            Verb::Spec(Named(args)) => done(verbs::spec::run(&args)),
            Verb::Features(Named(args)) => done(verbs::features::run(&args)),
            Verb::Supervise(Named(args)) => done(verbs::supervise::run(&args)),
            Verb::ClearAway(Named(args)) => done(verbs::clear_away::run(&args, &context)),
            Verb::Completions(Named(args)) => done(verbs::completions::run(&args, Cli::command())),
        }
    }
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
    "auto-dedup",
    "bundle",
    "console-socket",
    "cwd",
    "debug",
    "detach",
    "empty-ns",
    "env",
    "ext-unix-sk",
    "file-locks",
    "force",
    "format",
    "image-path",
    "keep",
    "lazy-pages",
    "leave-running",
    "link-remap",
    "log",
    "log-format",
    "lsm-mount-context",
    "lsm-profile",
    "manage-cgroups-mode",
    "no-new-keyring",
    "no-pivot",
    "no-subreaper",
    "page-server",
    "parent-path",
    "pid-file",
    "pre-dump",
    "preserve-fds",
    "process",
    "quiet",
    "resources",
    "root",
    "rootless",
    "shell-job",
    "stats",
    "status-fd",
    "systemd-cgroup",
    "tcp-close",
    "tcp-established",
    "tcp-skip-in-flight",
    "tty",
    "user",
    "work-path",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
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
            "ckrun checkpoint x",
            "ckrun checkpoint --image-path i --work-path w --leave-running --leave-running --tcp-established x",
            "ckrun checkpoint --image-path i --work-path w --file-locks --pre-dump --parent-path ../pre-checkpoint x",
            "ckrun --root /r checkpoint --image-path i --work-path w --tcp-established --ext-unix-sk --shell-job \
             --file-locks --manage-cgroups-mode soft --empty-ns network --empty-ns network --lazy-pages \
             --page-server 10.0.0.1:27 --status-fd 3 --parent-path p --leave-running --pre-dump x",
            "ckrun checkpoint x --dry-run --json --tcp-skip-in-flight --tcp-close --link-remap --auto-dedup",
            "ckrun checkpoint -image-path i -leave-running x",
            "ckrun restore --bundle b --pid-file f --no-pivot --no-new-keyring --detach --image-path i --work-path w \
             --tcp-established --file-locks --lsm-profile selinux:l --lsm-mount-context=l --console-socket s x",
            "ckrun restore --image-path i --work-path w --empty-ns network --detach --pid-file f -no-subreaper --bundle b x",
            "ckrun restore -d -b b --preserve-fds 2 --keep --dry-run --json --changed-files ignore \
             --changed-files /var/log/a=truncate x",
            "ckrun image pack --compress gzip /images/web web.tar.gz",
            "ckrun image unpack web.tar.zst web",
            "ckrun plugin check --json --deadline 0.5 --grant memory,signals ./softemu:slot=3,server=emu-b:7000",
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
