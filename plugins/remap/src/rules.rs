//! Rules, one a line: `/dev/emu0 = /dev/pts/9`.
//!
//! For a name that is bound, the longest rule counts, by whole components of a path: `/dev/emu` says nothing of `/dev/emu0`.
//! There is one pass: what a rule has made is not looked up again.

use ckrun_plugin::binding::Kind;
use ckrun_plugin::{Address, Binding, Real};
use std::fmt;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

/// The longest path, in bytes: the kernel takes none that is longer (PATH_MAX).
const MAX_PATH: usize = 4095;

/// What a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// A device, another file, or a directory: in the container, and here.
    Device(PathBuf, PathBuf),
    /// A file that is mapped.
    Memory(PathBuf, PathBuf),
    /// A socket.
    Socket(Address, Address),
}

/// A line that is no rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    line: usize,
    rule: String,
    why: String,
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: rule {:?}: {}", self.line, self.rule, self.why)
    }
}

/// All rules of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<(usize, Rule)>);

impl Rules {
    /// Reads them. Empty lines and those that begin with `#` say nothing.
    pub fn parse(text: &str) -> Result<Rules, Bad> {
        let mut rules = Rules::default();
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |why: String| Bad { line: n + 1, rule: line.into(), why };
            let rule = Rule::parse(line).map_err(bad)?;
            rules.fits(&rule).map_err(bad)?;
            rules.0.push((n + 1, rule));
        }
        Ok(rules)
    }

    /// The rules in the order of their lines.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter().map(|(_, rule)| rule)
    }

    /// The rule for a name that was bound, made of the longest one that speaks of it.
    pub fn of(&self, binding: &Binding) -> Option<Rule> {
        match binding {
            Binding::Socket { virtual_address, .. } => self.iter().find_map(|rule| match rule {
                Rule::Socket(from, _) if from == virtual_address => Some(rule.clone()),
                _ => None,
            }),
            Binding::Device { virtual_path, .. } => {
                let (from, to) = self.path(Kind::Device, virtual_path)?;
                Some(Rule::Device(from, to))
            }
            Binding::Memory { virtual_path, .. } => {
                let (from, to) = self.path(Kind::Memory, virtual_path)?;
                Some(Rule::Memory(from, to))
            }
            Binding::Handle { .. } => None,
        }
    }

    fn path(&self, kind: Kind, path: &str) -> Option<(PathBuf, PathBuf)> {
        let path = plain(path).ok()?;
        let rules = self.iter().filter(|rule| rule.kind() == kind).filter_map(Rule::paths);
        let (from, to) = rules
            .filter(|(from, _)| path.starts_with(from))
            .max_by_key(|(from, _)| from.components().count())?;
        let there = transplant(&path, from, to)?;
        Some((path, there))
    }

    /// A rule must not contradict one before it.
    fn fits(&self, new: &Rule) -> Result<(), String> {
        for (line, old) in &self.0 {
            if old.virtual_name() == new.virtual_name() {
                return Err(format!("line {line} speaks of {} too", new.virtual_name()));
            }
            let twice = |real: &dyn fmt::Display| {
                Err(format!("with line {line}, {real} would have two virtual names"))
            };
            match (old, new) {
                (Rule::Socket(_, one), Rule::Socket(_, other)) if one == other => return twice(one),
                _ => {}
            }
            let (Some(old), Some(new)) = (old.paths(), new.paths()) else { continue };
            // Below a real path every path has a virtual name already; a second rule may only repeat that name.
            for (above, below) in [(old, new), (new, old)] {
                if below.1.starts_with(above.1)
                    && transplant(below.1, above.1, above.0).as_deref() != Some(below.0)
                {
                    return twice(&below.1.display());
                }
            }
        }
        Ok(())
    }
}

impl Rule {
    fn parse(line: &str) -> Result<Rule, String> {
        let form = "it is not of the form VIRTUAL = REAL, with blanks around the =";
        let split = line.match_indices('=').find(|(at, _)| {
            let blank = |text: Option<char>| text.is_some_and(char::is_whitespace);
            blank(line[..*at].chars().next_back()) && blank(line[at + 1..].chars().next())
        });
        let (at, _) = split.ok_or(form)?;
        let (left, right) = (line[..at].trim(), line[at + 1..].trim());
        let paths = |left: &str| -> Result<_, String> {
            let from = plain(left).map_err(|why| format!("its virtual path {why}"))?;
            Ok((from, plain(right).map_err(|why| format!("its real path {why}"))?))
        };
        if let Some(path) = left.strip_prefix("memory").filter(|rest| rest.starts_with(char::is_whitespace)) {
            let (from, to) = paths(path.trim())?;
            return Ok(Rule::Memory(from, to));
        }
        if left.starts_with('/') {
            let (from, to) = paths(left)?;
            return Ok(Rule::Device(from, to));
        }
        let address = |text: &str| text.parse::<Address>();
        let from = address(left).map_err(|why| format!("{why}, nor an absolute path, nor memory and one"))?;
        let to = address(right)?;
        if matches!(from, Address::Tcp(..)) != matches!(to, Address::Tcp(..)) {
            return Err("a TCP connection and a Unix socket can't stand for each other".into());
        }
        Ok(Rule::Socket(from, to))
    }

    fn kind(&self) -> Kind {
        match self {
            Rule::Device(..) => Kind::Device,
            Rule::Memory(..) => Kind::Memory,
            Rule::Socket(..) => Kind::Socket,
        }
    }

