//! The two libraries against the real socket.

use super::{JobApi, VARIABLE, Wish};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// A job that uses the library in Python, and one in C, do the same.
const SCRIPT: &str = r#"
import sys; sys.path.insert(0, sys.argv[1])
import ckrun
log = lambda *words: print(*words, flush=True)
job = ckrun.open()
log("under", job is not None)
if not job: sys.exit()
log(job.id, job.generation)
job.callbacks(lambda: "busy" if job.generation == 6 else log("before"), lambda restarted: log("after", restarted))
job.forbid("flashing"); job.allow()
try: log("restarted", job.checkpoint("one", leave_running=True))
except ckrun.Error as error: log("failed", error)
try: log("restarted", job.checkpoint("two"))
except ckrun.Error as error: log("failed", error)
try: job.checkpoint("a/b")
except ckrun.Error as error: log("refused", error)
"#;

const PROGRAM: &str = r#"
#include <stdio.h>
#include "ckrun.h"
static const char *before(void *job) {
    if (ckrun_job_generation(job) == 6) return "busy";
    puts("before"); return NULL;
}
static void after(int restarted, void *job) { (void)job; printf("after %s\n", restarted ? "True" : "False"); }
static void take(ckrun_job *job, const char *name, int leave) {
    int side = ckrun_job_checkpoint(job, name, leave);
    if (side < 0) printf("failed %s\n", ckrun_job_error(job));
    else printf("restarted %s\n", side ? "True" : "False");
}
int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    ckrun_job *job = ckrun_job_open();
    printf("under %s\n", job ? "True" : "False");
    if (!job) return ckrun_job_forbid(job, "x") + 1;
    printf("%s %ld\n", ckrun_job_id(job), ckrun_job_generation(job));
    if (ckrun_job_callbacks(job, before, after, job)) return 1;
    if (ckrun_job_forbid(job, "flashing") || ckrun_job_allow(job)) return 1;
    take(job, "one", CKRUN_LEAVE_RUNNING);
    take(job, "two", CKRUN_END);
    if (ckrun_job_checkpoint(job, "a/b", 0) < 0) printf("refused %s\n", ckrun_job_error(job));
    return 0;
}
"#;

struct Jobs {
    dir: tempfile::TempDir,
    kit: PathBuf,
}

impl Jobs {
    fn new() -> Jobs {
        let dir = tempfile::tempdir().unwrap();
        let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/job");
        let source = dir.path().join("job.c");
        std::fs::write(&source, PROGRAM).unwrap();
        let mut compiler = Command::new("cc");
        compiler
            .arg("-I")
            .arg(&kit)
            .arg("-o")
            .arg(dir.path().join("job"))
            .arg(source)
            .arg(kit.join("ckrun.c"));
        assert!(compiler.status().unwrap().success());
        Jobs { dir, kit }
    }

    /// Both of them.
    fn commands(&self) -> [Command; 2] {
        let mut python = Command::new("python3");
        python.args(["-B", "-c", SCRIPT]).arg(&self.kit);
        [python, Command::new(self.dir.path().join("job"))]
    }

    fn start(&self, mut command: Command, log: &str) -> Child {
        let log = std::fs::File::create(self.dir.path().join(log)).unwrap();
        command.env(VARIABLE, self.socket()).stdout(log).spawn().unwrap()
    }

