//! What the command line says: `--plugin ckrun-softemu:server=/run/emu,link=all`.

use super::hold::{Server, parameters};
use crate::control::Listing;
use ckrun_plugin::{Address, Binding, Ckrun, Code, Fault};
use std::path::PathBuf;
use std::time::Duration;

/// The names of the options.
const NAMES: [&str; 12] = [
    "server",
    "slot",
    "link",
    "device",
    "socket",
    "ring",
    "jtag",
    "reconnect",
    "patience",
    "ram",
    "fifo",
    "boot",
];

/// Those that name a link.
const LINKS: [&str; 4] = ["device", "socket", "ring", "jtag"];

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
    /// To what a JTAG adapter of a new job connects: one of the virtual names.
    pub adapter: Option<Address>,
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
        let (names, adapter) = names(&given)?;
        let patience = Duration::from_secs(patience);
        Ok(Options { server, slot, reconnect, patience, adapter, names, sizes })
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
/// And which of them is for a JTAG adapter.
fn names<'a>(given: &impl Fn(&str) -> Option<&'a str>) -> Result<(Vec<Binding>, Option<Address>), Fault> {
    let given_names = LINKS.map(|name| given(name).is_some());
    let link = match given("link") {
        None if given_names.contains(&true) => given_names,
        None | Some("device") => [true, false, false, false],
        Some("socket") => [false, true, false, false],
        Some("memory") => [false, false, true, false],
        Some("jtag") => [false, false, false, true],
        // Of designs that have no test access port too.
        Some("all") => [true, true, true, given_names[3]],
        Some(other) => return Err(wrong("link", other, "must be device, socket, memory, jtag or all")),
    };
    let path = |name: &str, usual: &str| {
        let path = given(name).unwrap_or(usual);
        if path.starts_with('/') {
            Ok(path.to_owned())
        } else {
            Err(wrong(name, path, "must be an absolute path"))
        }
    };
    let (mut names, mut adapter) = (Vec::new(), None);
    for (n, name) in LINKS.into_iter().enumerate() {
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
            "jtag" => {
                let text = given(name).unwrap_or("tcp:emu:4001");
                let address = text.parse().ok().filter(|address| matches!(address, Address::Tcp(..)));
                let address = address.ok_or_else(|| wrong(name, text, "must be tcp:HOST:PORT"))?;
                if names.contains(&Binding::socket(address.clone(), "")) {
                    return Err(wrong(name, text, "is the name of the socket too"));
                }
                adapter = Some(address.clone());
                Binding::socket(address, "")
            }
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
    Ok((names, adapter))
}

fn number(name: &str, text: &str, what: &str) -> Result<u64, Fault> {
    text.parse().map_err(|_| wrong(name, text, &format!("must be {what}")))
}

fn wrong(name: &str, value: &str, why: &str) -> Fault {
    Fault::new(Code::InvalidParams, format!("option {name}={value}: {why}"))
}
