//! Arguments of a verb that are defined only for a command line that names the verb.
//!
//! The parser wants all verbs before it reads the first word, and to define the arguments of them all would be most of the
//! work of a short verb, such as `state`.

use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Id, Subcommand};
use std::ffi::OsString;
use std::sync::OnceLock;

/// Words for which all verbs are listed, with what their arguments say of them.
const LISTING: &[&str] = &["help", "--help", "-h", "completions"];

/// The verbs that the command line names, maybe as something else than its verb.
static NAMED: OnceLock<Vec<OsString>> = OnceLock::new();

/// From now on only those verbs have arguments that are among `words`, unless none is.
pub fn only<Verb: Subcommand>(words: &[OsString]) {
    if let Some(named) = named::<Verb>(words) {
        // A second call would be for the same command line.
        let _ = NAMED.set(named);
    }
}

/// The verbs that are to have arguments; None if all are.
fn named<Verb: Subcommand>(words: &[OsString]) -> Option<Vec<OsString>> {
    let is_verb = |word: &&OsString| word.to_str().is_some_and(Verb::has_subcommand);
    let named: Vec<OsString> = words.iter().filter(is_verb).cloned().collect();
    let lists = words.iter().any(|word| LISTING.iter().any(|listing| word == listing));
    (!named.is_empty() && !lists).then_some(named)
}

/// The arguments `T` of a verb.
#[derive(Debug)]
pub struct Named<T>(pub T);

impl<T: Args> Args for Named<T> {
    fn group_id() -> Option<Id> {
        T::group_id()
    }

    fn augment_args(verb: Command) -> Command {
        let named = NAMED.get().is_none_or(|named| named.iter().any(|word| word == verb.get_name()));
        if named { T::augment_args(verb) } else { verb }
    }

    fn augment_args_for_update(verb: Command) -> Command {
        T::augment_args_for_update(verb)
    }
}

impl<T: Args> FromArgMatches for Named<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(Named)
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches_mut(matches).map(Named)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Verb;

    #[test]
    fn all_words_count_that_may_be_the_verb() {
        for (line, expected) in [
            ("ckrun --root run state web", Some("run state")),
            ("ckrun exec web state", Some("exec state")),
            ("ckrun frobnicate web", None),
            ("ckrun", None),
            ("ckrun run --help", None),
            ("ckrun help run", None),
            ("ckrun completions zsh", None),
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let expected: Option<Vec<OsString>> =
                expected.map(|verbs| verbs.split(' ').map(OsString::from).collect());
            assert_eq!(named::<Verb>(&words), expected, "{line}");
        }
    }
}
