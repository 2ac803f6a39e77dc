//! `manifest.json`: what an image is, and every file that belongs to it.

use super::{Digest, Error, FORMAT, Host, Result, name};
use crate::image::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manifest {
    /// The version of the layout, [`FORMAT`].
    pub format: u32,
    /// The version of the ckrun that wrote it.
    pub ckrun: String,
    /// When it was taken; RFC 3339 in UTC, with nanoseconds.
    #[serde(serialize_with = "write_time", deserialize_with = "read_time")]
    pub taken: SystemTime,
    /// How often the job had been restarted before.
    pub generation: u32,
    /// The image that this one adds to, when it is incremental.
    pub parent: Option<Parent>,
    /// Where it was taken.
    pub host: Host,
    /// Every file but the manifest, by its name.
    #[serde(deserialize_with = "super::unique")]
    pub files: BTreeMap<String, Entry>,
}

/// The image that an incremental one adds to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Parent {
    /// The digest that its manifest ends with: its identity, wherever it lies.
    pub digest: Digest,
    /// Where it was when this image was taken; a hint.
    pub path: Bytes,
}

/// A file of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Entry {
    /// Its size in bytes.
    pub size: u64,
    /// Its digest. Files of pages, and only those, have none: the index has one for each run of pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// What surrounds the digest that ends a manifest. It is over all bytes before `BEFORE`.
const BEFORE: &[u8] = b",\n  \"digest\": \"";
const AFTER: &[u8] = b"\"\n}\n";
/// The length of a plain digest as text.
const DIGEST: usize = "xxh3-128:".len() + 32;

impl Manifest {
    /// A manifest of an image taken here and now by this version; the writer adds the files.
    ///
    /// # Errors
    /// Those of [`Host::here`].
    pub fn new(generation: u32) -> Result<Self> {
        Ok(Manifest {
            format: FORMAT,
            ckrun: env!("CARGO_PKG_VERSION").to_owned(),
            taken: SystemTime::now(),
            generation,
            parent: None,
            host: Host::here()?,
            files: BTreeMap::new(),
        })
    }

    /// The bytes of `manifest.json`, and the digest that they end with.
    ///
    /// # Errors
    /// [`Error::Unfit`] for a value without a form in JSON (a clock that is centuries off).
    pub fn to_bytes(&self) -> Result<(Vec<u8>, Digest)> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::Unfit { file: name::MANIFEST.into(), why: e.to_string() })?;
        bytes.truncate(bytes.len() - "\n}".len());
        let digest = Digest::of(&bytes);
        bytes.extend_from_slice(BEFORE);
        bytes.extend_from_slice(digest.to_string().as_bytes());
        bytes.extend_from_slice(AFTER);
        Ok((bytes, digest))
    }

    /// Reads the bytes of `manifest.json`; `file` is only for messages. Also returns the digest that they end with.
    ///
    /// # Errors
    /// [`Error::Newer`], and [`Error::Damaged`] for everything else.
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<(Self, Digest)> {
        let whole = Self::split(bytes);
        if whole.is_none() {
            // A newer format may end in another way, so its number is asked for before anything is called damaged.
            Self::refuse_newer(file, bytes)?;
        }
        let Some((body, digest)) = whole else {
            return Err(Error::damaged(file, "it does not have the digest that it should end with"));
        };
        let mut json = Vec::with_capacity(body.len() + 2);
        json.extend_from_slice(body);
        json.extend_from_slice(b"\n}");
        Self::refuse_newer(file, &json)?;
        let manifest: Manifest =
            serde_json::from_slice(&json).map_err(|e| Error::damaged(file, e.to_string()))?;
        manifest.check().map_err(|why| Error::damaged(file, why))?;
        Ok((manifest, digest))
    }

    /// The part that the digest is over, if the digest at the end is right.
    fn split(bytes: &[u8]) -> Option<(&[u8], Digest)> {
        let rest = bytes.strip_suffix(AFTER)?;
        let (rest, digest) = rest.split_at_checked(rest.len().checked_sub(DIGEST)?)?;
        let body = rest.strip_suffix(BEFORE)?;
        let digest = std::str::from_utf8(digest).ok()?.parse().ok()?;
        (Digest::of(body) == digest).then_some((body, digest))
    }

    fn refuse_newer(file: &Path, json: &[u8]) -> Result<()> {
        #[derive(Deserialize)]
        struct Version {
            format: u64,
        }
        match serde_json::from_slice::<Version>(json) {
            Ok(version) if version.format > u64::from(FORMAT) => {
                Err(Error::Newer { file: file.to_owned(), found: version.format })
            }
            _ => Ok(()),
        }
    }

    /// What must hold of the files whoever wrote the list.
    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("there never was an image format {}", self.format));
        }
        let mut total: u64 = 0;
        for (file, entry) in &self.files {
            name::check(file).map_err(|e| e.to_string())?;
            if name::pages_number(file).is_some() != entry.digest.is_none() {
                return Err(format!("{file:?}: files of pages, and only those, have no digest of their own"));
            }
            // No file can be larger than an off_t.
            total = total
                .checked_add(entry.size)
                .filter(|&sum| sum <= i64::MAX as u64)
                .ok_or_else(|| format!("{file:?}: the sizes add up to more than any disk holds"))?;
        }
        Ok(())
    }

    /// The bytes of all files together.
    pub fn size(&self) -> u64 {
        self.files.values().fold(0, |sum, entry| sum.saturating_add(entry.size))
    }
}

