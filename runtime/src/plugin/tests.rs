//! Several plugins of one job: who hears of what, in which order, and what follows when one fails.

use super::area::Area;
use super::calls::Calls;
use super::company::{Company, Folder, Kept};
use super::failed::{Failed, Why};
use super::manifest::Manifest;
use crate::error::{Error, Result};
use ckrun_plugin::call::{Answer, Call};
use ckrun_plugin::number::Bytes;
use ckrun_plugin::{After, Event, Fault, Grant, Job, Level, Reason};
use nix::poll::{PollFd, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use serde_json::{Map, json};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A plugin that writes down what it hears and does `how` at the event `at`.
const SCRIPT: &str = r#"
name=$0 log=$1 how=$2 at=$3
while IFS= read -r line <&3; do
    id=$(printf %s "$line" | sed -n 's/.*"id":\([0-9][0-9]*\).*/\1/p')
    [ "$id" ] || continue
    method=$(printf %s "$line" | sed 's/.*"method":"\([a-z]*\)".*/\1/')
    echo "$name $method" >> "$log"
    result={}
    case $method in
        hello)
            case $how in
                late | greedy) result='{"protocol":"1.0","deadlines":{"'$at'":0.3}}' ;;
                *) result='{"protocol":"1.0"}' ;;
            esac ;;
        init | restart) result='{"bindings":[{"kind":"device","virtual":"/dev/'$name'","real":"/dev/null"}]}' ;;
    esac
    answer='{"jsonrpc":"2.0","id":'$id',"result":'$result'}'
    if [ "$method" = "$at" ]; then
        case $how in
            veto) answer='{"jsonrpc":"2.0","id":'$id',"error":{"code":1,"message":"busy"}}' ;;
            late) IFS= read -r cancel <&3 ;;
            put) answer=$answer'
{"jsonrpc":"2.0","id":"p","method":"put","params":{"key":"k","value":7}}' ;;
            meet)
                echo '{"jsonrpc":"2.0","id":"b","method":"barrier","params":{"name":"x"}}' >&3
                IFS= read -r said <&3
                case $said in *error*) echo "$name alone" >> "$log" ;; *) echo "$name met" >> "$log" ;; esac ;;
            same) answer='{"jsonrpc":"2.0","id":'$id',"result":{"bindings":[{"kind":"device","virtual":"/dev/a","real":"/dev/null"}]}}' ;;
            greedy) yes '{"jsonrpc":"2.0","id":1,"method":"read","params":{"pid":1,"address":"0x0","length":524288}}' >&3 ;;
            forget) answer='{"jsonrpc":"2.0","id":'$id',"result":{}}' ;;
        esac
    fi
    printf '%s\n' "$answer" >&3
    [ "$method" = exit ] && exit
done
"#;

/// Keeps what is put, and counts what is read.
#[derive(Default)]
struct Keeper {
    area: Area,
    reads: usize,
}

impl Calls for Keeper {
    fn call(&mut self, _: &str, _: Option<Event>, call: Call) -> Result<Answer, Fault> {
        match call {
            Call::Put(put) => self.area.put(put.key, put.value).map(|()| Answer::Nothing {}),
            Call::Read(read) => {
                self.reads += 1;
                Ok(Answer::Data { data: Bytes(vec![0; usize::try_from(read.length).unwrap()]) })
            }
            other => panic!("{other:?}"),
        }
    }

    fn log(&mut self, _: &str, _: Level, _: &str) {}
}

struct Trio {
    dir: tempfile::TempDir,
    company: Company,
    calls: Keeper,
}

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

impl Trio {
    /// Plugins a, b, c; each does something at an event.
    fn new(each: [(&str, &str); 3]) -> Trio {
        let dir = tempfile::tempdir().unwrap();
        let manifest = |(name, (how, at)): (&str, (&str, &str))| {
            let log = dir.path().join("log").to_str().unwrap().to_owned();
            let command = ["/bin/sh", "-c", SCRIPT, name, &log, how, at].map(str::to_owned).to_vec();
            Manifest {
                name: name.into(),
                command,
                grants: vec![Grant::Memory],
                ..Manifest::of("/bin/sh", Path::new("/nowhere")).unwrap()
            }
        };
        let manifests = ["a", "b", "c"].into_iter().zip(each).map(manifest).collect();
        let job = Job { id: "tb".into(), generation: 0, host: "h".into(), bundle: "/b".into() };
        let mut calls = Keeper::default();
        let company = Company::start(job, manifests, |_| Ok(null()), &mut calls).unwrap();
        let mut it = Trio { dir, company, calls };
        assert_eq!(it.heard(), ["a hello", "b hello", "c hello"]);
        it
    }

