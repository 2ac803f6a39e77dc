//! `ckrun-remap`: a plugin without an emulator of its own. On each host a file says what stands behind the names that a job
//! knows: for links that hold no state of the job.

mod rules;

use ckrun_plugin::{Attachment, Binding, Ckrun, Code, Event, Fault, Plugin, Saved};
use rules::{Rule, Rules};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where the rules are if the command line does not say.
const FILE: &str = "/etc/ckrun/remap";

#[derive(Debug, Default)]
struct Remap {
    file: PathBuf,
    rules: Rules,
}

impl Remap {
    /// All of these must be there; if not, all that are missing are named.
    fn there<'a>(&self, rules: impl IntoIterator<Item = &'a Rule>) -> Result<(), Fault> {
        let missing: Vec<String> = rules.into_iter().filter_map(|rule| rule.missing().err()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Fault::unavailable(format!("{}: {}", self.file.display(), missing.join("; "))))
    }

    /// What stands here behind the names of a job that comes.
    fn again(&self, saved: &Saved) -> Result<Vec<Binding>, Fault> {
        let mut rules = Vec::new();
        let mut unknown = Vec::new();
        for binding in &saved.bindings {
            match self.rules.of(binding) {
                Some(rule) => rules.push(rule),
                None => unknown.push(format!("{} {}", binding.kind().name(), binding.virtual_name())),
            }
        }
        if !unknown.is_empty() {
            let file = self.file.display();
            return Err(Fault::unavailable(format!("{file} has no rule for {}", unknown.join(", "))));
        }
        self.there(&rules)?;
        Ok(rules.into_iter().map(|rule| rule.binding()).collect())
    }
}

impl Plugin for Remap {
    fn version(&self) -> String {
        format!("remap {}", env!("CARGO_PKG_VERSION"))
    }

    fn events(&self) -> Option<Vec<Event>> {
        Some(vec![Event::Init, Event::Check, Event::Restart, Event::Exit])
    }

    fn hello(&mut self, ckrun: &mut Ckrun) -> Result<(), Fault> {
        ckrun.expect_options(&["file"])?;
        self.file = ckrun.option("file").unwrap_or(FILE).into();
        if !self.file.is_absolute() {
            let why = format!("option file={}: must be an absolute path", self.file.display());
            return Err(Fault::new(Code::InvalidParams, why));
        }
        self.rules = read(&self.file)?;
        Ok(())
    }

    fn init(&mut self, _: &mut Ckrun) -> Result<Attachment, Fault> {
        self.there(self.rules.iter())?;
        let bindings = self.rules.iter().map(Rule::binding).collect();
        Ok(Attachment { bindings, ..Attachment::default() })
    }

    fn check(&mut self, _: &mut Ckrun, saved: &Saved) -> Result<(), Fault> {
        self.again(saved).map(drop)
    }

    fn restart(&mut self, _: &mut Ckrun, saved: &Saved) -> Result<Attachment, Fault> {
        Ok(Attachment { bindings: self.again(saved)?, ..Attachment::default() })
    }
}

fn read(file: &Path) -> Result<Rules, Fault> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| Fault::unavailable(format!("the rules {}: {e}", file.display())))?;
    Rules::parse(&text).map_err(|bad| Fault::new(Code::InvalidParams, format!("{}, {bad}", file.display())))
}

fn main() -> ExitCode {
    match ckrun_plugin::serve(Remap::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ckrun-remap: {error}");
            ExitCode::FAILURE
        }
    }
}
