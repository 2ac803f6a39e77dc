//! What the supervisor answers to a job, as it follows from what the plugins have claimed and bound.

use super::record::{Plugin, Record};
use crate::error::Result;
use crate::intercept::handles::Handles;
use crate::intercept::names::Name;
use crate::intercept::{Claims, Command};
use ckrun_plugin::{Binding, Real};
use ckrun_virt::fd::Renewed;
use std::path::{Path, PathBuf};

impl Record {
    /// What is answered at this moment; `dir` is for what is learned in doing so.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn claims(&self, dir: &Path) -> Result<Claims> {
        let ioctls = self.plugins.iter().flat_map(|plugin| &plugin.ioctls);
        let command = |claim: &ckrun_plugin::binding::Ioctl| {
            let device = self.device(Path::new(&claim.device))?;
            Some(Command { claim: claim.clone(), device })
        };
        let mut handles = Handles::default();
        for (owner, binding) in self.bindings() {
            if let Binding::Handle { space, virtual_number, real_number } = binding
                && let Err(other) = handles.bind(space, *virtual_number, *real_number)
            {
                log::warn!("plugin {owner}: {space} {virtual_number} and {other} are both {real_number}");
            }
        }
        let mut claims = Claims::new(self.routes.clone(), ioctls.filter_map(command).collect(), handles);
        claims.used = self.used.clone().into();
        claims.locals = self.locals.clone().into();
        claims.note_in(dir)?;
        Ok(claims)
    }

    /// Takes over by which names the job knows the ends of connections that a restart has made anew.
    pub(super) fn renew(&mut self, connections: Vec<Renewed>) {
        for Renewed { cookie, name, local } in connections {
            let route = self.routes.iter().find(|route| route.name.as_bytes() == &name[..]);
            if let Some(route) = route {
                self.used.insert(cookie, route.to.clone());
            }
            self.locals.insert(cookie, Name::Inet(local));
        }
    }

    /// Where a device of the job is on this host.
    fn device(&self, path: &Path) -> Option<PathBuf> {
        let real = |binding: &Binding| match binding {
            Binding::Device { virtual_path, real: Real::Name(real) } => {
                let rest = path.strip_prefix(virtual_path).ok()?;
                let real = Path::new(real);
                let whole = if rest.as_os_str().is_empty() { real.into() } else { real.join(rest) };
                Some((virtual_path.len(), whole))
            }
            _ => None,
        };
        let found = self.bindings().filter_map(|(_, binding)| real(binding));
        found.max_by_key(|(length, _)| *length).map(|(_, path)| path)
    }

    /// Takes over the handles that a job has got from its drivers: each belongs to the plugin that claims a command with its
    /// name space.
    pub(super) fn learn(&mut self, handles: &Handles) {
        for (space, virtual_number, real_number) in handles.iter() {
            let claims = |plugin: &&mut Plugin| {
                plugin.ioctls.iter().flat_map(|ioctl| &ioctl.handles).any(|handle| handle.space == space)
            };
            let Some(owner) = self.plugins.iter_mut().find(claims) else { continue };
            let new = Binding::handle(space, virtual_number, real_number);
            let name = new.virtual_name();
            match owner.bindings.iter_mut().find(|old| old.virtual_name() == name) {
                Some(old) => *old = new,
                None => owner.bindings.push(new),
            }
        }
    }
}
