//! What a plugin did wrong.

use ckrun_plugin::wire::Broken;
use ckrun_plugin::{Event, Fault};
use ckrun_virt::Failure;
use std::fmt;
use std::time::Duration;

/// A plugin has failed: which, at what, after how long.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub struct Failed {
    /// Its name in the job.
    pub plugin: String,
    /// The event that was under way; None between two, and before the first.
    pub event: Option<Event>,
    /// How long that had been under way.
    pub after: Duration,
    /// The reason.
    pub why: Why,
}

/// The reason. Reads after "plugin emu: presuspend: it".
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// It answered with an error: a veto, a mismatch.
    #[error("{0}")]
    Refused(Fault),
    /// The time that it had.
    #[error("it did not answer within its deadline of {} s", seconds(*.0))]
    Late(Duration),
    /// It broke the framing.
    #[error("it {0}")]
    Broken(#[from] Broken),
    /// Its process has ended: how.
    #[error("it ended ({0})")]
    Ended(String),
    /// It answered something that was not asked.
    #[error("it answered request {0}, which was never made")]
    NeverAsked(String),
    /// It answered an event again.
    #[error("it answered request {0} ({1}) a second time")]
    Twice(String, Event),
    /// Its answer is not what the event asks for.
    #[error("its answer: {0}")]
    Answer(String),
    /// It went on after its job was gone: killed.
    #[error("it had not ended within {} s, although its socket was closed", seconds(*.0))]
    Lingers(Duration),
    /// Its process could not be started.
    #[error("{0}")]
    NotStarted(Failure),
    /// As the one who saw it has said.
    #[error("{0}")]
    Quoted(String),
    /// It had failed before, for the reason that is quoted.
    #[error("it has gone: {0}")]
    Gone(String),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plugin {}: ", self.plugin)?;
        match self.event {
            Some(event) => write!(f, "{event}: {} (after {} s)", self.why, seconds(self.after)),
            None => write!(f, "{}", self.why),
        }
    }
}

/// Seconds for a person, to the millisecond: 30, 0.25.
pub fn seconds(time: Duration) -> String {
    let text = format!("{:.3}", time.as_secs_f64());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_plugin_event_and_seconds() {
        let mut failed = Failed {
            plugin: "emu".into(),
            event: Some(Event::Presuspend),
            after: Duration::from_millis(412),
            why: Why::Refused(Fault::veto("a transfer of 40 s is under way")),
        };
        let said = "plugin emu: presuspend: veto: a transfer of 40 s is under way (after 0.412 s)";
        assert_eq!(failed.to_string(), said);
        failed.after = Duration::from_secs(30);
        failed.why = Why::Late(Duration::from_secs(30));
        let said = "plugin emu: presuspend: it did not answer within its deadline of 30 s (after 30 s)";
        assert_eq!(failed.to_string(), said);
    }
}
