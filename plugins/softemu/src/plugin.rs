//! The plugin that ships with softemu: it ties a job to a slot of a server, and carries the slot to another server when
//! the job moves.
//!
//! | event | what happens to the slot |
//! |---|---|
//! | `init` | claimed; its links are bound to the virtual names |
//! | `presuspend` | frozen; the job has read all replies that were on their way to it through sockets |
//! | `precheckpoint` | saved, with the requests that have not been served |
//! | `check` | is there a free one for the design that was saved, and is the file whole? |
//! | `restart` | claimed, frozen, on the server of this host; loaded; bound |
//! | `running` | thawed |
//! | `exit` | released |
//!
//! From the claim to `exit` the slot is this job's, saved or not: so `resume` finds it as it was. The server is asked by
//! a new connection at each event, and a claim belongs to a name: nothing depends on one connection.

mod far_end;
mod hold;
mod options;

use crate::control::Listing;
use crate::link::{Kind, Name};
use ckrun_plugin::event::Level;
use ckrun_plugin::{
    Address, After, Attachment, Binding, Ckrun, Code, Fault, Plugin, Real, Reason, Requirements, Saved,
};
use hold::{Hold, Server};
pub use hold::{Lost, fault, owner};
pub use options::Options;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The only file in the plugin's folder of an image.
pub const FILE: &str = "slot.state";

/// Between two looks at a queue. The kernel tells nobody when one has become empty.
const PAUSE: Duration = Duration::from_millis(1);

/// What is left of an event's time for the answer.
const MARGIN: Duration = Duration::from_millis(500);

/// The plugin.
#[derive(Debug, Default)]
pub struct Softemu {
    options: Option<Options>,
    hold: Option<Hold>,
}

impl Softemu {
    fn options(&self) -> Result<&Options, Fault> {
        self.options.as_ref().ok_or_else(|| Fault::new(Code::InvalidRequest, "there was no hello"))
    }

    /// The server that the options name, where nothing of the job is yet.
    fn server(&self, ckrun: &Ckrun) -> Result<Server, Fault> {
        let job = ckrun.job().ok_or_else(|| Fault::new(Code::InvalidRequest, "there is no job"))?;
        let path = self.options()?.server.clone();
        Ok(Server::new(path, hold::owner(job), left(ckrun)))
    }

    /// The slot that is held.
    fn held(&self, ckrun: &Ckrun) -> Result<Hold, Fault> {
        let hold =
            self.hold.clone().ok_or_else(|| Fault::new(Code::InvalidRequest, "no slot was claimed"))?;
        Ok(hold.within(left(ckrun)))
    }

    /// Whether the server has the design that was saved.
    fn fits(server: &Server, listing: &Listing, needs: &Map<String, Value>) -> Result<(), Fault> {
        match needs.get("design").and_then(Value::as_str) {
            Some(design) if design != listing.design => Err(Fault::mismatch(format!(
                "the job was saved with design {design} ({}), and {} has {} ({})",
                described(needs),
                server.path.display(),
                listing.design,
                described(&hold::parameters(listing)),
            ))),
            _ => Ok(()),
        }
    }
}

/// The time that is left of the event, with a margin for the answer.
fn left(ckrun: &Ckrun) -> Duration {
    let until = ckrun.deadline().unwrap_or_else(Instant::now);
    let left = until.saturating_duration_since(Instant::now());
    // Of a short time, half.
    left.saturating_sub(MARGIN).max(left / 2)
}

/// Sizes of a design for a person.
fn described(of: &Map<String, Value>) -> String {
    let number = |name: &str| of.get(name).map_or("?".into(), Value::to_string);
    format!("{} words of RAM, FIFOs of {}, {} cycles of boot", number("ram"), number("fifo"), number("boot"))
}

/// The state file in a folder of an image.
fn state_file(folder: &Path) -> Result<PathBuf, Fault> {
    let file = folder.join(FILE);
    match file.symlink_metadata() {
        Ok(found) if found.is_file() => Ok(file),
        Ok(_) => Err(Fault::mismatch(format!("{}: not a file", file.display()))),
        Err(e) => {
            Err(Fault::mismatch(format!("{}: the state that was saved is missing: {e}", file.display())))
        }
    }
}

