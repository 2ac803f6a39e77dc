//! The life of a plugin's process: read an event, do it, answer.

use crate::binding::Rebinding;
use crate::ckrun::Ckrun;
use crate::event::{Event, PROTOCOL};
use crate::fault::{Code, Fault};
use crate::message::{Id, Message};
use crate::occasion::{Hello, Occasion, Params, Welcome};
use crate::plugin::Plugin;
use crate::wire::{Broken, Incoming};
use rustix::io::{FdFlags, fcntl_setfd};
use serde::Serialize;
use serde_json::{Value, json};
use std::os::fd::{FromRawFd, OwnedFd};

/// The variable that has the number of the socket.
pub const SOCKET: &str = "CKRUN_PLUGIN_SOCKET";

/// Why a plugin could not be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket.
    #[error(
        "{SOCKET} is not the number of a descriptor: this program is a plugin, to be started by ckrun (--plugin)"
    )]
    NotStarted,
    /// The socket can't be used.
    #[error("{SOCKET}: ckrun {0}")]
    Broken(#[from] Broken),
}

/// Speaks with the ckrun that has started this process, until the job is gone or the end of the file. To be called once,
/// before anything else closes or opens descriptors.
///
/// # Errors
/// [`Error`]. The end of the file is none: the plugin then leaves the link as it is.
pub fn serve(plugin: impl Plugin) -> Result<(), Error> {
    let number = std::env::var(SOCKET).ok().and_then(|text| text.parse().ok()).filter(|n| *n > 2);
    let number = number.ok_or(Error::NotStarted)?;
    // SAFETY: ckrun has put the socket there for this process, and nobody else here knows of it.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    // What the plugin starts is not to hold the socket open.
    if fcntl_setfd(&socket, FdFlags::CLOEXEC).is_err() {
        std::mem::forget(socket);
        return Err(Error::NotStarted);
    }
    Ok(serve_on(plugin, socket)?)
}

/// As [`serve`], over a socket of the caller's.
///
/// # Errors
/// [`Broken`], but not [`Broken::Ended`].
pub fn serve_on(mut plugin: impl Plugin, socket: OwnedFd) -> Result<(), Broken> {
    let mut ckrun = Ckrun::new(socket);
    loop {
        let incoming = match ckrun.next() {
            Err(Broken::Ended) => return Ok(()),
            other => other?,
        };
        match answer(&mut plugin, &mut ckrun, incoming) {
            Ok(Some(Event::Exit)) | Err(Broken::Ended) => return Ok(()),
            other => other?,
        };
    }
}

/// Answers one request; says which event it was.
fn answer(plugin: &mut impl Plugin, ckrun: &mut Ckrun, incoming: Incoming) -> Result<Option<Event>, Broken> {
    let Incoming { message: Message::Request { id, method, params, .. }, fds } = incoming else {
        return Ok(None);
    };
    let Some(event) = Event::named(&method) else {
        let fault = Fault::new(Code::NoSuchMethod, format!("there is no event {method:?}"));
        ckrun.answer(id, Err(fault))?;
        return Ok(None);
    };
    let outcome = Params::parse(event, params).and_then(|params| {
        let occasion = params.occasion.clone();
        ckrun.begin(params, fds);
        carry_out(plugin, ckrun, occasion)
    });
    reply(ckrun, id, outcome)?;
    Ok(Some(event))
}

/// An answer that breaks the limits becomes an error.
fn reply(ckrun: &mut Ckrun, id: Id, outcome: Result<Value, Fault>) -> Result<(), Broken> {
    match ckrun.answer(id.clone(), outcome) {
        Err(why @ (Broken::TooLong | Broken::TooMany)) => {
            ckrun.answer(id, Err(Fault::new(Code::Internal, format!("the plugin's answer: {why}"))))
        }
        other => other,
    }
}

fn carry_out(plugin: &mut impl Plugin, ckrun: &mut Ckrun, occasion: Occasion) -> Result<Value, Fault> {
    let nothing = |()| json!({});
    match occasion {
        Occasion::Hello(hello) => {
            agree(&hello)?;
            ckrun.greet(hello);
            plugin.hello(ckrun)?;
            value(&Welcome {
                protocol: PROTOCOL.into(),
                version: plugin.version(),
                deadlines: plugin.deadlines(),
                events: plugin.events(),
            })
        }
        Occasion::Init => value(&plugin.init(ckrun)?),
        Occasion::Presuspend => plugin.presuspend(ckrun).map(nothing),
        Occasion::Precheckpoint(it) => value(&plugin.precheckpoint(ckrun, &it.folder)?),
        Occasion::Committed(it) => plugin.committed(ckrun, &it.image).map(nothing),
        Occasion::Resume(it) => value(&Rebinding { bindings: plugin.resume(ckrun, it.after)? }),
        Occasion::Check(it) => plugin.check(ckrun, &it).map(nothing),
        Occasion::Restart(it) => value(&plugin.restart(ckrun, &it)?),
        Occasion::Running(it) => plugin.running(ckrun, it.after).map(nothing),
        Occasion::Exit(it) => plugin.exit(ckrun, it.reason).map(nothing),
        Occasion::Recover(it) => value(&Rebinding { bindings: plugin.recover(ckrun, &it.bindings)? }),
    }
}

fn value(result: &impl Serialize) -> Result<Value, Fault> {
    Ok(serde_json::to_value(result)?)
}

/// The major numbers must be equal.
fn agree(hello: &Hello) -> Result<(), Fault> {
    let major = |version: &str| version.split('.').next().map(str::to_owned);
    if major(&hello.protocol) == major(PROTOCOL) {
        return Ok(());
    }
    let why =
        format!("this plugin speaks protocol {PROTOCOL}, ckrun {} speaks {}", hello.ckrun, hello.protocol);
    Err(Fault::mismatch(why))
}
