//! A whole plugin: the emulator is a pseudoterminal, its state is a counter of checkpoints.

use ckrun_plugin::{After, Attachment, Binding, Ckrun, Fault, Plugin, Requirements, Saved, serve};
use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use serde_json::json;
use std::{fs, path::Path};

#[derive(Default)]
struct Echo {
    link: Option<PtyMaster>,
    checkpoints: u64,
}

impl Echo {
    /// Claims an emulator and says where it is.
    fn claim(&mut self) -> Result<Attachment, Fault> {
        let master =
            posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).map_err(std::io::Error::from)?;
        grantpt(&master).and_then(|()| unlockpt(&master)).map_err(std::io::Error::from)?;
        let name = ptsname_r(&master).map_err(std::io::Error::from)?;
        self.link = Some(master);
        Ok(Attachment { bindings: vec![Binding::device("/dev/emu0", name)], ..Attachment::default() })
    }

    /// What was saved, if it is whole.
    fn load(saved: &Saved) -> Result<u64, Fault> {
        let text = fs::read_to_string(saved.folder.join("state"))?;
        let state = text.strip_prefix("checkpoints ").and_then(|rest| rest.strip_suffix('\n'));
        state.and_then(|n| n.parse().ok()).ok_or_else(|| Fault::mismatch("the file state is damaged"))
    }
}

impl Plugin for Echo {
    fn init(&mut self, _: &mut Ckrun) -> Result<Attachment, Fault> {
        self.claim()
    }
    fn precheckpoint(&mut self, _: &mut Ckrun, folder: &Path) -> Result<Requirements, Fault> {
        self.checkpoints += 1;
        fs::write(folder.join("state"), format!("checkpoints {}\n", self.checkpoints))?;
        self.link = None;
        Ok(Requirements { requirements: [("design".into(), json!("echo"))].into_iter().collect() })
    }
    fn resume(&mut self, _: &mut Ckrun, _: After) -> Result<Vec<Binding>, Fault> {
        Ok(if self.link.is_none() { self.claim()?.bindings } else { Vec::new() })
    }
    fn check(&mut self, _: &mut Ckrun, saved: &Saved) -> Result<(), Fault> {
        Echo::load(saved).map(drop)
    }
    fn restart(&mut self, _: &mut Ckrun, saved: &Saved) -> Result<Attachment, Fault> {
        self.checkpoints = Echo::load(saved)?;
        self.claim()
    }
}

fn main() -> Result<(), ckrun_plugin::serve::Error> {
    serve(Echo::default())
}
