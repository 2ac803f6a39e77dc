//! What the command line says: `--plugin ckrun-softemu:server=/run/emu,link=all`.

use super::hold::{Server, parameters};
use crate::control::Listing;
use ckrun_plugin::{Address, Binding, Ckrun, Code, Fault};
use std::path::PathBuf;
use std::time::Duration;

/// The names of the options.
const NAMES: [&str; 11] =
    ["server", "slot", "link", "device", "socket", "ring", "reconnect", "patience", "ram", "fifo", "boot"];

/// The options.
#[derive(Debug, Clone)]
pub struct Options {
    /// The control socket.
    pub server: PathBuf,
    /// Which slot; any if None.
    pub slot: Option<usize>,
    /// Whether the job may close a link and open it again.
    pub reconnect: bool,
    /// How long the job may take to read what was sent to it, before a checkpoint.
    pub patience: Duration,
    names: Vec<Binding>,
    sizes: Vec<(&'static str, u64)>,
}

impl Options {
    /// Reads them.
    ///
    /// # Errors
    /// Names the option, what it is and what it could be.
    pub fn of(ckrun: &Ckrun) -> Result<Options, Fault> {
        ckrun.expect_options(&NAMES)?;
        let given = |name: &str| ckrun.option(name);
        let mut server =
            PathBuf::from(given("server").ok_or_else(|| {
                wrong("server", "", "is needed: the server's directory or its control socket")
            })?);
        if !server.is_absolute() {
            return Err(wrong("server", &server.to_string_lossy(), "must be an absolute path"));
        }
        if server.is_dir() {
            server.push("control");
        }
        let slot = match given("slot") {
            None | Some("any") => None,
            Some(text) => Some(number("slot", text, "any or a number").and_then(|n| {
                usize::try_from(n).map_err(|_| wrong("slot", text, "must be any or a number"))
            })?),
        };
        let reconnect = match given("reconnect") {
            None | Some("yes") => true,
            Some("no") => false,
            Some(other) => return Err(wrong("reconnect", other, "must be yes or no")),
        };
        let patience = match given("patience") {
            None => 10,
            Some(text) => number("patience", text, "a number of seconds")?,
        };
        let mut sizes = Vec::new();
        for name in ["ram", "fifo", "boot"] {
            if let Some(text) = given(name) {
                sizes.push((name, number(name, text, "a number")?));
            }
        }
        let names = names(&given)?;
        Ok(Options { server, slot, reconnect, patience: Duration::from_secs(patience), names, sizes })
    }

    /// What a new job is to find, with nothing behind it yet.
    pub fn virtual_names(&self) -> Vec<Binding> {
        self.names.clone()
    }

    /// Whether the server has a design of the sizes that were asked for.
    pub fn fit(&self, server: &Server, listing: &Listing) -> Result<(), Fault> {
        let theirs = parameters(listing);
        for (name, size) in &self.sizes {
            let their = theirs.get(*name).and_then(serde_json::Value::as_u64);
            if their != Some(*size) {
                let their = their.unwrap_or(0);
                let path = server.path.display();
                return Err(Fault::mismatch(format!("{name}={size} was asked for, and {path} has {their}")));
            }
        }
        Ok(())
    }
}

/// The links: those whose virtual names are given, or those of the option `link` by their usual names, or a device.
fn names<'a>(given: &impl Fn(&str) -> Option<&'a str>) -> Result<Vec<Binding>, Fault> {
    let given_names = ["device", "socket", "ring"].map(|name| given(name).is_some());
    let link = match given("link") {
        None if given_names.contains(&true) => given_names,
        None | Some("device") => [true, false, false],
        Some("socket") => [false, true, false],
        Some("memory") => [false, false, true],
        Some("all") => [true, true, true],
        Some(other) => return Err(wrong("link", other, "must be device, socket, memory or all")),
    };
    let path = |name: &str, usual: &str| {
        let path = given(name).unwrap_or(usual);
        if path.starts_with('/') {
            Ok(path.to_owned())
        } else {
            Err(wrong(name, path, "must be an absolute path"))
        }
    };
    let mut names = Vec::new();
    for (n, name) in ["device", "socket", "ring"].into_iter().enumerate() {
        if !link[n] {
            if given_names[n] {
                let link = given("link").unwrap_or_default();
                return Err(wrong("link", link, &format!("leaves out {name}, which has a name")));
            }
            continue;
        }
        names.push(match name {
            "device" => Binding::device(path(name, "/dev/emu0")?, ""),
            "ring" => Binding::memory(path(name, "/dev/shm/ring0")?, ""),
            _ => {
                let text = given(name).unwrap_or("tcp:emu:4000");
                let address =
                    text.parse().map_err(|_| wrong(name, text, "must be tcp:HOST:PORT or unix:PATH"))?;
                if matches!(address, Address::Abstract(_)) {
                    return Err(wrong(name, text, "must be tcp:HOST:PORT or unix:PATH"));
                }
                Binding::socket(address, "")
            }
        });
    }
    Ok(names)
}

fn number(name: &str, text: &str, what: &str) -> Result<u64, Fault> {
    text.parse().map_err(|_| wrong(name, text, &format!("must be {what}")))
}

fn wrong(name: &str, value: &str, why: &str) -> Fault {
    Fault::new(Code::InvalidParams, format!("option {name}={value}: {why}"))
}
