//! `ckrun migrate`: move a running job to another host.

use super::carry::needs_root;
use super::checkpoint::milliseconds;
use super::subject::{Subject, Taker};
use super::{Context, print_json, print_line};
use crate::error::{Error, Result};
use crate::progress::{Progress, size};
use ckrun_virt::image::{Image, stream};
use ckrun_virt::owned::Outward;
use ckrun_virt::{Doing, Failure};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Move a running job to another host
///
/// The job is stopped and written to an image, the image is sent, and the other host's ckrun makes the job of it. Here it
/// is ended when it runs there; if that fails, it goes on here. The bundle must be there, by default at the same path.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ckrun migrate --to emuhost-b web\n  \
        ckrun migrate --to b --via 'ssh -p 2222' web -- --bundle /srv/web --map /dev/emu0=/dev/pts/31\n  \
        ckrun migrate --to ns-b --via 'ip netns exec' --ckrun 'ckrun --root /run/ckrun-b' web")]
pub struct Args {
    /// The host
    #[arg(long, value_name = "HOST")]
    to: OsString,
    /// The command that runs another there; HOST and that command's words follow
    #[arg(long, value_name = "COMMAND", default_value = "ssh")]
    via: String,
    /// The ckrun there, with options if need be
    #[arg(long, value_name = "COMMAND", default_value = "ckrun")]
    ckrun: String,
    /// Directory for the image, which is kept [default: a new one below /var/tmp, which is removed]
    #[arg(long, value_name = "DIR")]
    image_path: Option<PathBuf>,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    /// The container's name, here and there
    #[arg(value_name = "ID")]
    id: String,
    /// Options for the restart there, as `ckrun restore` takes them
    #[arg(last = true, value_name = "RESTORE-OPTION")]
    restore: Vec<OsString>,
}

/// Carries it out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    needs_root("migrate")?;
    let began = Instant::now();
    let image = args.image_path.clone().unwrap_or_else(|| fresh(&args.id));
    let subject = Subject::find(context, "migrate", &args.id, &image, false, Outward::default())?;
    let mut moving = Move::by(args.there(&subject.state.bundle), &image, args.image_path.is_some());
    let taken = subject.take(&mut moving);
    let unsure = moving.given && !moving.runs;
    if !moving.kept
        && !unsure
        && let Err(e) = std::fs::remove_dir_all(&moving.image)
    {
        log::debug!("remove {}: {e}", moving.image.display());
    }
    if unsure {
        return Err(Error::Unheard { host: args.to.clone(), image: moving.image });
    }
    let report = taken.map_err(|e| match moving.given {
        true => e,
        false => Error::NotMoved { host: args.to.clone(), why: e.to_string() },
    })?;
    let total = milliseconds(began.elapsed());
    if args.json {
        return print_json(&json!({
            "to": args.to.to_string_lossy(),
            "frozenMs": milliseconds(report.frozen),
            "checkpointMs": milliseconds(report.total.saturating_sub(moving.sent + moving.restored)),
            "transferMs": milliseconds(moving.sent),
            "restoreMs": milliseconds(moving.restored),
            "totalMs": total,
            "bytes": moving.bytes,
            "processes": report.processes,
            "threads": report.threads,
        }));
    }
    print_line(&format!(
        "{} runs on {}: {} processes, {}; sent in {:.1} ms, restored in {:.1} ms, {total:.1} ms in all",
        args.id,
        args.to.display(),
        report.processes,
        size(moving.bytes),
        milliseconds(moving.sent),
        milliseconds(moving.restored),
    ))
}

impl Args {
    /// The command that receives the job.
    fn there(&self, bundle: &Path) -> Command {
        let mut remote: Vec<OsString> = self.ckrun.split_whitespace().map(OsString::from).collect();
        remote.extend(["restore", "--handover", "--detach", "--image-path"].map(OsString::from));
        remote.extend([fresh(&self.id).into(), "--bundle".into(), bundle.into()]);
        remote.extend(self.restore.iter().cloned());
        remote.push(self.id.clone().into());
        let via: Vec<&str> = self.via.split_whitespace().collect();
        let program = via.first().copied().unwrap_or("ssh");
        let mut command = Command::new(program);
        command.args(via.iter().skip(1)).arg(&self.to).stdin(Stdio::piped()).stdout(Stdio::piped());
        // ssh joins its words with spaces, and a shell there takes them apart again.
        if Path::new(program).file_name() == Some(OsStr::new("ssh")) {
            command.arg("--").args(remote.iter().map(|word| quoted(word)));
        } else {
            command.args(remote);
        }
        command
    }
}

