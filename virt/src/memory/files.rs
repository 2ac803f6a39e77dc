//! Files that are mapped and not carried: programs, libraries, data. What nobody had written to in memory comes from them
//! again, so they have to be what they were.

use super::object::{Kind, Object};
use crate::Failure;
use crate::fd::find_followed;
use crate::image::Bytes;
use crate::restore::{Changed, Options, Problem};
use rustix::fs::FileType;
use std::os::fd::BorrowedFd;

/// Names the mapped files of a job that are not there, or not as long as they were, in the container with the root
/// directory `root`. A copy may have another time than the original, so that this is not looked at.
///
/// # Errors
/// The kernel's.
pub fn check_files(
    objects: &[Object],
    root: BorrowedFd<'_>,
    options: &Options,
) -> Result<Vec<Problem>, Failure> {
    let mut problems = Vec::new();
    for object in objects {
        let Kind::File { path, .. } = &object.kind else { continue };
        problems
            .extend(check(object, path, root, options)?.map(|why| Problem { what: path.to_string(), why }));
    }
    Ok(problems)
}

fn check(
    object: &Object,
    path: &Bytes,
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
    let differs = match options.policy(path.as_path()) {
        Changed::Strict => size != object.size,
        Changed::Truncate => size < object.size,
        Changed::Ignore => false,
    };
    Ok(differs.then(|| format!("the job has mapped it, and its size is {size} now and was {}", object.size)))
}
