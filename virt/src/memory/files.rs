//! Files that are mapped and not carried: programs, libraries, data. What nobody had written to in memory comes from them
//! again, so they have to be what they were.

use super::build_id;
use super::object::{Kind, Object};
use crate::Failure;
use crate::fd::{find_followed, open_followed};
use crate::image::Bytes;
use crate::restore::{Changed, Options, Problem};
use rustix::fs::FileType;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Names the mapped files of a job that are not there, or not what they were by size and build id, in the container with these
/// root directories, one for each mount namespace. A copy may have another time than the original, so that this is not
/// looked at.
///
/// # Errors
/// The kernel's.
pub fn check_files(
    objects: &[Object],
    roots: &[OwnedFd],
    options: &Options,
) -> Result<Vec<Problem>, Failure> {
    let mut problems = Vec::new();
    for object in objects {
        let Kind::File { path, build, namespace, .. } = &object.kind else { continue };
        let Some(root) = roots.get(*namespace as usize) else { continue };
        let why = check(object, path, build.as_deref(), root.as_fd(), options)?;
        problems.extend(why.map(|why| Problem { what: path.to_string(), why }));
    }
    Ok(problems)
}

/// The mount namespaces that mapped files are in.
pub fn namespaces(objects: &[Object]) -> impl Iterator<Item = u32> {
    objects.iter().filter_map(|object| match object.kind {
        Kind::File { namespace, .. } => Some(namespace),
        _ => None,
    })
}

fn check(
    object: &Object,
    path: &Bytes,
    build: Option<&str>,
    root: BorrowedFd<'_>,
    options: &Options,
) -> Result<Option<String>, Failure> {
    if options.promises(path.as_path()) {
        return Ok(None);
    }
    let Some(now) = find_followed(root, path)? else {
        return Ok(Some("the job has mapped it, and it is not in the container".into()));
    };
    let (is, was) = (FileType::from_raw_mode(now.st_mode), FileType::from_raw_mode(object.mode));
    if is != was {
        return Ok(Some(format!("it is now of the kind {is:?} and was {was:?}")));
    }
    let size = now.st_size.cast_unsigned();
    let policy = options.policy(path.as_path());
    let differs = match policy {
        Changed::Strict => size != object.size,
        Changed::Truncate => size < object.size,
        Changed::Ignore => false,
    };
    if differs {
        let was = object.size;
        return Ok(Some(format!("the job has mapped it, and its size is {size} now and was {was}")));
    }
    let (Changed::Strict, Some(was)) = (policy, build) else { return Ok(None) };
    let now = open_followed(root, path)?.and_then(|file| build_id::of(&file));
    Ok((now.as_deref() != Some(was)).then(|| {
        let now = now.unwrap_or_else(|| "none".into());
        format!("the job has mapped it, and it is of another build: its build id is {now} now and was {was}")
    }))
}