    fn bind(&self, generation: u64) -> JobApi {
        JobApi::bind(self.dir.path(), "socket", "tb1", generation).unwrap().0
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn said(&self, log: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join(log)).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

fn next(api: &mut JobApi) -> Wish {
    loop {
        let mut polled: Vec<_> = api.polled().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        assert!(poll(&mut polled, PollTimeout::from(30_000_u16)).unwrap() > 0, "nothing came");
        if let Some(wish) = api.attend() {
            return wish;
        }
    }
}

/// The job asks for no more checkpoints.
fn attend_until_the_end(api: &mut JobApi, job: &mut Child) {
    let process = ckrun_virt::Process::open_now(Pid::from_raw(job.id().cast_signed())).unwrap();
    loop {
        let all = api.polled().chain([process.as_fd()]);
        let mut polled: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        assert!(poll(&mut polled, PollTimeout::from(30_000_u16)).unwrap() > 0, "nothing came");
        if polled.last().unwrap().any() == Some(true) {
            assert!(job.wait().unwrap().success());
            return;
        }
        assert_eq!(api.attend(), None);
    }
}

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_job_sees_both_sides_of_its_checkpoints() {
    let jobs = Jobs::new();
    for command in jobs.commands() {
        let mut api = jobs.bind(4);
        let mut job = jobs.start(command, "log");
        assert_eq!(next(&mut api), Wish { name: "one".into(), leave_running: true });
        api.begun(Ok(()));
        api.before(LIMIT).unwrap();
        api.after();
        api.ended(Ok(()));
        assert_eq!(next(&mut api), Wish { name: "two".into(), leave_running: false });
        api.begun(Ok(()));
        api.before(LIMIT).unwrap();
        // The job is killed, and restarted from its image: its end of the connection is closed.
        let mut restarted = jobs.bind(5);
        drop(api);
        attend_until_the_end(&mut restarted, &mut job);
        let refused = "refused \"a/b\": a checkpoint's name has no slash and up to 200 bytes";
        let expected = [
            "under True",
            "tb1 4",
            "before",
            "after False",
            "restarted False",
            "before",
            "after True",
            "restarted True",
            refused,
        ];
        assert_eq!(jobs.said("log"), expected);
    }
}

#[test]
fn a_veto_and_a_failure_reach_both_sides() {
    let jobs = Jobs::new();
    for command in jobs.commands() {
        let mut api = jobs.bind(6);
        let mut job = jobs.start(command, "log");
        next(&mut api);
        api.begun(Ok(()));
        assert_eq!(api.before(LIMIT).unwrap_err(), "the job says no: busy");
        api.after();
        api.ended(Err("the job says no:\nbusy".into()));
        next(&mut api);
        api.begun(Err("no room".into()));
        attend_until_the_end(&mut api, &mut job);
        let said = jobs.said("log");
        assert_eq!(said[2..5], ["after False", "failed the job says no: busy", "failed no room"], "{said:?}");
    }
}

#[test]
fn a_job_that_is_not_under_ckrun_is_told_so() {
    let jobs = Jobs::new();
    for command in jobs.commands() {
        assert!(jobs.start(command, "log").wait().unwrap().success());
        assert_eq!(jobs.said("log"), ["under False"]);
    }
}

/// A connection that only speaks the protocol.
fn connect(jobs: &Jobs, api: &mut JobApi) -> std::os::unix::net::UnixStream {
    let stream = std::os::unix::net::UnixStream::connect(jobs.socket()).unwrap();
    api.attend();
    stream
}

#[test]
fn what_is_forbidden_stays_so_until_the_connection_ends() {
    use std::io::Write;
    let jobs = Jobs::new();
    let mut api = jobs.bind(0);
    let mut stream = connect(&jobs, &mut api);
    stream.write_all(b"forbid the flash is being written\n").unwrap();
    // Without being attended to before: what was said first counts.
    let why = api.before(LIMIT).unwrap_err();
    assert_eq!(why, "the job has forbidden checkpoints: the flash is being written");
    drop(stream);
    api.before(LIMIT).unwrap();
}

#[test]
fn one_that_does_not_answer_is_not_waited_for_longer_than_said() {
    use std::io::Write;
    let jobs = Jobs::new();
    let mut api = jobs.bind(0);
    let mut silent = connect(&jobs, &mut api);
    silent.write_all(b"callbacks\n").unwrap();
    let why = api.before(Duration::from_millis(20)).unwrap_err();
    assert_eq!(why, "the job has not answered within 0.02 s");
    // Nor is one that sends no end of a line.
    let mut endless = connect(&jobs, &mut api);
    let _ = endless.write_all(&[b'x'; 8192]);
    api.attend();
    drop(silent);
    api.before(LIMIT).unwrap();
}
