//! Rules that put real paths in the place of virtual ones: `/dev/emu0=/dev/pts/9`.
//!
//! The longest virtual prefix wins, and only whole components count: `/dev/emu` says nothing of `/dev/emu0`. There is one
//! pass: what a rule has made is not looked up again. Both directions have one answer each, since rules that would give one
//! real path two virtual names are refused.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The longest path of a rule, in bytes: the kernel takes none that is longer (PATH_MAX).
const MAX_PATH: usize = 4095;

/// A virtual prefix and the real one that stands for it; both absolute, without `.`, `..` and doubled slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What the job sees.
    pub from: PathBuf,
    /// What is there on this host.
    pub to: PathBuf,
}

/// A rule that can't be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rule {:?}: {why}", rule.as_bytes().escape_ascii().to_string())]
pub struct BadRule {
    rule: std::ffi::OsString,
    why: String,
}

/// A set of rules, each with a virtual and a real prefix of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Reads rules, one a text. A virtual path ends at the first `=` that a `/` follows, so that both may hold other `=`.
    ///
    /// # Errors
    /// The first rule that is not of the form `/VIRTUAL=/REAL`, or that contradicts one before it.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a OsStr>) -> Result<Rules, BadRule> {
        let mut rules = Rules::default();
        for text in texts {
            let bad = |why: String| BadRule { rule: text.to_owned(), why };
            let bytes = text.as_bytes();
            let split = bytes.windows(2).position(|pair| pair == b"=/");
            let split = split.ok_or_else(|| bad("it is not of the form /VIRTUAL=/REAL".into()))?;
            let (from, to) = (OsStr::from_bytes(&bytes[..split]), OsStr::from_bytes(&bytes[split + 1..]));
            rules.add(Path::new(from), Path::new(to)).map_err(bad)?;
        }
        Ok(rules)
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// Why it is none, or which one it contradicts.
    pub fn add(&mut self, from: &Path, to: &Path) -> Result<(), String> {
        let plain = |path: &Path| plain(path.as_os_str().as_bytes());
        let from = plain(from).map_err(|why| format!("its virtual path {why}"))?;
        let to = plain(to).map_err(|why| format!("its real path {why}"))?;
        let rule = Rule { from, to };
        self.fits(&rule)?;
        self.0.push(rule);
        Ok(())
    }

    /// The rules, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    /// The real path for a virtual one; None when no rule speaks of it, or when it is not absolute or holds `..` (what
    /// that means only the file system can tell).
    pub fn to_real(&self, path: &Path) -> Option<PathBuf> {
        let path = plain(path.as_os_str().as_bytes()).ok()?;
        let rule = self.longest(&path, |rule| &rule.from)?;
        transplant(&path, &rule.from, &rule.to)
    }

    /// The virtual path for a real one, as [`Rules::to_real`] the other way round. None too for a real path that no
    /// virtual one leads to, because a longer rule has taken its place.
    pub fn to_virtual(&self, path: &Path) -> Option<PathBuf> {
        let path = plain(path.as_os_str().as_bytes()).ok()?;
        let rule = self.longest(&path, |rule| &rule.to)?;
        let answer = transplant(&path, &rule.to, &rule.from)?;
        (self.to_real(&answer)? == path).then_some(answer)
    }

    fn longest(&self, path: &Path, side: impl Fn(&Rule) -> &PathBuf) -> Option<&Rule> {
        let matching = self.0.iter().filter(|rule| path.starts_with(side(rule)));
        matching.max_by_key(|rule| side(rule).components().count())
    }

    fn fits(&self, new: &Rule) -> Result<(), String> {
        for old in &self.0 {
            let said = format!("{}={}", old.from.display(), old.to.display());
            if old.from == new.from {
                return Err(format!("the rule {said} speaks of the same virtual path"));
            }
            // Below a real prefix every path has a virtual name already; a second rule may only repeat that name.
            for (above, below) in [(old, new), (new, old)] {
                if below.to.starts_with(&above.to)
                    && transplant(&below.to, &above.to, &above.from).as_ref() != Some(&below.from)
                {
                    return Err(format!(
                        "with the rule {said}, {} would have two virtual names",
                        below.to.display()
                    ));
                }
            }
        }
        Ok(())
    }
}

/// `path`, which is `from` or below it, at the same place below `to`.
fn transplant(path: &Path, from: &Path, to: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(from).ok()?;
    // `join("")` would add a slash at the end.
    Some(if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) })
}