    fn paths(&self) -> Option<(&Path, &Path)> {
        match self {
            Rule::Device(from, to) | Rule::Memory(from, to) => Some((from, to)),
            Rule::Socket(..) => None,
        }
    }

    fn virtual_name(&self) -> String {
        match self {
            Rule::Device(from, _) | Rule::Memory(from, _) => from.display().to_string(),
            Rule::Socket(from, _) => from.to_string(),
        }
    }

    /// What ckrun is told.
    pub fn binding(&self) -> Binding {
        match self {
            Rule::Device(from, to) => {
                Binding::device(from.to_string_lossy(), Real::Name(to.to_string_lossy().into()))
            }
            Rule::Memory(from, to) => {
                Binding::memory(from.to_string_lossy(), Real::Name(to.to_string_lossy().into()))
            }
            Rule::Socket(from, to) => Binding::socket(from.clone(), to.clone()),
        }
    }

    /// Whether the real thing is there; the error names it. Who listens on the network is not asked: an emulator may have
    /// room for one connection only.
    pub fn missing(&self) -> Result<(), String> {
        let (path, socket) = match self {
            Rule::Device(_, to) | Rule::Memory(_, to) => (to.as_path(), false),
            Rule::Socket(_, Address::Unix(path)) => (Path::new(path), true),
            Rule::Socket(..) => return Ok(()),
        };
        let named = format!("{} for {}", path.display(), self.virtual_name());
        match fs::metadata(path) {
            Err(e) => Err(format!("{named} is missing here: {e}")),
            Ok(found) if socket && !found.file_type().is_socket() => Err(format!("{named} is no socket")),
            Ok(found) if matches!(self, Rule::Memory(..)) && !found.is_file() => {
                Err(format!("{named} is no file that can be mapped"))
            }
            Ok(_) => Ok(()),
        }
    }
}

/// `path`, which is `from` or below it, at the same place below `to`.
fn transplant(path: &Path, from: &Path, to: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(from).ok()?;
    // `join("")` would add a slash at the end.
    Some(if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) })
}

/// An absolute path with nothing in it but names; std's components leave out `.` and doubled slashes.
fn plain(text: &str) -> Result<PathBuf, &'static str> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err("does not begin with /");
    }
    if text.len() > MAX_PATH {
        return Err("is longer than 4095 bytes");
    }
    if text.contains('\0') {
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

    fn real(rules: &Rules, path: &str) -> Option<String> {
        match rules.of(&Binding::device(path, ""))? {
            Rule::Device(_, to) => Some(to.display().to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_longest_prefix_of_whole_components_wins_in_one_pass() {
        let rules =
            Rules::parse("/dev/emu = /dev/pts\n/dev/emu/0 = /dev/emu7\n  # a remark\n\n/dev/emu7 = /x")
                .unwrap();
        assert_eq!(real(&rules, "/dev/emu/1").as_deref(), Some("/dev/pts/1"));
        assert_eq!(real(&rules, "/dev/emu").as_deref(), Some("/dev/pts"));
        assert_eq!(real(&rules, "/dev//emu/./0/").as_deref(), Some("/dev/emu7"));
        assert_eq!(real(&rules, "/dev/emu01"), None);
    }

    #[test]
    fn every_kind_has_its_form() {
        let text = "/dev/a=b = /dev/pts/9\nmemory /dev/shm/ring0 = /dev/shm/x\ntcp:emu:4000 = tcp:10.77.0.2:5011\n\
                    unix:/run/e = unix:@name";
        let bindings: Vec<Binding> = Rules::parse(text).unwrap().iter().map(Rule::binding).collect();
        assert_eq!(
            bindings,
            [
                Binding::device("/dev/a=b", "/dev/pts/9"),
                Binding::memory("/dev/shm/ring0", "/dev/shm/x"),
                Binding::socket(Address::Tcp("emu".into(), 4000), "tcp:10.77.0.2:5011"),
                Binding::socket(Address::Unix("/run/e".into()), "unix:@name"),
            ]
        );
    }

    #[test]
    fn a_bad_rule_is_named_with_its_line() {
        for (text, why) in [
            (
                "\n/dev/emu0 /dev/pts/9",
                "line 2: rule \"/dev/emu0 /dev/pts/9\": it is not of the form VIRTUAL = REAL",
            ),
            ("/dev/emu0=/dev/pts/9", "with blanks around the ="),
            ("/dev/emu0 = pts/9", "line 1: rule \"/dev/emu0 = pts/9\": its real path does not begin with /"),
            ("memory ring = /x", "its virtual path does not begin with /"),
            ("/a/../b = /x", "its virtual path holds .."),
            ("emu0 = /dev/pts/9", "\"emu0\" is neither tcp:HOST:PORT"),
            ("tcp:emu:4000 = /run/x", "\"/run/x\" is neither tcp:HOST:PORT"),
            ("tcp:emu:4000 = unix:/run/x", "can't stand for each other"),
            ("/a = /x\n/a = /y", "line 2: rule \"/a = /y\": line 1 speaks of /a too"),
            (
                "/a = /x\n/b = /x/1",
                "line 2: rule \"/b = /x/1\": with line 1, /x/1 would have two virtual names",
            ),
            ("tcp:a:1 = tcp:c:1\ntcp:b:1 = tcp:c:1", "tcp:c:1 would have two virtual names"),
        ] {
            let said = Rules::parse(text).unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
    }
}
