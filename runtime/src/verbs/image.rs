//! `ckrun image pack` and `ckrun image unpack`: an image as one file.

use super::carry::absolute;
use super::print_line;
use crate::error::Result;
use crate::progress::{Progress, size};
use ckrun_virt::image::archive::{self, Compression};
use clap::ValueEnum;
use std::io::{IsTerminal, stdout};
use std::path::PathBuf;

/// Images as files: for copying them, and for podman's archives
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Pack(Pack),
    Unpack(Unpack),
}

/// Write the image in a directory to an archive
///
/// The archive is laid out as those of `podman container checkpoint --export`. podman imports it if the image was unpacked
/// from one of podman's: what podman needs besides is then in DIR/client.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ckrun image pack /images/web web.tar.zst")]
struct Pack {
    /// The image
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The archive, which must not exist
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How to compress it [default: by the end of its name, .gz, .tgz or .tar; otherwise zstd]
    #[arg(long, value_enum, value_name = "METHOD")]
    compress: Option<Method>,
}

/// Make a directory with the image of an archive
///
/// The archive is one of `ckrun image pack`, of `podman container checkpoint --export`, or of containerd's store, of a
/// container that ckrun ran. All digests are checked before the directory appears. What a client has put into the archive
/// besides goes to DIR/client.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  podman container checkpoint --export web.tar.zst web\n  ckrun image unpack web.tar.zst web && ckrun inspect web"
)]
struct Unpack {
    /// The archive
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The directory, which must not exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Method {
    Zstd,
    Gzip,
    None,
}

/// Carries it out.
pub fn run(args: Args) -> Result<()> {
    match args.verb {
        Verb::Pack(args) => pack(&args),
        Verb::Unpack(args) => unpack(&args),
    }
}

fn pack(args: &Pack) -> Result<()> {
    let compression = match args.compress {
        None => Compression::of_name(&args.file),
        Some(Method::Zstd) => Compression::Zstd,
        Some(Method::Gzip) => Compression::Gzip,
        Some(Method::None) => Compression::None,
    };
    let mut progress = Progress::new("image pack");
    let (dir, file) = (absolute(&args.dir)?, absolute(&args.file)?);
    let bytes = archive::pack(&dir, &file, compression, &mut |done, all| progress.update(done, all))?;
    drop(progress);
    say(&format!("{}: {}", file.display(), size(bytes)))
}

fn unpack(args: &Unpack) -> Result<()> {
    let mut progress = Progress::new("image unpack");
    let (dir, file) = (absolute(&args.dir)?, absolute(&args.file)?);
    let image = archive::unpack(&file, &dir, &mut |done, all| progress.update(done, all))?;
    drop(progress);
    say(&format!("{}: {}, {}", dir.display(), size(image.manifest.size()), image.digest))
}

/// To a person; scripts expect to read nothing.
fn say(text: &str) -> Result<()> {
    if stdout().is_terminal() { print_line(text) } else { Ok(()) }
}
