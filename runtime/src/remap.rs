//! Devices of the host at paths of the container (`--map /dev/emu0=/dev/pts/9`): the ties of a job to hardware that a
//! restart may put somewhere else.
//!
//! A bind mount makes a rule: it holds before the job, or a restart, opens anything, and costs nothing afterwards.

use crate::error::{Error, Result};
use ckrun_virt::table::rules::Rules;
use oci_spec::runtime::{Mount, Spec};
use std::path::Path;

/// Adds the mounts that carry out `rules`, after those of the configuration. `who` has said so: `--map`, or a plugin.
///
/// # Errors
/// The host has no such path.
pub fn apply(spec: &mut Spec, rules: &Rules, who: &str) -> Result<()> {
    let mut rules: Vec<_> = rules.iter().collect();
    // A path below another one is mounted on top of it.
    rules.sort_by_key(|rule| rule.from.components().count());
    for rule in rules {
        let shown = format!("{who} {}={}", rule.from.display(), rule.to.display());
        match std::fs::metadata(&rule.to) {
            Ok(_) if rule.from == Path::new("/") => {
                return Err(Error::Usage(format!("{shown}: the root of the container is the bundle's")));
            }
            Ok(_) => {}
            Err(_) if nameless(&rule.to) => {
                let why = "has no path on this host by which it could be shown in the container";
                return Err(Error::Usage(format!("{shown}: {} {why}", rule.to.display())));
            }
            Err(e) => return Err(Error::Usage(format!("{shown}: {}: {e}", rule.to.display()))),
        }
        let mut mount = Mount::default();
        mount
            .set_destination(rule.from.clone())
            .set_source(Some(rule.to.clone()))
            .set_typ(Some("bind".into()))
            .set_options(Some(vec!["rbind".into(), "rprivate".into()]));
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        mounts.push(mount);
        spec.set_mounts(Some(mounts));
    }
    Ok(())
}

/// What the kernel calls a file without a path: one that was deleted, or a memfd.
fn nameless(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b" (deleted)")
}
