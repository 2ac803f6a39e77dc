//! The plugins of a job, as the verbs have to do with them.

use super::carry::absolute;
use super::{Context, answers};
use crate::config::Bundle;
use crate::error::{Error, Result};
use crate::intercept::{self, hosts::Hosts};
use crate::job_api;
use crate::plugin::asked::{Asked, merge};
use crate::plugin::company::Folder;
use crate::plugin::{Failed, start::owner};
use crate::remap;
use crate::sandbox;
use crate::sandbox::build::Built;
use crate::sandbox::claim::{At, Claim};
use crate::state::{Entry, State};
use crate::supervisor::record::{self, Plugin, Saved};
use crate::supervisor::request::Tie;
use crate::supervisor::{Client, Record, launch, names};
use ckrun_plugin::{Binding, Job, Real};
use ckrun_virt::Doing;
use ckrun_virt::image::PLUGINS;
use ckrun_virt::image::{Bytes, Image, Writer};
use ckrun_virt::restore::{Options, Peer, Problem};
use ckrun_virt::table::Id;
use ckrun_virt::table::rules::Rules;
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{AtFlags, Mode, OFlags};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// The plugins of a container that is being made. When this is dropped before the job needs no verb any more, they hear that
/// there is no job.
#[derive(Debug)]
pub struct Party {
    /// The talk with them.
    pub client: Client,
    /// To what they have tied the job.
    pub ties: Vec<Tie>,
    /// The id, until the sandbox is built.
    claim: Option<Claim>,
}

/// What a new job's plugins do before there is a sandbox. None for a job without plugins that connects to nothing that is
/// elsewhere, and does not speak with ckrun.
///
/// # Errors
/// Those of [`Client::begin`] and [`Client::init`].
pub fn begin(
    context: &Context,
    id: &str,
    bundle: &mut Bundle,
    options: &mut sandbox::Options,
    asked: Vec<Asked>,
) -> Result<Option<Party>> {
    if asked.is_empty() && options.maps.sockets.is_empty() && options.job_api.is_none() {
        return Ok(None);
    }
    sandbox::validate::check(bundle)?;
    let plugins = asked.into_iter().map(|asked| {
        let manifest = asked.find(&context.global.plugin_dir)?;
        Ok(Plugin::new(asked, manifest))
    });
    let plugins = plugins.collect::<Result<Vec<Plugin>>>()?;
    let mut party = Party::start(context, id, bundle, 0, &plugins, false)?;
    party.ties = party.client.init()?;
    options.maps.paths = tie(&party.ties, bundle, &options.maps.paths, true)?;
    // Nobody connects yet, so that descriptors are of no use here.
    options.maps.sockets.extend(sockets(&party.ties, |_| Ok(None))?);
    party.answer(bundle, options)?;
    Ok(Some(party))
}

impl Party {
    /// Takes the id, and starts the plugins.
    ///
    /// # Errors
    /// [`Error::IdTaken`]; those of [`Client::begin`].
    pub fn start(
        context: &Context,
        id: &str,
        bundle: &Bundle,
        generation: u64,
        plugins: &[Plugin],
        restart: bool,
    ) -> Result<Party> {
        let mut claim = Claim::new(&context.store, id, restart)?;
        let mut client = launch::start(claim.dir())?;
        claim.keep(client.as_fd());
        let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let job = Job { id: id.into(), generation, host, bundle: absolute(&bundle.dir)? };
        client.begin(job, plugins)?;
        Ok(Party { client, ties: Vec::new(), claim: Some(claim) })
    }

    /// Prepares for the system calls that the supervisor answers: connections to what is elsewhere, by the sockets that are
    /// mapped, and the ioctls that plugins have claimed.
    ///
    /// # Errors
    /// [`answers::routes`]'s; see [`Client::routes`].
    pub fn answer(&mut self, bundle: &mut Bundle, options: &mut sandbox::Options) -> Result<()> {
        let mut hosts = Hosts::of(&bundle.spec, &bundle.rootfs()?)?;
        let routes = answers::routes(&options.maps.sockets, &mut hosts)?;
        if let Some(claim) = &self.claim
            && hosts.mount(&mut bundle.spec, claim.dir())?
        {
            bundle.refresh()?;
        }
        if let (Some(images), Some(claim)) = (&options.job_api, &self.claim) {
            self.client.job_api(absolute(images)?)?;
            job_api::show(&mut bundle.spec, &claim.dir().join(names::JOB_API));
            bundle.refresh()?;
        }
        let ioctls = self.ties.iter().flat_map(|tie| &tie.ioctls);
        options.asks = intercept::filter(!routes.is_empty(), ioctls);
        self.client.routes(routes)
    }

