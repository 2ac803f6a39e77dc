//! The name of a device: `vendor.com/class=name`.

use std::fmt;
use std::str::FromStr;

/// A qualified name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    /// `vendor.com/class`.
    pub kind: String,
    /// What the vendor calls the device.
    pub device: String,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, device) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?} is no CDI device: vendor.com/class=name is expected"))?;
        check_kind(kind)?;
        check_device(device)?;
        Ok(Name { kind: kind.into(), device: device.into() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

/// Checks `vendor.com/class`.
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let (vendor, class) =
        kind.split_once('/').ok_or_else(|| format!("{kind:?} is no kind: vendor.com/class is expected"))?;
    check("vendor", vendor, 253, |first| first.is_ascii_alphabetic(), "_-.")?;
    check("class", class, 63, |first| first.is_ascii_alphabetic(), "_-.")
}

/// Checks the part after the equals sign.
pub(super) fn check_device(device: &str) -> Result<(), String> {
    check("device name", device, usize::MAX, |first| first.is_ascii_alphanumeric(), "_-.:")
}

fn check(
    what: &str,
    text: &str,
    longest: usize,
    first: fn(char) -> bool,
    inside: &str,
) -> Result<(), String> {
    if text.len() > longest {
        return Err(format!("the {what} {text:?} is longer than {longest} characters"));
    }
    let ends_well = text.starts_with(first) && text.ends_with(|last: char| last.is_ascii_alphanumeric());
    if !ends_well || !text.chars().all(|c| c.is_ascii_alphanumeric() || inside.contains(c)) {
        return Err(format!(
            "{text:?} is no {what}: it must be made of letters, digits and {inside}, begin with a letter{} \
             and end with a letter or digit",
            if first('0') { " or digit" } else { "" }
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_specification() {
        for good in ["vendor.com/class=dev", "v.c/foo-bar123.B_az=0", "vendor.com/c=a:b_c-d.1"] {
            assert_eq!(good.parse::<Name>().unwrap().to_string(), good);
        }
        let long_class = format!("vendor.com/{}=dev", "c".repeat(64));
        let long_vendor = format!("{}/c=dev", "v".repeat(254));
        for bad in [
            "",
            "/dev/null",
            "vendor.com=dev",
            "vendor.com/class",
            "vendor.com/class=",
            "vendor.com/=dev",
            "/class=dev",
            "1vendor/class=dev",
            "vendor.com/class/x=dev",
            "vendor.com/class=-d",
            "vendor.com/cl ass=d",
            "vendor.com/1class=dev",
            "vendor.com/class=d=e",
            "vendor.com/class=d-",
            &long_class,
            &long_vendor,
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
