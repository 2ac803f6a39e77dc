//! What `run` and `create` have in common: the options for a new container.

use super::Context;
use crate::cdi;
use crate::config::{Ask, Bundle};
use crate::error::{Error, Result};
use crate::plugin::asked::{ANNOTATION, Asked, grant, merge};
use crate::remap::{self, Maps};
use crate::sandbox::Options;
use crate::sandbox::job::Inherited;
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

/// Options for a new container.
#[derive(Debug, clap::Args)]
pub struct NewArgs {
    /// Directory with config.json and the root file system [default: the current directory]
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Socket that receives the master of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File that receives the host's id of the container's init
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Move the root instead of calling pivot_root: for a host that runs from an initramfs
    #[arg(long)]
    pub no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass this many descriptors, from 3 up, to the container
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Add a device by its CDI name, vendor.com/class=name. At a restart it is what this host's description says, in what the
    /// job has open too (repeatable)
    #[arg(long, value_name = "CDI-NAME")]
    pub device: Vec<String>,
    /// Put a device or a directory of the host at a path in the container, and answer for its state: a restart may put
    /// another one there. With tcp:NAME:PORT=ADDRESS:PORT answer for what the job is connected to at an address: a restart
    /// connects it anew (repeatable)
    #[arg(long, value_name = "PATH=HOST-PATH")]
    pub map: Vec<OsString>,
    /// Give the job a plugin, by the name of its manifest or by its program's path; with options (repeatable)
    #[arg(long, value_name = "NAME|PROGRAM[:KEY=VALUE,...]")]
    pub plugin: Vec<String>,
    /// Let a plugin of the job do more than its manifest says: memory, registers, signals (repeatable)
    #[arg(long, value_name = "NAME=CAPABILITY,...")]
    pub plugin_grant: Vec<String>,
    /// Let the job ask for checkpoints of itself, and be called before and after them, by a socket at /run/ckrun.sock; its
    /// images go to this directory
    #[arg(long, value_name = "DIR")]
    pub job_api: Option<PathBuf>,
    /// Taken for compatibility: ckrun leaves no process behind that would need a subreaper
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
    /// Taken for compatibility
    #[arg(long, value_name = "SOCKET", hide = true)]
    pub pidfd_socket: Option<PathBuf>,
}

impl NewArgs {
    /// Loads the bundle and adds the devices of vendors, and those of `--map`; what these are goes into `options`.
    pub fn load(&self, dir: &Path, options: &mut Options) -> Result<Bundle> {
        let mut bundle = Bundle::load(dir)?;
        let vendors = !cdi::names(&bundle.spec, &self.device)?.is_empty();
        options.maps = Maps::parse(&self.map)?;
        if vendors {
            options.maps.described =
                cdi::apply(&mut bundle.spec, &self.device, &cdi::DIRS.map(PathBuf::from))?;
        }
        remap::apply(&mut bundle.spec, &options.maps.paths, "--map")?;
        if vendors || options.maps.paths.iter().next().is_some() {
            bundle.refresh()?;
        }
        Ok(bundle)
    }

    /// The plugins that an annotation and the command line name. Capabilities are not given yet.
    pub fn plugins(&self, bundle: &Bundle) -> Result<Vec<Asked>> {
        let annotation = bundle.spec.annotations().as_ref().and_then(|all| all.get(ANNOTATION));
        if annotation.is_none() && self.plugin.is_empty() {
            return Ok(Vec::new());
        }
        let annotated = annotation.into_iter().flat_map(|words| words.split_whitespace());
        let annotated = annotated.map(Asked::parse).collect::<Result<Vec<_>>>();
        let annotated =
            annotated.map_err(|e| Error::config(format!("annotations.{ANNOTATION}"), e.to_string()))?;
        let said = self.plugin.iter().map(|words| Asked::parse(words)).collect::<Result<Vec<_>>>()?;
        merge(merge(Vec::new(), annotated)?, said)
    }

    /// The plugins of a new job, with their capabilities.
    pub fn new_plugins(&self, bundle: &Bundle) -> Result<Vec<Asked>> {
        let mut plugins = self.plugins(bundle)?;
        grant(&mut plugins, &self.plugin_grant)?;
        Ok(plugins)
    }

    /// The sandbox's options, without devices. To be called first of all, see [`Inherited::find`].
    pub fn options(&self, context: &Context) -> Result<Options> {
        Ok(Options {
            job_api: self.job_api.clone(),
            asks: None,
            maps: Maps::default(),
            no_pivot: self.no_pivot,
            no_new_keyring: self.no_new_keyring,
            inherited: Inherited::find(self.preserve_fds, true),
            systemd_cgroup: context.global.systemd(),
            no_cgroups: context.global.cgroup_manager == Some(crate::global::CgroupManager::Disabled),
            rootless: context.global.is_rootless(),
        })
    }

    /// Whether the job has a terminal, checked against `--console-socket`.
    pub fn wants_terminal(&self, bundle: &Bundle, detached: bool) -> Result<bool> {
        let terminal = bundle.spec.job().ok().and_then(|p| p.terminal()).unwrap_or(false);
        if terminal && detached && self.console_socket.is_none() {
            return Err(Error::Usage(
                "process.terminal is true, but nobody would hold the terminal: give --console-socket, or set it to false"
                    .into(),
            ));
        }
        if !terminal && self.console_socket.is_some() {
            return Err(Error::Usage(
                "--console-socket needs process.terminal to be true in config.json".into(),
            ));
        }
        Ok(terminal)
    }
}

/// The bundle and the id from the words of `run`: `run ID`, `run -b DIR ID`, `run BUNDLE/`, `run -b DIR`.
pub fn bundle_and_id(bundle: Option<&Path>, word: Option<&str>) -> (PathBuf, String) {
    let here = Path::new(".");
    match (bundle, word) {
        (Some(dir), Some(id)) => (dir.into(), id.into()),
        (Some(dir), None) => (dir.into(), made_up(dir)),
        (None, Some(word)) if is_bundle(word) => (word.into(), made_up(Path::new(word))),
        (None, Some(id)) => (here.into(), id.into()),
        (None, None) => (here.into(), made_up(here)),
    }
}

/// An id has no slash in it, so what has one is a path; without one it is a bundle only if it can't be meant as an id.
fn is_bundle(word: &str) -> bool {
    word.contains('/') || (Path::new(word).join("config.json").exists() && !Path::new("config.json").exists())
}

/// An id from the bundle's name and a random number.
fn made_up(dir: &Path) -> String {
    let name = dir.canonicalize().ok().and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned()));
    let name: String = name
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "_+-.".contains(*c))
        .take(40)
        .collect();
    let random = RandomState::new().build_hasher().finish() as u32;
    format!("{}-{random:08x}", if name.is_empty() { "job" } else { &name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_makes_a_bundle() {
        let (dir, id) = bundle_and_id(None, Some("oci-bundles/hello"));
        assert_eq!(dir, Path::new("oci-bundles/hello"));
        assert!(!id.contains('/'), "{id}");
        assert_eq!(bundle_and_id(Some(Path::new("/b")), Some("web")), ("/b".into(), "web".into()));
        assert_eq!(bundle_and_id(None, Some("web")), (".".into(), "web".into()));
    }

    #[test]
    fn made_up_ids_differ() {
        assert_ne!(made_up(Path::new("/")), made_up(Path::new("/")));
    }
}