    /// A sandbox has been built for them.
    ///
    /// # Errors
    /// See [`Client::made`].
    pub fn made(&mut self, built: &mut Built) -> Result<()> {
        let listener = built.asks.take();
        built.state.init.map_or(Ok(()), |init| self.client.made(init, listener))
    }

    /// The folders of an image, for `check` and `restart`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn folders(&self, image: &Image, plugins: &[Plugin]) -> Result<Vec<Folder>> {
        let home = self.claim.as_ref().map(Claim::dir).unwrap_or_else(|| Path::new("/"));
        plugins.iter().map(|plugin| folder(image, plugin, home)).collect()
    }
}

/// Where a container is built.
pub fn place<'a>(party: &mut Option<Party>, context: &'a Context, id: &'a str) -> At<'a> {
    match party.as_mut().and_then(|party| party.claim.take()) {
        Some(claim) => At::Claimed(claim),
        None => At::New(&context.store, id),
    }
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What an image has of a plugin. An image has no empty folders.
fn folder(image: &Image, plugin: &Plugin, home: &Path) -> Result<Folder> {
    let name = format!("{PLUGINS}/{}", plugin.name());
    let path = image.dir().join(&name);
    if image.names(&format!("{name}/")).next().is_some() {
        let fd = rustix::fs::openat(image.dir_fd(), &name, FOLDER, Mode::empty());
        let fd = fd.doing(|| format!("open {}", path.display()))?;
        if let Some((uid, gid)) = owner(&plugin.manifest)? {
            for file in image.names(&format!("{name}/")) {
                give(image.dir_fd(), &name, file, uid, gid)
                    .doing(|| format!("give away {file} of the image"))?;
            }
        }
        return Ok(Folder { path: absolute(&path)?, fd });
    }
    let path = home.join(names::EMPTY);
    match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)) {
        Err(e) if e != rustix::io::Errno::EXIST => Err(e).doing(|| format!("make {}", path.display()))?,
        _ => {}
    }
    let fd = rustix::fs::open(&path, FOLDER, Mode::empty()).doing(|| format!("open {}", path.display()))?;
    Ok(Folder { path, fd })
}