fn write_time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    // The formatter knows the years 1970 to 9999.
    let year_10000 = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800);
    if !(SystemTime::UNIX_EPOCH..year_10000).contains(time) {
        return Err(serde::ser::Error::custom("the clock is before 1970 or after 9999"));
    }
    serializer.collect_str(&humantime::format_rfc3339_nanos(*time))
}

fn read_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
    humantime::parse_rfc3339(&text).map_err(|e| serde::de::Error::custom(format_args!("time {text:?}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file() -> &'static Path {
        Path::new("manifest.json")
    }

    fn small() -> Manifest {
        let digest = Some(Digest::of(b"x"));
        let files = [("tasks.json", 1, digest), ("pages-0.img", 4096, None)];
        let files =
            files.into_iter().map(|(name, size, digest)| (name.to_owned(), Entry { size, digest })).collect();
        Manifest { files, ..Manifest::new(3).unwrap() }
    }

    /// Puts the right digest under a changed text.
    fn sign(json: &str) -> Vec<u8> {
        let body = json.trim_end().strip_suffix('}').unwrap().trim_end();
        let digest = Digest::of(body.as_bytes());
        format!("{body},\n  \"digest\": \"{digest}\"\n}}\n").into_bytes()
    }

    fn changed(from: &str, to: &str) -> Error {
        let (bytes, _) = small().to_bytes().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let body = &text[..text.rfind(",\n  \"digest\"").unwrap()];
        assert!(body.contains(from), "{body}");
        Manifest::parse(file(), &sign(&format!("{}\n}}", body.replacen(from, to, 1)))).unwrap_err()
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let (bytes, _) = small().to_bytes().unwrap();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(Manifest::parse(file(), &flipped).is_err(), "byte {at}");
            assert!(Manifest::parse(file(), &bytes[..at]).is_err(), "first {at} bytes");
        }
    }

    #[test]
    fn a_newer_format_is_called_newer_whatever_else_it_has() {
        for error in [
            changed("\"format\": 1", "\"format\": 2"),
            changed("\"format\": 1", "\"new\": [], \"format\": 77"),
        ] {
            assert!(matches!(error, Error::Newer { found: 2 | 77, .. }), "{error}");
        }
        let error = Manifest::parse(file(), br#"{"sum": "blake3", "format": 9}"#).unwrap_err();
        assert!(matches!(error, Error::Newer { found: 9, .. }), "{error}");
    }

    #[test]
    fn hostile_manifests_are_refused_although_their_digest_is_right() {
        for (from, to) in [
            ("\"format\": 1", "\"format\": 0"),
            ("\"format\": 1", "\"format\": 1, \"format\": 1"),
            ("\"generation\": 3", "\"generation\": -1"),
            ("\"generation\": 3", "\"generation\": 4294967296"),
            ("\"generation\": 3", "\"generation\": 3, \"surprise\": true"),
            ("\"tasks.json\"", "\"../tasks.json\""),
            ("\"tasks.json\"", "\"/etc/passwd\""),
            ("\"tasks.json\"", "\"manifest.json\""),
            ("\"tasks.json\"", "\"pages-0.img\""),
            ("\"tasks.json\"", "\"pages-1.img\""),
            ("\"pages-0.img\"", "\"pages-00.img\""),
            ("\"size\": 1,", "\"size\": 9223372036854775807,"),
            ("\"size\": 1,", "\"size\": 18446744073709551615,"),
            ("\"size\": 1,", "\"size\": 1.5,"),
            ("\"size\": 1,", "\"size\": 1, \"mode\": 4095,"),
            ("\"taken\": \"2", "\"taken\": \"x"),
            ("xxh3-128:", "xxh3-129:"),
        ] {
            let error = changed(from, to);
            assert!(matches!(error, Error::Damaged { .. }), "{to}: {error}");
        }
    }

    #[test]
    fn a_clock_that_is_far_off_is_an_error() {
        let epoch = SystemTime::UNIX_EPOCH;
        for taken in [epoch - Duration::from_secs(1), epoch + Duration::from_secs(253_402_300_800)] {
            assert!(matches!(Manifest { taken, ..small() }.to_bytes(), Err(Error::Unfit { .. })));
        }
    }

    #[test]
    fn the_members_stay_in_this_order_with_the_format_first() {
        let (bytes, digest) = small().to_bytes().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("{\n  \"format\": 1,\n  \"ckrun\": "), "{text}");
        assert!(text.ends_with(&format!(",\n  \"digest\": \"{digest}\"\n}}\n")), "{text}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_written_is_read(
            names in proptest::collection::btree_map("[a-z]{1,8}(/[a-zä.]{3,9}){0,3}", (0u64..1 << 40, any::<u128>()), 0..20),
            generation: u32, seconds in 0u64..1 << 33, nanos in 0u32..1_000_000_000,
            parent in proptest::option::of((any::<u128>(), any::<Vec<u8>>())),
        ) {
            let files = names
                .into_iter()
                .filter(|(file, _)| name::check(file).is_ok())
                .map(|(file, (size, sum))| {
                    let digest = if size % 2 == 0 { Digest::Plain(sum) } else { Digest::Blocks(sum) };
                    (file, Entry { size, digest: Some(digest) })
                })
                .collect();
            let manifest = Manifest {
                files,
                generation,
                taken: SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos),
                parent: parent.map(|(sum, path)| Parent { digest: Digest::Plain(sum), path: path.into() }),
                ..small()
            };
            let (bytes, digest) = manifest.to_bytes().unwrap();
            prop_assert_eq!(Manifest::parse(file(), &bytes).unwrap(), (manifest, digest));
        }

        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes: Vec<u8>) {
            let _ = Manifest::parse(file(), &bytes);
        }
    }
}