/// Under which key ckrun keeps the virtual name that is for a JTAG adapter. Otherwise it looks like a testbench's.
const ADAPTER: &str = "jtag";

/// That name, if there is one.
fn adapter(ckrun: &mut Ckrun) -> Result<Option<String>, Fault> {
    Ok(ckrun.get(ADAPTER)?.and_then(|name| name.as_str().map(str::to_owned)))
}

/// A virtual name, and the kind of link that can stand behind it.
fn kind(binding: &Binding, adapter: Option<&str>) -> Result<Kind, Fault> {
    match binding {
        Binding::Socket { virtual_address, .. } if Some(virtual_address.to_string().as_str()) == adapter => {
            Ok(Kind::Jtag)
        }
        Binding::Device { .. } => Ok(Kind::Pty),
        Binding::Memory { .. } => Ok(Kind::Ring),
        Binding::Socket { virtual_address: Address::Tcp(..), .. } => Ok(Kind::Tcp),
        Binding::Socket { virtual_address: Address::Unix(_), .. } => Ok(Kind::Unix),
        other => {
            let why = format!("{}: softemu has no link of that kind", other.virtual_name());
            Err(Fault::mismatch(why))
        }
    }
}

/// The binding with another real name.
fn bound(mut binding: Binding, link: &Name) -> Binding {
    if let Some(real) = binding.real_mut() {
        *real = Real::Name(hold::real(link));
    }
    binding
}

impl Plugin for Softemu {
    fn version(&self) -> String {
        format!("softemu {}", env!("CARGO_PKG_VERSION"))
    }

    fn hello(&mut self, ckrun: &mut Ckrun) -> Result<(), Fault> {
        self.options = Some(Options::of(ckrun)?);
        Ok(())
    }

    fn init(&mut self, ckrun: &mut Ckrun) -> Result<Attachment, Fault> {
        let server = self.server(ckrun)?;
        let options = self.options()?;
        let listing = server.list()?;
        options.fit(&server, &listing)?;
        let names = options.virtual_names();
        if let Some(name) = &options.adapter {
            ckrun.put(ADAPTER, Some(json!(name.to_string())))?;
        }
        self.attach(ckrun, &server, &names, false)
    }