/// Gives a file and the folders that it is in, from `top` on, to a user: a plugin that is not root could not read what it has
/// saved, since an image keeps no owners.
fn give(dir: BorrowedFd<'_>, top: &str, file: &str, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    let ends = file.match_indices('/').map(|(at, _)| at).chain([file.len()]);
    for end in ends.filter(|end| *end >= top.len()) {
        rustix::fs::chownat(dir, &file[..end], Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Makes the folders of plugins in an image that is being written.
///
/// # Errors
/// Those of the image; the kernel's.
pub fn make_folders(image: &mut Writer, plugins: &[Plugin]) -> Result<Vec<Folder>> {
    let make = |plugin: &Plugin| {
        let name = format!("{PLUGINS}/{}", plugin.name());
        let path = image.folder(&name)?;
        if let Some((uid, gid)) = owner(&plugin.manifest)? {
            give(image.dir_fd(), &name, &name, uid, gid).doing(|| format!("give away {}", path.display()))?;
        }
        let fd =
            rustix::fs::open(&path, FOLDER, Mode::empty()).doing(|| format!("open {}", path.display()))?;
        Ok(Folder { path, fd })
    };
    plugins.iter().map(make).collect()
}

/// Takes what plugins have saved over into the image.
///
/// # Errors
/// Those of the image.
pub fn adopt(image: &mut Writer, saved: &[Saved]) -> Result<()> {
    for saved in saved {
        image.adopt(&format!("{PLUGINS}/{}", saved.plugin.name))?;
    }
    Ok(image.json(record::IN_IMAGE, saved)?)
}

/// Carries out what plugins have tied a job to: devices, mounts, and for a new job variables. The answer is the rules for
/// all devices of theirs and of the command line.
///
/// # Errors
/// What can't be there, or is there already.
pub fn tie(ties: &[Tie], bundle: &mut Bundle, maps: &Rules, new: bool) -> Result<Rules> {
    let rule = |rule: &ckrun_virt::table::rules::Rule| word(&rule.from, &rule.to);
    let mut words: Vec<OsString> = maps.iter().map(rule).collect();
    let mut changed = false;
    for tie in ties {
        let said = |e: String| Error::Usage(format!("plugin {}: {e}", tie.plugin));
        let own: Vec<OsString> = tie.bindings.iter().filter_map(device).collect();
        let rules = Rules::parse(own.iter().map(OsString::as_os_str)).map_err(|e| said(e.to_string()))?;
        words.extend(own);
        // Also against those of others.
        Rules::parse(words.iter().map(OsString::as_os_str)).map_err(|e| said(e.to_string()))?;
        remap::apply(&mut bundle.spec, &rules, &format!("plugin {}:", tie.plugin))?;
        mount(&mut bundle.spec, tie);
        changed |= rules.iter().next().is_some() || !tie.mounts.is_empty();
        if new && !tie.env.is_empty() {
            set(&mut bundle.spec, tie);
            changed = true;
        }
    }
    if changed {
        bundle.refresh()?;
    }
    Rules::parse(words.iter().map(OsString::as_os_str)).map_err(|e| Error::Usage(e.to_string()))
}

fn word(from: &Path, to: &Path) -> OsString {
    let mut word = from.as_os_str().to_owned();
    word.push("=");
    word.push(to);
    word
}

/// A device or a memory as a word of `--map`.
fn device(binding: &Binding) -> Option<OsString> {
    match binding {
        Binding::Device { virtual_path, real: Real::Name(real) }
        | Binding::Memory { virtual_path, real: Real::Name(real) } => {
            Some(word(Path::new(virtual_path), Path::new(real)))
        }
        _ => None,
    }
}

fn mount(spec: &mut Spec, tie: &Tie) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for wanted in &tie.mounts {
        let mut options = wanted.options.clone();
        if !options.iter().any(|option| option == "bind" || option == "rbind") {
            options.push("rbind".into());
        }
        let mut mount = Mount::default();
        mount
            .set_destination(wanted.destination.clone())
            .set_source(Some(wanted.source.clone()))
            .set_typ(Some("bind".into()))
            .set_options(Some(options));
        mounts.push(mount);
    }
    spec.set_mounts(Some(mounts));
}

fn set(spec: &mut Spec, tie: &Tie) {
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        for (name, value) in &tie.env {
            let prefix = format!("{name}=");
            env.retain(|old| !old.starts_with(&prefix));
            env.push(format!("{prefix}{value}"));
        }
        process.set_env(Some(env));
    }
}

/// The plugins that an image wants here, and those that the command line adds; or what stands in the way.
///
/// # Errors
/// Words that don't go together.
pub fn of_image(
    context: &Context,
    saved: &[Saved],
    words: Vec<Asked>,
    grants: &[String],
) -> Result<(Vec<Plugin>, Vec<Problem>)> {
    let mut problems = Vec::new();
    let said = |name: &str| words.iter().any(|asked| asked.name == name);
    for saved in saved.iter().filter(|saved| !said(&saved.plugin.name)) {
        if let Some(program) = &saved.plugin.program {
            // An image may come from anywhere, and a plugin runs as root.
            problems.push(Problem {
                what: format!("plugin {}", saved.plugin.name),
                why: format!(
                    "it was given by its path, and an image does not decide which programs run on a host: say --plugin {}",
                    program.display()
                ),
            });
        }
    }
    // What it may do with the job is this host's to say.
    let before = saved.iter().map(|saved| Asked { grants: Vec::new(), ..saved.plugin.clone() }).collect();
    let mut all = merge(before, words)?;
    crate::plugin::asked::grant(&mut all, grants)?;
    let mut plugins = Vec::new();
    for asked in all {
        match asked.find(&context.global.plugin_dir) {
            Ok(manifest) => {
                let mut plugin = Plugin::new(asked, manifest);
                if let Some(saved) = saved.iter().find(|saved| saved.plugin.name == plugin.asked.name) {
                    plugin.requirements.clone_from(&saved.requirements);
                    plugin.bindings.clone_from(&saved.bindings);
                    plugin.area.clone_from(&saved.area);
                }
                plugins.push(plugin);
            }
            Err(e) => problems.push(Problem {
                what: format!("plugin {}", asked.name),
                why: format!(
                    "{e}; its manifest is to be there (see --plugin-dir), or --plugin gives its program"
                ),
            }),
        }
    }
    Ok((plugins, problems))
}

/// What plugins say of an image.
pub fn problem(failed: Failed) -> Problem {
    let what = format!("plugin {}", failed.plugin);
    let event = failed.event.map_or_else(String::new, |event| format!("{event}: "));
    Problem { what, why: format!("{event}{}", failed.why) }
}

/// What an image's plugins will bind: of these the rest of the checks knows nothing yet.
pub fn promise(wishes: &mut Options, saved: &[Saved]) {
    let paths = saved.iter().flat_map(|saved| &saved.bindings).filter_map(|binding| match binding {
        Binding::Device { virtual_path, .. } | Binding::Memory { virtual_path, .. } => {
            Some(virtual_path.into())
        }
        _ => None,
    });
    wishes.promised = paths.collect();
    let sockets = saved.iter().flat_map(|saved| &saved.bindings).filter_map(|binding| match binding {
        Binding::Socket { virtual_address, .. } => Some(record::socket_name(virtual_address)),
        _ => None,
    });
    wishes.promised_sockets = sockets.collect();
}

/// What they have bound.
///
/// # Errors
/// Those of [`Client::socket`]; a socket that is nowhere.
pub fn bound(wishes: &mut Options, ties: &[Tie], client: &mut Client) -> Result<()> {
    wishes.promised.clear();
    wishes.promised_sockets.clear();
    wishes.sockets.extend(sockets(ties, |name| client.socket(name))?);
    let ids = ties.iter().flat_map(|tie| &tie.bindings).filter_map(record::in_table);
    wishes.bound = ids.filter(|(id, _)| matches!(id, Id::Handle { .. })).collect();
    Ok(())
}

/// The sockets that plugins have bound, by the job's names. `given` asks for a connected socket by its virtual name.
fn sockets(
    ties: &[Tie],
    mut given: impl FnMut(&str) -> Result<Option<OwnedFd>>,
) -> Result<BTreeMap<Bytes, Peer>> {
    let mut sockets = BTreeMap::new();
    for tie in ties {
        for binding in &tie.bindings {
            let Binding::Socket { virtual_address, real: Real::Name(real) } = binding else { continue };
            let peer = match given(&binding.virtual_name())? {
                Some(socket) => Peer::Given(Arc::new(socket)),
                None => remap::peer(real).map_err(|why| {
                    Error::Usage(format!("plugin {}: {virtual_address}: {why}", tie.plugin))
                })?,
            };
            sockets.insert(record::socket_name(virtual_address), peer);
        }
    }
    Ok(sockets)
}

/// The supervisor of a job that runs; another one if that was killed.
///
/// # Errors
/// The plugins have let go of the job; those of [`Client::recover`].
pub fn reach(entry: &Entry, state: &State) -> Result<Client> {
    if let Some(mut client) = launch::find(entry.dir())? {
        client.mend()?;
        return Ok(client);
    }
    let ended = || Error::InitEnded { during: "its life", how: "early".into() };
    let init = state.init.ok_or_else(ended)?;
    log::warn!("the supervisor of the job's plugins was not there any more: another one takes over");
    launch::sweep(entry.dir())?;
    let mut client = launch::start(entry.dir())?;
    let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    // Its generation is in the record.
    let job = Job { id: state.id.clone(), generation: 0, host, bundle: state.bundle.clone() };
    for failed in client.recover(job, init)? {
        log::warn!("{failed}");
    }
    Ok(client)
}

/// What the supervisor has left of a job with plugins.
///
/// # Errors
/// It can't be read.
pub fn record(entry: &Entry, state: &State) -> Result<Option<Record>> {
    if state.supervised { Record::read(entry.dir()) } else { Ok(None) }
}
