//! What a plugin in Rust is.

use crate::binding::{Attachment, Binding};
use crate::ckrun::Ckrun;
use crate::event::{Deadlines, Event};
use crate::fault::Fault;
use crate::occasion::{After, Reason, Requirements, Saved};
use std::path::Path;

/// A plugin: one method for each event, see PROTOCOL.md for when they come. A method that a plugin leaves out does
/// nothing and agrees. An error is a [`Fault`]; `?` turns those of input and output and of JSON into one.
#[allow(unused_variables, reason = "the methods that do nothing")]
pub trait Plugin {
    /// The plugin's version for people.
    fn version(&self) -> String {
        String::new()
    }

    /// Deadlines that differ from the protocol's, in seconds.
    fn deadlines(&self) -> Deadlines {
        Deadlines::new()
    }

    /// The events that are wanted; None for all.
    fn events(&self) -> Option<Vec<Event>> {
        None
    }

    /// ckrun has introduced itself; the options are known now ([`Ckrun::option`]).
    fn hello(&mut self, ckrun: &mut Ckrun) -> Result<(), Fault> {
        Ok(())
    }

    /// A new job: claim an emulator, open the link.
    fn init(&mut self, ckrun: &mut Ckrun) -> Result<Attachment, Fault> {
        Ok(Attachment::default())
    }

    /// The job runs, and will be stopped: stop issuing, wait for what is on the wire.
    fn presuspend(&mut self, ckrun: &mut Ckrun) -> Result<(), Fault> {
        Ok(())
    }

    /// The job stands still: save the emulator's state into `folder`, let go.
    fn precheckpoint(&mut self, ckrun: &mut Ckrun, folder: &Path) -> Result<Requirements, Fault> {
        Ok(Requirements::default())
    }

    /// The image is complete: copy what must fit to it.
    fn committed(&mut self, ckrun: &mut Ckrun, image: &Path) -> Result<(), Fault> {
        Ok(())
    }

    /// The job goes on here: take hold again. The bindings replace those of the same virtual names.
    fn resume(&mut self, ckrun: &mut Ckrun, after: After) -> Result<Vec<Binding>, Fault> {
        Ok(Vec::new())
    }

    /// Could this be restarted here? Nothing is to be claimed.
    fn check(&mut self, ckrun: &mut Ckrun, saved: &Saved) -> Result<(), Fault> {
        Ok(())
    }

    /// Claim an emulator here, load the state, attach. Every virtual name of `saved.bindings` must be bound again.
    fn restart(&mut self, ckrun: &mut Ckrun, saved: &Saved) -> Result<Attachment, Fault> {
        Ok(Attachment::default())
    }

    /// The job is about to run: start clocks, arm faults.
    fn running(&mut self, ckrun: &mut Ckrun, after: After) -> Result<(), Fault> {
        Ok(())
    }

    /// The job is gone: release what is held.
    fn exit(&mut self, ckrun: &mut Ckrun, reason: Reason) -> Result<(), Fault> {
        Ok(())
    }

    /// Take over, in a new process, from a predecessor that has left the link as it was, or has failed. The bindings are those
    /// in force; the answer is that of [`Plugin::resume`]. An error means that it can't be done.
    fn recover(&mut self, ckrun: &mut Ckrun, bindings: &[Binding]) -> Result<Vec<Binding>, Fault> {
        Ok(Vec::new())
    }
}