    fn presuspend(&mut self, ckrun: &mut Ckrun) -> Result<(), Fault> {
        let hold = self.held(ckrun)?;
        hold.freeze(left(ckrun))?;
        let patience = left(ckrun).min(self.options()?.patience);
        let until = Instant::now() + patience;
        loop {
            let Some(why) = hold.on_the_way(ckrun)?.unread else { return Ok(()) };
            if Instant::now() > until || ckrun.cancelled() {
                return Err(Fault::veto(format!("{why}, after {} s", patience.as_secs_f64().round())));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn precheckpoint(&mut self, ckrun: &mut Ckrun, folder: &Path) -> Result<Requirements, Fault> {
        let hold = self.held(ckrun)?;
        let file = folder.join(FILE);
        let until = Instant::now() + left(ckrun);
        loop {
            // In this order: what had been acknowledged before the save is in the server's socket, where it is found.
            let way = hold.on_the_way(ckrun)?;
            if let Some(why) = way.unread {
                return Err(Fault::veto(why));
            }
            let summary = hold.save(&file)?;
            let Some(why) = way.flying else {
                let mut requirements = hold::parameters(&hold.server.list()?);
                requirements.insert("cycle".into(), json!(summary.cycle));
                requirements.insert("digest".into(), json!(summary.digest));
                return Ok(Requirements { requirements });
            };
            if Instant::now() > until || ckrun.cancelled() {
                return Err(Fault::veto(why));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn resume(&mut self, ckrun: &mut Ckrun, _: After) -> Result<Vec<Binding>, Fault> {
        // It was never let go; all that can have happened is that the server has gone.
        self.held(ckrun)?.look()?;
        Ok(Vec::new())
    }

    fn check(&mut self, ckrun: &mut Ckrun, saved: &Saved) -> Result<(), Fault> {
        let server = self.server(ckrun)?;
        let listing = server.list()?;
        Softemu::fits(&server, &listing, &saved.requirements)?;
        let adapter = adapter(ckrun)?;
        saved.bindings.iter().try_for_each(|binding| kind(binding, adapter.as_deref()).map(drop))?;
        server.check(&state_file(&saved.folder)?)?;
        server.has_room(&listing, self.options()?.slot)
    }

    fn restart(&mut self, ckrun: &mut Ckrun, saved: &Saved) -> Result<Attachment, Fault> {
        let server = self.server(ckrun)?;
        Softemu::fits(&server, &server.list()?, &saved.requirements)?;
        let file = state_file(&saved.folder)?;
        let attachment = self.attach(ckrun, &server, &saved.bindings, true)?;
        let Some(hold) = self.hold.clone() else { return Ok(attachment) };
        let loaded = hold.load(&file).and_then(|summary| {
            match saved.requirements.get("digest").and_then(Value::as_str) {
                Some(digest) if digest != summary.digest => Err(Fault::mismatch(format!(
                    "{}: its state has the digest {}, and the image was made with {digest}",
                    file.display(),
                    summary.digest
                ))),
                _ => Ok(attachment),
            }
        });
        if loaded.is_err() {
            self.release(ckrun, &hold);
        }
        loaded
    }

    fn running(&mut self, ckrun: &mut Ckrun, _: After) -> Result<(), Fault> {
        self.held(ckrun)?.thaw()
    }

    fn exit(&mut self, ckrun: &mut Ckrun, _: Reason) -> Result<(), Fault> {
        // Of a restart that has failed, nothing may be held.
        if let Ok(hold) = self.held(ckrun) {
            self.release(ckrun, &hold);
        }
        Ok(())
    }

    fn recover(&mut self, ckrun: &mut Ckrun, bindings: &[Binding]) -> Result<Vec<Binding>, Fault> {
        let server = self.server(ckrun)?;
        let listing = server.list().map_err(|fault| Fault { code: Code::Lost.number(), ..fault })?;
        let real = |binding: &Binding| match binding.real() {
            Some(Real::Name(name)) => name.clone(),
            _ => String::new(),
        };
        let names: Vec<String> = bindings.iter().map(real).collect();
        let found = listing.slots.iter().find(|slot| {
            slot.owner.is_some() && slot.links.iter().any(|link| names.contains(&hold::real(link)))
        });
        let Some((slot, owner)) = found.and_then(|slot| Some((slot.slot, slot.owner.clone()?))) else {
            let path = server.path.display();
            return Err(Fault::lost(format!("no slot of {path} has the link {}", names.join(" or "))));
        };
        let hold = Hold { server: server.of(owner), slot };
        // If a checkpoint was under way, its end has not come through: the job has been running, and waits.
        hold.thaw()?;
        self.hold = Some(hold);
        Ok(Vec::new())
    }
}

impl Softemu {
    /// Claims a slot with a link for each of the virtual names.
    fn attach(
        &mut self,
        ckrun: &mut Ckrun,
        server: &Server,
        names: &[Binding],
        frozen: bool,
    ) -> Result<Attachment, Fault> {
        let adapter = adapter(ckrun)?;
        let options = self.options()?;
        let kinds = names.iter().map(|name| kind(name, adapter.as_deref()));
        let links = kinds.collect::<Result<Vec<_>, _>>()?;
        let claimed = server.claim(options.slot, links, options.reconnect, frozen)?;
        self.hold = Some(Hold { server: server.clone(), slot: claimed.slot });
        let bindings = names.iter().cloned().zip(&claimed.links).map(|(name, link)| bound(name, link));
        Ok(Attachment { bindings: bindings.collect(), ..Attachment::default() })
    }

    /// Lets go. A server that has gone holds nothing any more.
    fn release(&mut self, ckrun: &mut Ckrun, hold: &Hold) {
        self.hold = None;
        if let Err(fault) = hold.release() {
            ckrun.log(Level::Warn, fault.to_string());
        }
    }
}