/// A word that a shell takes for exactly this word.
fn quoted(word: &OsStr) -> OsString {
    let mut bytes = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => bytes.extend(b"'\\''"),
            other => bytes.push(other),
        }
    }
    bytes.push(b'\'');
    OsString::from_vec(bytes)
}

/// A directory that is not there yet, on either side.
fn fresh(id: &str) -> PathBuf {
    Path::new("/var/tmp").join(format!("ckrun-{id}-{:016x}", RandomState::new().build_hasher().finish()))
}

/// A move under way.
struct Move {
    there: Command,
    /// Where the image is, and whether somebody wants to have it.
    image: PathBuf,
    kept: bool,
    talk: Option<Talk>,
    /// Until the other side had the image.
    sent: Duration,
    /// From then on until the job ran.
    restored: Duration,
    /// The bytes of the image.
    bytes: u64,
    /// The job is the other side's.
    given: bool,
    /// The other side has said that the job runs.
    runs: bool,
}

/// The other side.
struct Talk {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// What comes on standard error.
    complaints: File,
    since: Instant,
}

impl Move {
    fn by(there: Command, image: &Path, kept: bool) -> Move {
        let (image, none) = (image.to_owned(), Duration::ZERO);
        Move {
            there,
            image,
            kept,
            talk: None,
            sent: none,
            restored: none,
            bytes: 0,
            given: false,
            runs: false,
        }
    }

    /// From now on the image may be all that there is of the job, which is about to be killed here: the guardian does not
    /// find it under another name.
    fn rescue(&mut self) {
        let mut name = self.image.clone().into_os_string();
        name.push("-given");
        match std::fs::rename(&self.image, &name) {
            Ok(()) => self.image = name.into(),
            Err(e) => log::warn!("rename {}: {e}", self.image.display()),
        }
    }
}

impl Taker for Move {
    fn keeps(&self) -> bool {
        self.kept
    }

    /// Sends the image, and waits until the job is made there.
    fn committed(&mut self, image: &Path) -> Result<()> {
        let began = Instant::now();
        let program = self.there.get_program().to_owned();
        // Not a pipe, which nobody would empty.
        let complaints = memfd_create(c"complaints", MFdFlags::MFD_CLOEXEC).doing(|| "make a memfd")?;
        let complaints = File::from(complaints);
        let theirs = complaints.try_clone().doing(|| "duplicate a descriptor")?;
        let spawned = self.there.stderr(theirs).spawn();
        let mut child = spawned.map_err(|e| Error::file(Path::new(&program), &e))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::new("talk to the other host", Errno::EPIPE).into());
        };
        let mut talk = Talk { child, to, from: BufReader::new(from), complaints, since: began };
        let image = Image::open(image)?;
        let (all, mut progress) = (image.manifest().size(), Progress::new("send"));
        let sent = stream::send(&image, &mut talk.to, &mut |done| progress.update(done, all));
        drop(progress);
        talk.since = Instant::now();
        self.sent = talk.since - began;
        // Whoever has closed the other end in the middle has said why.
        if !talk.hears("ready") {
            return Err(talk.refused());
        }
        self.bytes = sent?;
        self.talk = Some(talk);
        if !self.kept {
            self.rescue();
        }
        Ok(())
    }

    /// Gives the job away.
    fn doomed(&mut self) {
        let Some(mut talk) = self.talk.take() else { return };
        self.given = true;
        self.runs = talk.to.write_all(b"go\n").is_ok() && talk.hears("running");
        self.restored = talk.since.elapsed();
        let (_, complaints) = talk.end();
        complaints.lines().for_each(|line| log::warn!("{line}"));
    }
}

impl Talk {
    fn hears(&mut self, word: &str) -> bool {
        let mut line = String::new();
        matches!(self.from.read_line(&mut line), Ok(1..)) && line.trim_end() == word
    }

    /// The other side has not taken the job.
    fn refused(self) -> Error {
        let (how, complaints) = self.end();
        let why = complaints.lines().last().map(|line| line.trim_start_matches("error: ")).unwrap_or(&how);
        Error::Init(why.to_owned())
    }

    /// How it has ended, and what it has complained of.
    fn end(self) -> (String, String) {
        let Talk { mut child, to, from, mut complaints, .. } = self;
        drop((to, from));
        let how = child.wait().map_or_else(|e| e.to_string(), |end| end.to_string());
        let mut text = Vec::new();
        // What can't be read was not said.
        let _ = complaints.rewind().and_then(|()| complaints.read_to_end(&mut text));
        (how, String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_a_quoted_word_for_itself() {
        for word in ["plain", "two words", "it's", "$HOME `x` \"y\"", "", "a\nb"] {
            let mut script = OsString::from("printf %s ");
            script.push(quoted(OsStr::new(word)));
            let said = Command::new("sh").arg("-c").arg(script).output().unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), word);
        }
    }
}
