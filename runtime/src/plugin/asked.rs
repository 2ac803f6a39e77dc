//! Which plugins a job is to have: by the words of the command line and of an annotation, and by its image.

use super::manifest::{Manifest, proper};
use crate::error::{Error, Result};
use ckrun_plugin::Grant;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The annotation of config.json that has the same words as `--plugin`, separated by spaces.
pub const ANNOTATION: &str = "dev.ckrun.plugins";

/// A plugin that is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Its name in the job.
    pub name: String,
    /// Its program, if it was given by that and not by the name of a manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// The options that it was given, without those of the manifest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// The capabilities that it was given, without those of the manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
}

impl Asked {
    /// Reads `NAME[:key=value,…]` or `PROGRAM[:key=value,…]`. What has a slash is the path of a program.
    ///
    /// # Errors
    /// [`Error::Usage`] for words that are none of these.
    pub fn parse(words: &str) -> Result<Asked> {
        let wrong = |why: &str| Error::Usage(format!("plugin {words:?}: {why}"));
        let (name, options) = words.split_once(':').unwrap_or((words, ""));
        let mut asked = if name.contains('/') {
            // The process will be in another directory.
            let program = std::path::absolute(name).map_err(|e| Error::file(name, &e))?;
            let name = proper(program.file_name().and_then(|name| name.to_str()).unwrap_or_default())?;
            Asked { name, program: Some(program), options: BTreeMap::new(), grants: Vec::new() }
        } else {
            Asked { name: proper(name)?, program: None, options: BTreeMap::new(), grants: Vec::new() }
        };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let split = option.split_once('=').filter(|(key, _)| !key.is_empty());
            let (key, value) = split.ok_or_else(|| wrong("an option is key=value"))?;
            asked.options.insert(key.into(), value.into());
        }
        Ok(asked)
    }

    /// The same plugin by other words: what they say comes before what was said.
    fn replace(&mut self, by: &Asked) {
        self.program.clone_from(&by.program);
        self.options.extend(by.options.clone());
        self.grants.extend(
            by.grants.iter().filter(|grant| !self.grants.contains(grant)).copied().collect::<Vec<_>>(),
        );
    }

    /// All that is needed to start it; `dir` has the manifests.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Json`] for the manifest.
    pub fn find(&self, dir: &Path) -> Result<Manifest> {
        let mut manifest = match &self.program {
            Some(program) => Manifest::program(&self.name, program)?,
            None => Manifest::file(&self.name, dir)?,
        };
        manifest.options.extend(self.options.clone());
        manifest.grants.extend(self.grants.iter().copied());
        Ok(manifest)
    }
}

/// Several plugins: those of `first` in their order, with what `then` says of the same names, and the others of `then`: each
/// before the next one of `then` that `first` has too, else at the end. So a word can put one before those of an image.
///
/// # Errors
/// [`Error::Usage`] for a name that `then` has twice.
pub fn merge(first: Vec<Asked>, then: Vec<Asked>) -> Result<Vec<Asked>> {
    for (index, asked) in then.iter().enumerate() {
        if then[..index].iter().any(|other| other.name == asked.name) {
            return Err(Error::Usage(format!("plugin {:?} was given twice", asked.name)));
        }
    }
    let (mut all, mut new) = (first, Vec::new());
    for asked in then {
        match all.iter().position(|other| other.name == asked.name) {
            Some(at) => {
                all[at].replace(&asked);
                all.splice(at..at, new.drain(..));
            }
            None => new.push(asked),
        }
    }
    all.append(&mut new);
    Ok(all)
}

/// Gives plugins capabilities: each word is `NAME=memory,registers,signals`.
///
/// # Errors
/// [`Error::Usage`] for other words, and for a plugin that is not among `all`.
pub fn grant(all: &mut [Asked], words: &[String]) -> Result<()> {
    for word in words {
        let wrong = |why: String| Error::Usage(format!("--plugin-grant {word}: {why}"));
        let split = word.split_once('=');
        let (name, grants) = split.ok_or_else(|| wrong("it is not of the form NAME=CAPABILITY,…".into()))?;
        let asked = all.iter_mut().find(|asked| asked.name == name);
        let asked = asked.ok_or_else(|| wrong(format!("the job has no plugin {name:?}")))?;
        for name in grants.split(',') {
            let grant = named(name).ok_or_else(|| wrong(format!("{name:?}: {GRANTS}")))?;
            if !asked.grants.contains(&grant) {
                asked.grants.push(grant);
            }
        }
    }
    Ok(())
}

/// What there is.
pub const GRANTS: &str = "there are memory, registers and signals";

/// The capability of that name.
pub fn named(name: &str) -> Option<Grant> {
    Grant::ALL.into_iter().find(|grant| grant.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(words: &[&str]) -> Vec<Asked> {
        words.iter().map(|words| Asked::parse(words).unwrap()).collect()
    }

    #[test]
    fn the_command_line_says_more_of_the_plugins_of_an_image() {
        let image = all(&["emu:slot=1,server=a", "/opt/trace"]);
        let merged = merge(image, all(&["fault:at=7", "emu:slot=5", "./trace", "last"])).unwrap();
        let names: Vec<&str> = merged.iter().map(|asked| asked.name.as_str()).collect();
        assert_eq!(names, ["fault", "emu", "trace", "last"]);
        assert_eq!((merged[1].options["slot"].as_str(), merged[1].options["server"].as_str()), ("5", "a"));
        assert_eq!(merged[2].program, Some(std::path::absolute("./trace").unwrap()));
        assert!(merge(Vec::new(), all(&["emu", "emu:slot=2"])).is_err());
    }

    #[test]
    fn capabilities_are_given_to_plugins_that_there_are() {
        let mut asked = all(&["emu"]);
        grant(&mut asked, &["emu=memory,signals".into(), "emu=memory".into()]).unwrap();
        assert_eq!(asked[0].grants, [Grant::Memory, Grant::Signals]);
        for word in ["emu", "other=memory", "emu=all", "emu="] {
            assert!(grant(&mut asked, &[word.into()]).is_err(), "{word}");
        }
    }
}