    /// What was written down since the last time.
    fn heard(&mut self) -> Vec<String> {
        let path = self.dir.path().join("log");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let _ = std::fs::remove_file(path);
        text.lines().map(str::to_owned).collect()
    }

    fn folder(dir: PathBuf, plugin: &str) -> Result<Folder> {
        let path = dir.join(plugin);
        std::fs::create_dir_all(&path).unwrap();
        Ok(Folder { fd: File::open(&path).unwrap().into(), path })
    }

    fn precheckpoint(&mut self) -> Result<Vec<Map<String, serde_json::Value>>> {
        let dir = self.dir.path().to_owned();
        self.company.precheckpoint(|plugin| Trio::folder(dir.clone(), plugin), &mut self.calls)
    }

    fn kept(&self) -> impl FnMut(&str) -> Result<Kept> + use<> {
        let dir = self.dir.path().to_owned();
        move |plugin| {
            let bindings = vec![ckrun_plugin::Binding::device(format!("/dev/{plugin}"), "/dev/null")];
            Ok(Kept { folder: Trio::folder(dir.clone(), plugin)?, requirements: Map::new(), bindings })
        }
    }
}

const QUIET: (&str, &str) = ("", "");

fn plugin(error: Error) -> Failed {
    match error {
        Error::Plugin(failed) => failed,
        other => panic!("{other}"),
    }
}

#[test]
fn checkpoints_go_in_order_and_restarts_in_reverse() {
    let mut it = Trio::new([QUIET; 3]);
    let attached = it.company.init(&mut it.calls).unwrap();
    assert_eq!(attached.len(), 3);
    assert!(it.company.running(After::Init, &mut it.calls).is_empty());
    it.company.presuspend(&mut it.calls).unwrap();
    assert_eq!(it.precheckpoint().unwrap().len(), 3);
    assert!(it.company.committed("/image".as_ref(), &mut it.calls).is_empty());
    assert_eq!(it.company.resume(After::Checkpoint, &mut it.calls).1, []);
    let forwards = ["init", "running", "presuspend", "precheckpoint", "committed"];
    let mut expected: Vec<String> =
        forwards.iter().flat_map(|event| ["a", "b", "c"].map(|name| format!("{name} {event}"))).collect();
    expected.extend(["c", "b", "a"].map(|name| format!("{name} resume")));
    assert_eq!(it.heard(), expected);
    let kept = it.kept();
    assert_eq!(it.company.check(kept, &mut it.calls).unwrap(), []);
    assert_eq!(it.heard(), ["c check", "b check", "a check"]);
    assert!(it.company.exit(Reason::Ended, &mut it.calls).is_empty());
    assert_eq!(it.heard(), ["a exit", "b exit", "c exit"]);
}

#[test]
fn a_checkpoint_that_one_refuses_is_rolled_back() {
    let mut it = Trio::new([QUIET, ("veto", "presuspend"), QUIET]);
    let failed = it.company.presuspend(&mut it.calls).unwrap_err();
    assert!(failed.to_string().starts_with("plugin b: presuspend: veto: busy (after "), "{failed}");
    assert_eq!(it.company.roll_back(&mut it.calls).1, []);
    assert_eq!(it.company.running(After::Failure, &mut it.calls), []);
    let heard = it.heard();
    assert_eq!(heard, ["a presuspend", "b presuspend", "b resume", "a resume", "a running", "b running"]);

    let mut it = Trio::new([QUIET, ("veto", "precheckpoint"), QUIET]);
    it.company.presuspend(&mut it.calls).unwrap();
    assert!(matches!(plugin(it.precheckpoint().unwrap_err()).why, Why::Refused(_)));
    it.company.roll_back(&mut it.calls);
    let heard = it.heard();
    assert_eq!(heard[3..], ["a precheckpoint", "b precheckpoint", "c resume", "b resume", "a resume"]);
}

#[test]
fn a_job_that_one_refuses_is_none() {
    let mut it = Trio::new([QUIET, ("veto", "init"), QUIET]);
    let failed = it.company.init(&mut it.calls).unwrap_err();
    assert_eq!((failed.plugin.as_str(), failed.event), ("b", Some(Event::Init)));
    assert_eq!(it.heard(), ["a init", "b init", "a exit", "b exit"]);
    assert!(it.company.peers().iter().all(|peer| peer.gone().is_some()));

    let mut it = Trio::new([("veto", "restart"), QUIET, QUIET]);
    let kept = it.kept();
    assert_eq!(plugin(it.company.restart(kept, &mut it.calls).unwrap_err()).plugin, "a");
    let mut heard = it.heard();
    heard[3..].sort();
    assert_eq!(heard, ["c restart", "b restart", "a restart", "a exit", "b exit", "c exit"]);
}