/// An absolute path with nothing in it but names; std's components leave out `.` and doubled slashes.
fn plain(bytes: &[u8]) -> Result<PathBuf, &'static str> {
    let path = Path::new(OsStr::from_bytes(bytes));
    if !path.is_absolute() {
        return Err("does not begin with /");
    }
    if bytes.len() > MAX_PATH {
        return Err("is longer than 4095 bytes");
    }
    if bytes.contains(&0) {
        return Err("holds a NUL");
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return Err("holds ..");
    }
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules(texts: &[&str]) -> Result<Rules, String> {
        Rules::parse(texts.iter().map(OsStr::new)).map_err(|e| e.to_string())
    }

    fn real(rules: &Rules, path: &str) -> Option<String> {
        rules.to_real(Path::new(path)).map(|path| path.display().to_string())
    }

    #[test]
    fn the_longest_prefix_of_whole_components_wins_in_one_pass() {
        let rules = rules(&["/dev/emu=/dev/pts", "/dev/emu/0=/dev/emu7", "/dev/emu7=/x"]).unwrap();
        assert_eq!(real(&rules, "/dev/emu/1").as_deref(), Some("/dev/pts/1"));
        assert_eq!(real(&rules, "/dev/emu").as_deref(), Some("/dev/pts"));
        assert_eq!(
            real(&rules, "/dev//emu/./0/").as_deref(),
            Some("/dev/emu7"),
            "and that is not mapped again"
        );
        assert_eq!(real(&rules, "/dev/emu7/a").as_deref(), Some("/x/a"));
        for other in ["/dev/emu77", "/dev", "dev/emu", "/dev/emu/../emu/1", ""] {
            assert_eq!(real(&rules, other), None, "{other:?}");
        }
        let back = |path: &str| rules.to_virtual(Path::new(path));
        assert_eq!(back("/dev/emu7"), Some("/dev/emu/0".into()));
        assert_eq!(back("/dev/pts/9"), Some("/dev/emu/9".into()));
        assert_eq!(back("/dev/pts/0"), None, "/dev/emu/0 is something else");
    }

    #[test]
    fn an_equals_sign_may_be_part_of_a_name() {
        let rules = rules(&["/dev/a=b=/dev/c=d"]).unwrap();
        assert_eq!(real(&rules, "/dev/a=b").as_deref(), Some("/dev/c=d"));
    }

    #[test]
    fn a_bad_rule_is_named() {
        for (texts, why) in [
            (&["/a"][..], "it is not of the form"),
            (&["/a=b"], "it is not of the form"),
            (&["a=/b"], "its virtual path does not begin with /"),
            (&["=/b"], "its virtual path does not begin with /"),
            (&["/a/../c=/b"], "its virtual path holds .."),
            (&["/a=/b/.."], "its real path holds .."),
            (&["/a=/b", "/a/=/c"], "the rule /a=/b speaks of the same virtual path"),
            (&["/a=/b", "/c=/b"], "/b would have two virtual names"),
            (&["/a=/b", "/c=/b/x"], "/b/x would have two virtual names"),
            (&["/c=/b/x", "/a=/b"], "/b/x would have two virtual names"),
        ] {
            let said = rules(texts).unwrap_err();
            let named = format!("rule {:?}: ", texts.last().unwrap());
            assert!(said.starts_with(&named) && said.contains(why), "{texts:?}: {said}");
        }
        rules(&["/a=/b", "/a/x=/b/x"]).unwrap();
    }

    fn path() -> impl Strategy<Value = String> {
        proptest::collection::vec("[abc]", 1..4).prop_map(|names| format!("/{}", names.join("/")))
    }

    proptest! {
        #[test]
        fn no_real_path_has_two_virtual_names(
            texts in proptest::collection::vec((path(), path()), 1..5),
            paths in proptest::collection::vec(path(), 1..20),
        ) {
            let texts: Vec<String> = texts.iter().map(|(from, to)| format!("{from}={to}")).collect();
            if let Ok(rules) = Rules::parse(texts.iter().map(OsStr::new)) {
                for path in paths {
                    if let Some(real) = rules.to_real(Path::new(&path)) {
                        prop_assert_eq!(rules.to_virtual(&real), Some(PathBuf::from(path)), "{:?}", real);
                    }
                }
            }
        }
    }
}
