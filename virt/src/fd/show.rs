//! Descriptors as the translation table shows them.

use super::{Files, Object};
use crate::image::Bytes;
use crate::table::Seen;
use serde_json::Value;

impl Files {
    /// Adds all descriptors to what is seen of a job.
    pub fn show(&self, seen: &mut Seen) {
        for (&pid, holdings) in &self.processes {
            let table = holdings.table.and_then(|owner| self.processes.get(&owner)).unwrap_or(holdings);
            for held in &table.descriptors {
                let Some(description) = self.description(held.description) else { continue };
                seen.add_descriptor(pid, held.fd, held.description, || description.object.words());
            }
        }
    }
}

impl Object {
    /// What it is, for people: its kind, and its path if it has one.
    fn words(&self) -> Bytes {
        // The names are those of the image.
        let value = serde_json::to_value(self).unwrap_or_default();
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
        let text = path(&value).map_or_else(|| kind.to_owned(), |path| format!("{kind} {path}"));
        text.into_bytes().into()
    }
}

fn path(value: &Value) -> Option<&str> {
    let members = value.as_object()?;
    members.get("path").and_then(Value::as_str).or_else(|| members.values().find_map(path))
}