#[test]
fn names_are_bound_once_and_again_after_a_restart() {
    let mut it = Trio::new([QUIET, QUIET, ("same", "init")]);
    let failed = it.company.init(&mut it.calls).unwrap_err();
    assert_eq!(failed.why, Why::Answer("/dev/a: plugin a has bound it".into()));
    let mut it = Trio::new([QUIET, ("forget", "restart"), QUIET]);
    let kept = it.kept();
    let failed = plugin(it.company.restart(kept, &mut it.calls).unwrap_err());
    assert_eq!(failed.why, Why::Answer("/dev/b was bound at the checkpoint and is not any more".into()));
}

#[test]
fn plugins_meet_at_a_barrier() {
    let meet = ("meet", "committed");
    let mut it = Trio::new([meet; 3]);
    assert_eq!(it.company.committed("/image".as_ref(), &mut it.calls), []);
    let mut heard = it.heard();
    assert_eq!(
        heard[..3],
        ["a committed", "b committed", "c committed"],
        "each waits before the next is asked"
    );
    heard[3..].sort();
    assert_eq!(heard[3..], ["a met", "b met", "c met"]);
    let mut it = Trio::new([meet, QUIET, meet]);
    assert_eq!(it.company.committed("/image".as_ref(), &mut it.calls), []);
    let mut heard = it.heard();
    heard.sort();
    assert_eq!(heard, ["a alone", "a committed", "b committed", "c alone", "c committed"]);
}

#[test]
fn a_late_answer_is_ignored_and_the_job_goes_on() {
    let mut it = Trio::new([("late", "presuspend"), QUIET, QUIET]);
    let failed = it.company.presuspend(&mut it.calls).unwrap_err();
    assert!(
        failed.to_string().contains("a: presuspend: it did not answer within its deadline of 0.3 s"),
        "{failed}"
    );
    assert_eq!(it.company.roll_back(&mut it.calls).1, []);
    assert_eq!(it.company.running(After::Failure, &mut it.calls), []);
    assert_eq!(it.heard(), ["a presuspend", "a resume", "a running"]);
}

#[test]
fn a_plugin_that_asks_for_much_and_reads_nothing_costs_little() {
    let mut it = Trio::new([("greedy", "committed"), QUIET, QUIET]);
    let failed = it.company.committed("/image".as_ref(), &mut it.calls);
    assert!(matches!(failed[..], [Failed { why: Why::Late(_), .. }]), "{failed:?}");
    // Three of them are more than what is kept for it.
    assert!((1..10).contains(&it.calls.reads), "{}", it.calls.reads);
}

#[test]
fn calls_between_events_are_answered() {
    let mut it = Trio::new([QUIET, ("put", "running"), QUIET]);
    assert_eq!(it.company.running(After::Init, &mut it.calls), []);
    while it.calls.area.get("k").is_err() {
        let polled = it.company.polled();
        let mut fds: Vec<PollFd<'_>> = polled.iter().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
        poll(&mut fds, PollTimeout::NONE).unwrap();
        it.company.attend(&mut it.calls);
    }
    assert_eq!(it.calls.area.get("k").unwrap(), json!(7));
}

#[test]
fn a_plugin_that_ends_between_events_is_named_by_the_next() {
    let mut it = Trio::new([QUIET; 3]);
    let process = it.company.peers()[1].process().unwrap();
    kill(process.pid(), Signal::SIGKILL).unwrap();
    assert!(process.ends_within(std::time::Duration::from_secs(60)).unwrap());
    it.company.attend(&mut it.calls);
    assert_eq!(it.company.peers()[1].gone(), Some("it ended (killed by SIGKILL)"));
    let failed = it.company.presuspend(&mut it.calls).unwrap_err();
    assert!(
        failed.to_string().starts_with("plugin b: presuspend: it has gone: it ended (killed by SIGKILL)")
    );
    // The others go on.
    assert_eq!(it.company.roll_back(&mut it.calls).1.len(), 1);
    assert_eq!(it.heard(), ["a presuspend", "a resume"]);
}

#[test]
fn a_name_is_given_once() {
    let manifest = Manifest::of("/bin/sh", Path::new("/nowhere")).unwrap();
    let job = Job { id: "tb".into(), generation: 0, host: "h".into(), bundle: "/b".into() };
    let two = vec![manifest.clone(), manifest];
    let error = Company::start(job, two, |_| Ok(null()), &mut Keeper::default()).unwrap_err();
    assert_eq!(error.to_string(), "plugin \"sh\" was given twice");
}
