//! What a restart does with files that are not as they were at the checkpoint: the words of `--changed-files`, and those of
//! an annotation, for containers whose restart a client asks for, which knows no such option.

use crate::error::{Error, Result};
use ckrun_virt::restore::Changed;
use oci_spec::runtime::Spec;
use std::path::PathBuf;

/// The annotation of config.json that has the same words as `--changed-files`, separated by spaces.
pub const ANNOTATION: &str = "dev.ckrun.changed-files";

/// A policy for one file, or for all that are not named.
pub type Word = (Option<PathBuf>, Changed);

/// One word of `--changed-files`. The path may have a `=` in it, a policy has none.
pub fn parse(word: &str) -> Result<Word, String> {
    let (path, policy) = match word.rsplit_once('=') {
        Some((path, policy)) => (Some(path), policy),
        None => (None, word),
    };
    let policy = match policy {
        "strict" => Changed::Strict,
        "truncate" => Changed::Truncate,
        "ignore" => Changed::Ignore,
        other => return Err(format!("{other:?} is none of strict, truncate, ignore")),
    };
    match path {
        Some(path) if !path.starts_with('/') => {
            Err(format!("{path:?} is not an absolute path in the container"))
        }
        path => Ok((path.map(PathBuf::from), policy)),
    }
}

/// The policy for all files that are not named, and those for single files. What the command line says goes before what
/// the annotation says.
pub fn policies(words: &[Word], spec: &Spec) -> Result<(Changed, Vec<(PathBuf, Changed)>)> {
    let annotation = spec.annotations().as_ref().and_then(|all| all.get(ANNOTATION));
    let annotated = annotation.map_or("", String::as_str).split_whitespace();
    let annotated: Vec<Word> = annotated
        .map(parse)
        .collect::<Result<_, _>>()
        .map_err(|why| Error::config(format!("annotations.{ANNOTATION}"), why))?;
    let mut all = Changed::default();
    for (_, policy) in annotated.iter().chain(words).filter(|(path, _)| path.is_none()) {
        all = *policy;
    }
    // The first that names a file holds.
    let named = words.iter().chain(&annotated);
    let named = named.filter_map(|(path, policy)| Some((path.clone()?, *policy))).collect();
    Ok((all, named))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn policies_for_all_files_and_for_one() {
        assert_eq!(parse("ignore").unwrap(), (None, Changed::Ignore));
        let (path, policy) = parse("/var/log/a=b=truncate").unwrap();
        assert_eq!((path.unwrap(), policy), (PathBuf::from("/var/log/a=b"), Changed::Truncate));
        for bad in ["", "sometimes", "/a=", "/a", "a=strict"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_command_line_goes_before_the_annotation() {
        let mut spec = Spec::default();
        let mut annotate = |words: &str| {
            spec.set_annotations(Some(HashMap::from([(ANNOTATION.to_owned(), words.to_owned())])));
            spec.clone()
        };
        let spec = annotate("truncate  /a=ignore /b=strict");
        let (all, named) = policies(&[], &spec).unwrap();
        assert_eq!((all, named[0].1, named[1].1), (Changed::Truncate, Changed::Ignore, Changed::Strict));
        let (all, named) =
            policies(&[parse("ignore").unwrap(), parse("/b=truncate").unwrap()], &spec).unwrap();
        assert_eq!((all, &named[0]), (Changed::Ignore, &("/b".into(), Changed::Truncate)));
        assert_eq!(policies(&[], &Spec::default()).unwrap(), (Changed::Strict, Vec::new()));
        let said = policies(&[], &annotate("/a=maybe")).unwrap_err().to_string();
        assert!(said.contains("annotations.dev.ckrun.changed-files") && said.contains("maybe"), "{said}");
    }
}
