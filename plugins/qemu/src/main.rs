//! `ckrun-qemu`: a plugin for a job that talks to a virtual machine. It starts an unmodified qemu-system-x86_64, ties the
//! job to the guest's serial line, and takes machine and line along when the job moves.
//!
//! | event | what happens to the machine |
//! |---|---|
//! | `init` | started, standing still; its line is bound to the virtual name |
//! | `presuspend` | with a socket: stopped, and the job reads what is on its way to it |
//! | `precheckpoint` | stopped and saved, with what is on the line |
//! | `check` | is there the QEMU, the machine, the guest that was saved? |
//! | `restart` | another one started, loaded, and its line bound |
//! | `running` | goes on |
//! | `exit` | ended |

mod machine;
mod options;
mod pty;
mod qmp;
mod socket;

use ckrun_plugin::{
    After, Attachment, Binding, Ckrun, Code, Event, Fault, Plugin, Real, Reason, Requirements, Saved,
};
use machine::Machine;
use options::Options;
use pty::Pty;
use serde_json::{Map, Value, json};
use socket::Socket;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The guest of our own, for `ckrun-qemu guest FILE`.
const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest"));

/// The machine's state, in the plugin's folder of an image.
const STATE: &str = "machine.state";

/// What was on the line: replies of the guest that the job had not read, or requests that the guest had not.
const LINE: &str = "line";

/// The key under which the machine's directory is kept with ckrun, for a successor.
const DIRECTORY: &str = "directory";

/// Between two looks at a queue. The kernel tells nobody when one has become empty.
const PAUSE: Duration = Duration::from_millis(1);

/// What is left of an event's time for the answer.
const MARGIN: Duration = Duration::from_millis(500);

/// The near end of the serial line.
#[derive(Debug)]
enum Line {
    Device(Pty),
    Socket(Socket),
}

#[derive(Debug, Default)]
struct Qemu {
    options: Options,
    held: Option<(Machine, Line)>,
}

/// When the event's work must be done.
fn until(ckrun: &Ckrun) -> Instant {
    let now = Instant::now();
    let left = ckrun.deadline().unwrap_or(now).saturating_duration_since(now);
    // Of a short time, half.
    now + left.saturating_sub(MARGIN).max(left / 2)
}

impl Qemu {
    fn held(&self) -> Result<&(Machine, Line), Fault> {
        self.held.as_ref().ok_or_else(|| Fault::new(Code::InvalidRequest, "there is no machine"))
    }

    fn binding(&self) -> Result<&Binding, Fault> {
        self.options.link.as_ref().ok_or_else(|| Fault::new(Code::InvalidRequest, "there was no hello"))
    }

    /// Starts a machine, loads it if there is something to load, and holds it.
    fn claim(&mut self, ckrun: &mut Ckrun, folder: Option<&Path>) -> Result<Attachment, Fault> {
        let until = until(ckrun);
        let mut binding = self.binding()?.clone();
        let device = matches!(binding, Binding::Device { .. });
        let chardev = |directory: &Path| match device {
            true => "pty,id=link".to_owned(),
            false => {
                format!("socket,id=link,path={},server=on,wait=off", socket::path(directory, ",,").display())
            }
        };
        let options = &self.options;
        let (machine, pty) = Machine::start(options, chardev, folder.is_some(), until, |name| {
            if device { Pty::open(name).map(Some) } else { Ok(None) }
        })?;
        let line = match pty {
            Some(pty) => Line::Device(pty),
            None => Line::Socket(Socket::at(socket::path(&machine.directory, ","))),
        };
        let ready =
            ckrun.put(DIRECTORY, Some(json!(machine.directory))).and_then(|()| match (&line, folder) {
                (Line::Device(pty), None) => Ok(pty.path().into()),
                (Line::Socket(socket), None) => Ok(socket.address()),
                (_, Some(folder)) => load(ckrun, &machine, &line, folder, until),
            });
        match ready {
            Ok(real) => {
                self.held = Some((machine, line));
                if let Some(it) = binding.real_mut() {
                    *it = real;
                }
                Ok(Attachment { bindings: vec![binding], ..Attachment::default() })
            }
            Err(fault) => {
                machine.end();
                Err(fault)
            }
        }
    }

