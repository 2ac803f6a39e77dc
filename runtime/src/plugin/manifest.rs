//! Which program a plugin is: `NAME[:key=value,…]` with a manifest, or a program's path.

use super::asked::Asked;
use crate::error::{Error, Result};
use ckrun_plugin::Grant;
use ckrun_plugin::event::{Deadlines, known_deadlines};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where the manifests are.
pub const DIR: &str = "/etc/ckrun/plugins.d";

/// All that is needed to start a plugin. The file has the same members but the name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Its name in the job, also that of its folder in an image.
    #[serde(skip)]
    pub name: String,
    /// The program, with an absolute path, and its arguments.
    pub command: Vec<String>,
    /// Who runs it: `NAME`, `UID` or `UID:GID`; ckrun's own user if absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Variables for its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Its options; those of the command line replace those of the file.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Its capabilities.
    #[serde(default)]
    pub grants: Vec<Grant>,
    /// Deadlines in seconds, which replace the protocol's and those that it asks for itself.
    #[serde(default, deserialize_with = "known_deadlines")]
    pub deadlines: Deadlines,
}

impl Manifest {
    /// What `NAME[:key=value,…]` or `PROGRAM[:key=value,…]` on the command line means, see [`Asked::parse`]. `dir` has the
    /// manifests. A program that is given by its path has no grants.
    ///
    /// # Errors
    /// Those of [`Asked::parse`] and [`Asked::find`].
    pub fn of(words: &str, dir: &Path) -> Result<Manifest> {
        Asked::parse(words)?.find(dir)
    }

    /// That of a program without one.
    pub(super) fn program(name: &str, path: &Path) -> Result<Manifest> {
        let command = path.to_str().map(str::to_owned);
        let command =
            command.ok_or_else(|| Error::Usage(format!("plugin {path:?}: the path is not UTF-8")))?;
        Ok(Manifest {
            name: name.into(),
            command: vec![command],
            user: None,
            env: BTreeMap::new(),
            options: BTreeMap::new(),
            grants: Vec::new(),
            deadlines: Deadlines::new(),
        })
    }

    /// That in a file.
    pub(super) fn file(name: &str, dir: &Path) -> Result<Manifest> {
        let path = dir.join(format!("{name}.json"));
        let text = std::fs::read(&path).map_err(|e| Error::file(&path, &e))?;
        let wrong = |why: String| Error::Json { path: path.clone(), why };
        let mut from = serde_json::Deserializer::from_slice(&text);
        let manifest: Manifest =
            serde_path_to_error::deserialize(&mut from).map_err(|e| wrong(e.to_string()))?;
        match manifest.command.first() {
            Some(program) if program.starts_with('/') => Ok(Manifest { name: name.into(), ..manifest }),
            _ => Err(wrong("command: its first word must be the absolute path of a program".into())),
        }
    }

    /// The path of its program.
    pub fn path(&self) -> PathBuf {
        self.command.first().map(PathBuf::from).unwrap_or_default()
    }
}

/// A name that can be a folder's.
///
/// # Errors
/// [`Error::Usage`].
pub fn proper(name: &str) -> Result<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
    if name.is_empty() || name.starts_with('.') || name.len() > 64 || !name.chars().all(good) {
        let why = "a name has up to 64 letters, digits, and . _ - +, and does not begin with a dot";
        return Err(Error::Usage(format!("plugin {name:?}: {why}")));
    }
    Ok(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckrun_plugin::Event;

    fn with(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("emu.json"), text).unwrap();
        let path = dir.path().to_owned();
        (dir, path)
    }

    #[test]
    fn the_manifest_of_the_protocol() {
        let text = include_str!("../../../plugins/PROTOCOL.md");
        let text = text.split("\n## Manifest").nth(1).unwrap().split("```json\n").nth(1).unwrap();
        let (_dir, path) = with(text.split("```").next().unwrap());
        let manifest = Manifest::of("emu:slot=3,server=emu-b:7000", &path).unwrap();
        assert_eq!((manifest.name.as_str(), manifest.user.as_deref()), ("emu", Some("emu")));
        assert_eq!(manifest.options["slot"], "3");
        assert_eq!(manifest.options["server"], "emu-b:7000", "the command line's comes last");
        assert_eq!(manifest.deadlines[&Event::Precheckpoint], 600.0);
        assert_eq!(manifest.grants, [Grant::Memory]);
    }

    #[test]
    fn a_program_needs_no_manifest() {
        let manifest = Manifest::of("./bin/softemu.pl:slot=1", Path::new(DIR)).unwrap();
        assert_eq!(manifest.name, "softemu.pl");
        assert!(manifest.path().is_absolute() && manifest.path().ends_with("bin/softemu.pl"));
        assert!(manifest.grants.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let (_dir, path) = with("{\"command\": [\"emu\"], \"env\": {}}");
        for (words, why) in [
            ("emu", "absolute path"),
            ("emu2", "emu2.json: no such file or directory"),
            ("./x:slot", "an option is key=value"),
            ("./x:=3", "an option is key=value"),
            ("../plugins/..", "a name has"),
            ("", "a name has"),
        ] {
            let said = Manifest::of(words, &path).unwrap_err().to_string();
            assert!(said.contains(why), "{words}: {said}");
        }
        let (_dir, path) = with("{\"command\": [\"/emu\"], \"deadlines\": {\"init\": \"long\"}}");
        assert!(Manifest::of("emu", &path).unwrap_err().to_string().contains("deadlines"));
    }
}
