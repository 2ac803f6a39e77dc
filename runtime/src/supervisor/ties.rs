//! What plugins tie the job to, and what they save of it: taken over from their answers, and given back to them.

use super::record::Plugin;
use super::request::{self, Tie, Tied};
use super::story::{Answered, Story, out_of_turn};
use crate::error::Result;
use crate::plugin::attach::Attached;
use crate::plugin::company::{Folder, Kept, Rebound};
use crate::plugin::{Failed, Why};
use ckrun_plugin::binding::Kind;
use ckrun_plugin::{Event, Reason};
use serde_json::json;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

impl Story {
    /// Takes over what the plugins have tied to a job.
    pub(super) fn attach(&mut self, attached: Result<Vec<Attached>>) -> Answered {
        let attached = attached.inspect_err(|_| {
            // They have been told.
            self.over(Reason::Failed);
        })?;
        let mut ties = Vec::new();
        for Attached { plugin, bindings, more } in attached {
            self.desk.bind(&plugin, &bindings, true)?;
            let tied = self.desk.record.plugin(&plugin).map(|kept| {
                kept.ioctls.clone_from(&more.ioctls);
                kept.bindings.clone()
            });
            let (env, mounts, ioctls) = (more.env, more.mounts, more.ioctls);
            ties.push(Tie { plugin, bindings: tied.unwrap_or_default(), env, mounts, ioctls });
        }
        Ok((json!(Tied { ties }), Vec::new()))
    }

    /// What is in the image of each plugin.
    pub(super) fn kept(
        &self,
        folders: Vec<PathBuf>,
        fds: Vec<OwnedFd>,
    ) -> Result<impl FnMut(&str) -> Result<Kept> + use<>> {
        let mut folders = self.folders(folders, fds)?;
        let known: BTreeMap<String, _> = self
            .desk
            .record
            .plugins
            .iter()
            .map(|p| (p.name().to_owned(), (p.requirements.clone(), p.bindings.clone())))
            .collect();
        Ok(move |name: &str| {
            let folder = folders.remove(name).ok_or_else(|| out_of_turn("a plugin without a folder"))?;
            let (requirements, bindings) = known.get(name).cloned().unwrap_or_default();
            Ok(Kept { folder, requirements, bindings })
        })
    }

    /// Descriptors and paths of folders by the names of their plugins.
    fn folders(&self, paths: Vec<PathBuf>, fds: Vec<OwnedFd>) -> Result<BTreeMap<String, Folder>> {
        let plugins = &self.desk.record.plugins;
        if paths.len() != plugins.len() || fds.len() != plugins.len() {
            return Err(out_of_turn("another number of folders than of plugins"));
        }
        let folders = paths.into_iter().zip(fds).map(|(path, fd)| Folder { path, fd });
        Ok(plugins.iter().map(|plugin| plugin.name().to_owned()).zip(folders).collect())
    }

    pub(super) fn precheckpoint(&mut self, folders: Vec<PathBuf>, fds: Vec<OwnedFd>) -> Answered {
        let mut folders = self.folders(folders, fds)?;
        let folder =
            |name: &str| folders.remove(name).ok_or_else(|| out_of_turn("a plugin without a folder"));
        let (company, desk) = self.company()?;
        let requirements = company.precheckpoint(folder, desk)?;
        for (plugin, requirements) in desk.record.plugins.iter_mut().zip(requirements) {
            plugin.requirements = requirements;
        }
        let image: request::Image = desk.record.plugins.iter().map(Plugin::saved).collect();
        Ok((json!({}), vec![request::sheet(&image)?]))
    }

    /// Takes over bindings that replace others.
    pub(super) fn rebind(&mut self, bound: Vec<Rebound>, mut failed: Vec<Failed>) -> Vec<Failed> {
        for Rebound { plugin, new } in bound {
            let wrong = |why: String| Failed {
                plugin: plugin.clone(),
                event: Some(Event::Resume),
                after: Duration::ZERO,
                why: Why::Answer(why),
            };
            let name = new.binding.virtual_name();
            let old = self.desk.record.bindings().find(|(_, old)| old.virtual_name() == name);
            let old = old.and_then(|(_, old)| old.real().cloned());
            let fixed = matches!(new.binding.kind(), Kind::Device | Kind::Memory);
            match new.recorded() {
                Ok(now) if fixed && old.is_some() && now.real() != old.as_ref() => {
                    failed.push(wrong(format!(
                        "{name}: the job has it open; only a restart can put another there"
                    )));
                }
                Ok(_) => {
                    if let Err(e) = self.desk.bind(&plugin, &[new], false) {
                        failed.push(wrong(e.to_string()));
                    }
                }
                Err(e) => failed.push(wrong(e.to_string())),
            }
        }
        failed
    }
}