    /// What a restart needs, as the options have it here.
    fn requirements(&self, version: &str) -> Result<Map<String, Value>, Fault> {
        let Value::Object(all) = json!({
            "qemu": version,
            "machine": self.options.machine,
            "memory": self.options.memory,
            "devices": self.options.devices(),
            "guest": self.options.digest()?,
        }) else {
            return Ok(Map::new());
        };
        Ok(all)
    }

    /// Whether the image can be restarted with these options on this host.
    fn fits(&self, saved: &Saved) -> Result<(), Fault> {
        let mine = self.binding()?;
        if let Some(other) = saved.bindings.iter().find(|other| other.virtual_name() != mine.virtual_name()) {
            return Err(Fault::mismatch(format!(
                "the job knows the link as {}, and the options give it {}",
                other.virtual_name(),
                mine.virtual_name()
            )));
        }
        for (name, here) in self.requirements(&machine::version(&self.options.qemu)?)? {
            match saved.requirements.get(&name) {
                Some(needed) if *needed != here => {
                    return Err(Fault::mismatch(format!(
                        "{name}: the image needs {needed}, and here is {here}"
                    )));
                }
                _ => {}
            }
        }
        whole(saved)
    }

    fn wait(
        &self,
        ckrun: &mut Ckrun,
        mut done: impl FnMut() -> Result<bool, Fault>,
        why: &str,
    ) -> Result<(), Fault> {
        let until = until(ckrun).min(Instant::now() + self.options.patience);
        while !done()? {
            if Instant::now() > until || ckrun.cancelled() {
                let seconds = self.options.patience.as_secs();
                return Err(Fault::veto(format!("{why} within {seconds} s")));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

/// Loads a machine and its line; the answer is what stands behind the virtual name.
fn load(
    ckrun: &mut Ckrun,
    machine: &Machine,
    line: &Line,
    folder: &Path,
    until: Instant,
) -> Result<Real, Fault> {
    machine.load(&folder.join(STATE), until)?;
    let path = folder.join(LINE);
    let bytes = fs::read(&path).map_err(|e| Fault::mismatch(format!("{}: {e}", path.display())))?;
    match line {
        Line::Device(pty) => {
            pty.send(&pty.master(machine)?, &bytes)?;
            Ok(pty.path().into())
        }
        Line::Socket(socket) => Ok(ckrun.pass(socket.connect(&bytes)?)),
    }
}

/// Whether the state has its size: QEMU loads one that lacks its last part, in which is only how it is to be read.
fn whole(saved: &Saved) -> Result<(), Fault> {
    let path = saved.folder.join(STATE);
    let size = fs::metadata(&path)
        .map_err(|e| Fault::mismatch(format!("the state of the machine {}: {e}", path.display())))?
        .len();
    match saved.requirements.get("bytes").and_then(Value::as_u64) {
        Some(needed) if needed != size => Err(Fault::mismatch(format!(
            "the state of the machine {} has {size} bytes, and {needed} were saved",
            path.display()
        ))),
        _ => Ok(()),
    }
}

impl Plugin for Qemu {
    fn version(&self) -> String {
        format!("qemu {}", env!("CARGO_PKG_VERSION"))
    }

    fn events(&self) -> Option<Vec<Event>> {
        Some(
            Event::ALL
                .into_iter()
                .filter(|event| !matches!(event, Event::Hello | Event::Committed))
                .collect(),
        )
    }

    fn hello(&mut self, ckrun: &mut Ckrun) -> Result<(), Fault> {
        self.options = Options::of(ckrun)?;
        Ok(())
    }

    fn init(&mut self, ckrun: &mut Ckrun) -> Result<Attachment, Fault> {
        self.options.digest()?;
        let forgetful = machine::forgetful(&self.options)?;
        if !forgetful.is_empty() {
            let why = "QEMU would not save its state";
            return Err(Fault::unavailable(format!("option add={}: {why}", forgetful.join("+"))));
        }
        self.claim(ckrun, None)
    }

    fn presuspend(&mut self, ckrun: &mut Ckrun) -> Result<(), Fault> {
        let (machine, line) = self.held()?;
        let until = until(ckrun);
        match line {
            // What the job has not read can be saved, and the guest goes on to take what the job sends.
            Line::Device(_) => machine.talk(until).map(drop),
            // What is in the job's socket nobody else can take.
            Line::Socket(socket) => {
                machine.stand_still(until)?;
                let Some(near) = socket.near(machine)? else { return Ok(()) };
                self.wait(
                    ckrun,
                    || socket::read_all(&near),
                    "the job has not read all that the guest has sent",
                )
            }
        }
    }

    fn precheckpoint(&mut self, ckrun: &mut Ckrun, folder: &Path) -> Result<Requirements, Fault> {
        let (machine, line) = self.held()?;
        let file = folder.join(STATE);
        let (bytes, line) = match line {
            Line::Device(pty) => {
                let master = pty.master(machine)?;
                let why = format!("the guest has not taken all that the job has sent by {}", pty.path());
                self.wait(ckrun, || pty.taken(&master), &why)?;
                machine.stand_still(until(ckrun))?;
                let unread = pty.unread(&master)?;
                (machine.save(&file, until(ckrun))?, unread)
            }
            Line::Socket(socket) => {
                machine.stand_still(until(ckrun))?;
                let near = socket.near(machine)?;
                socket::save(near.as_ref(), || {
                    let _ = fs::remove_file(&file);
                    machine.save(&file, until(ckrun))
                })?
            }
        };
        fs::write(folder.join(LINE), line)?;
        let mut requirements = self.requirements(&machine.talk(until(ckrun))?.version)?;
        requirements.insert("bytes".into(), json!(bytes));
        Ok(Requirements { requirements })
    }

    fn resume(&mut self, ckrun: &mut Ckrun, _: After) -> Result<Vec<Binding>, Fault> {
        // It was never let go; all that can have happened is that it has gone.
        self.held()?.0.talk(until(ckrun))?;
        Ok(Vec::new())
    }

    fn check(&mut self, _: &mut Ckrun, saved: &Saved) -> Result<(), Fault> {
        self.fits(saved)
    }

    fn restart(&mut self, ckrun: &mut Ckrun, saved: &Saved) -> Result<Attachment, Fault> {
        self.fits(saved)?;
        self.claim(ckrun, Some(&saved.folder))
    }

    fn running(&mut self, ckrun: &mut Ckrun, _: After) -> Result<(), Fault> {
        self.held()?.0.go_on(until(ckrun))
    }

    fn exit(&mut self, _: &mut Ckrun, _: Reason) -> Result<(), Fault> {
        // Of a restart that has failed, nothing may be held.
        if let Some((machine, _)) = self.held.take() {
            machine.end();
        }
        Ok(())
    }

    fn recover(&mut self, ckrun: &mut Ckrun, bindings: &[Binding]) -> Result<Vec<Binding>, Fault> {
        let kept = ckrun.get(DIRECTORY)?.unwrap_or_default();
        let directory = PathBuf::from(kept.as_str().unwrap_or_default());
        let machine = Machine::find(directory, until(ckrun))?;
        let line = match bindings {
            [Binding::Device { real: Real::Name(path), .. }] => Line::Device(Pty::open(path)?),
            _ => Line::Socket(Socket::at(socket::path(&machine.directory, ","))),
        };
        // If a checkpoint was under way, its end has not come through: the job has been running, and waits.
        machine.go_on(until(ckrun))?;
        self.held = Some((machine, line));
        Ok(Vec::new())
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["plugin"] => ckrun_plugin::serve(Qemu::default()).map_err(|e| e.to_string()),
        ["guest", file] => fs::write(file, GUEST).map_err(|e| format!("write {file}: {e}")),
        _ => Err("usage: ckrun-qemu guest FILE; without words it is a plugin, to be started by ckrun".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ckrun-qemu: {error}");
            ExitCode::FAILURE
        }
    }
}
