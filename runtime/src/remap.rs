//! Devices of the host at paths of the container (`--map /dev/emu0=/dev/pts/9`): the ties of a job to hardware that a
//! restart may put somewhere else.
//!
//! A bind mount makes a rule: it holds before the job, or a restart, opens anything, and costs nothing afterwards.

use crate::error::{Error, Result};
use ckrun_virt::table::rules::Rules;
use oci_spec::runtime::{Mount, Spec};
use std::path::Path;

/// Adds the mounts that carry out `rules`, after those of the configuration.
///
/// # Errors
/// The host has no such path.
pub fn apply(spec: &mut Spec, rules: &Rules) -> Result<()> {
    let mut rules: Vec<_> = rules.iter().collect();
    // A path below another one is mounted on top of it.
    rules.sort_by_key(|rule| rule.from.components().count());
    for rule in rules {
        let shown = format!("--map {}={}", rule.from.display(), rule.to.display());
        match std::fs::metadata(&rule.to) {
            Ok(_) if rule.from == Path::new("/") => {
                return Err(Error::Usage(format!("{shown}: the root of the container is the bundle's")));
            }
            Ok(_) => {}
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
