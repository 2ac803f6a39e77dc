//! `ckrun-fault`: a plugin that lets faults strike when a job goes on: in a register, in memory, in a state element of
//! softemu. The faults are options, so that one image has as many different restarts as there are faults.

mod fault;
mod target;

use ckrun_plugin::event::Level;
use ckrun_plugin::{After, Attachment, Ckrun, Code, Event, Fault, Plugin, Saved};
use fault::Options;
use std::process::ExitCode;

#[derive(Debug, Default)]
struct Campaign {
    options: Option<Options>,
}

impl Campaign {
    fn options(&self) -> Result<&Options, Fault> {
        self.options.as_ref().ok_or_else(|| Fault::new(Code::InvalidRequest, "there was no hello"))
    }

    /// What can be said before there is a job to strike.
    fn possible(&self) -> Result<(), Fault> {
        self.options()?
            .elements()
            .try_for_each(|(server, element, bit)| target::possible(server, element, bit))
    }
}

impl Plugin for Campaign {
    fn version(&self) -> String {
        format!("fault {}", env!("CARGO_PKG_VERSION"))
    }

    fn events(&self) -> Option<Vec<Event>> {
        Some(vec![Event::Init, Event::Check, Event::Restart, Event::Running, Event::Exit])
    }

    fn hello(&mut self, ckrun: &mut Ckrun) -> Result<(), Fault> {
        self.options = Some(Options::of(ckrun)?);
        Ok(())
    }

    fn init(&mut self, _: &mut Ckrun) -> Result<Attachment, Fault> {
        self.possible().map(|()| Attachment::default())
    }

    fn check(&mut self, _: &mut Ckrun, _: &Saved) -> Result<(), Fault> {
        self.possible()
    }

    fn restart(&mut self, _: &mut Ckrun, _: &Saved) -> Result<Attachment, Fault> {
        self.possible().map(|()| Attachment::default())
    }

    fn running(&mut self, ckrun: &mut Ckrun, after: After) -> Result<(), Fault> {
        let options = self.options()?;
        if after != options.at {
            return Ok(());
        }
        // All or none: whatever can be wrong is looked at first.
        let ready =
            options.faults.iter().map(|fault| target::aim(ckrun, fault)).collect::<Result<Vec<_>, _>>()?;
        for shot in ready {
            let said = shot.strike(ckrun)?;
            ckrun.log(Level::Info, said);
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    match ckrun_plugin::serve(Campaign::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ckrun-fault: {error}");
            ExitCode::FAILURE
        }
    }
}
