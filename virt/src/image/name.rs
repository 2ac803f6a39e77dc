//! The names that files of an image may have.

use super::{Error, Result};

/// The file that makes a directory an image.
pub const MANIFEST: &str = "manifest.json";
/// The index of all pages of memory.
pub const INDEX: &str = "pages.idx";
/// Container engines look for this name to tell a checkpoint from another directory; what is in it is the runtime's.
pub const INVENTORY: &str = "inventory.img";
/// The folder with the contents of files, `files/N`.
pub const FILES: &str = "files";
/// The folder with a folder for each plugin.
pub const PLUGINS: &str = "plugins";

/// The most components that a name may have.
const DEPTH: usize = 16;
/// The most bytes in all; half of what a path may have, so that there is room for the directory's.
const LENGTH: usize = 2048;

/// Checks the name of a file in an image: relative, plain components, nothing that leads out of the directory or that
/// a terminal would take for a command. A first component that begins with a dot is ckrun's own while it writes.
pub(super) fn check(name: &str) -> Result<()> {
    let wrong = |why| Err(Error::Name { name: name.to_owned(), why });
    if name.len() > LENGTH {
        return wrong("longer than 2048 bytes");
    }
    if name.chars().any(char::is_control) {
        return wrong("a control character in it");
    }
    if name.starts_with('.') {
        return wrong("a dot at its beginning");
    }
    let mut depth = 0;
    for component in name.split('/') {
        depth += 1;
        match component {
            "" => return wrong("an empty component"),
            "." | ".." => return wrong("a component that is no name of its own"),
            long if long.len() > 255 => return wrong("a component of more than 255 bytes"),
            _ if depth > DEPTH => return wrong("more than 16 components"),
            _ => {}
        }
    }
    if name == MANIFEST {
        return wrong("the manifest can't list itself");
    }
    Ok(())
}

/// The number of a file of pages; None when the name is not one.
pub(super) fn pages_number(name: &str) -> Option<u16> {
    let digits = name.strip_prefix("pages-")?.strip_suffix(".img")?;
    let number: u16 = digits.parse().ok()?;
    // One name for one number: neither `+7` nor `07`.
    (number.to_string() == digits).then_some(number)
}

/// The name of the file of pages `number`.
pub(super) fn pages(number: u16) -> String {
    format!("pages-{number}.img")
}

/// The folders above `name`, outermost first: `a`, then `a/b` for `a/b/c`.
pub(super) fn folders(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('/').map(|(at, _)| &name[..at])
}

/// The first component.
pub(super) fn top(name: &str) -> &str {
    name.split('/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_directory() {
        for good in ["tasks.json", "files/12", "plugins/emu/state/.hidden", "ä b/c", "a..b"] {
            assert!(check(good).is_ok(), "{good}");
        }
        let deep = "a/".repeat(16) + "a";
        let long = "a".repeat(256);
        let longer = "a/".repeat(1024) + "a";
        for bad in [
            "",
            "/etc/passwd",
            "..",
            "../x",
            "a/../../x",
            "a/..",
            "./a",
            "a/./b",
            "a//b",
            "a/",
            ".partial",
            "a\0b",
            "a\nb",
            "a\u{9b}b",
            MANIFEST,
            &deep,
            &long,
            &longer,
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_number_of_pages_has_one_name() {
        for number in [0, 7, 65535] {
            assert_eq!(pages_number(&pages(number)), Some(number));
        }
        for bad in
            ["pages-07.img", "pages-+7.img", "pages-.img", "pages-65536.img", "pages-7.img.x", "xpages-7.img"]
        {
            assert_eq!(pages_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn folders_come_outermost_first() {
        assert_eq!(folders("a/b/c").collect::<Vec<_>>(), ["a", "a/b"]);
        assert_eq!(folders("a").count(), 0);
        assert_eq!((top("a/b/c"), top("a")), ("a", "a"));
    }
}
