//! `ckrun restore`: bring a job back from an image.

use super::carry::{CarryArgs, CgroupsMode, absolute, own_pids, refuse};
use super::changed;
use super::new::NewArgs;
use super::party::{self, Party};
use super::{Context, print_json, print_line, write_pid_file};
use crate::config::{Ask, Bundle};
use crate::criu::stats;
use crate::error::{Error, Result};
use crate::foreground::Foreground;
use crate::handover::{Arrival, without_stderr};
use crate::journal::Journal;
use crate::progress::{Progress, size};
use crate::remap::Maps;
use crate::sandbox::build::{Built, Parked, Restart, Start, build};
use crate::sandbox::claim::At;
use crate::sandbox::{self, console, destroy, hooks, labels, netdev, validate};
use crate::status::Status;
use crate::supervisor::Client;
use crate::supervisor::record::{Plugin, of_image};
use ckrun_plugin::After;
use ckrun_virt::cgroups::Cgroups;
use ckrun_virt::clocks::Clocks;
use ckrun_virt::events::Events;
use ckrun_virt::fd::Renewed;
use ckrun_virt::image::Image;
use ckrun_virt::restore::{Baggage, Draft, NetworkIs, Options, Problem, Report, restore};
use ckrun_virt::still::Still;
use ckrun_virt::table::Table;
use ckrun_virt::{Doing, fault};
use oci_spec::runtime::Spec;
use serde_json::json;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Bring the job of an image back, in a new container
///
/// The container is built as `ckrun run` would build it from the bundle, whose config.json may differ from that of the
/// checkpoint; what runs in it comes from the image. On failure nothing is left behind, and the image can be restored
/// again. restore.log in the directory of the image, or in that of --work-path, tells what was done. Without --detach
/// ckrun waits for the job's end, and its exit status is the job's.
#[derive(Debug, clap::Args)]
#[command(
    args_override_self = true,
    after_help = "Examples:\n  ckrun restore --image-path /images/web --bundle bundle/ web\n  \
        ckrun restore --dry-run --image-path /images/web web        could it be restored here?\n  \
        ckrun restore -d --changed-files /var/log/web=truncate --image-path /images/web web"
)]
pub struct Args {
    #[command(flatten)]
    carry: CarryArgs,
    #[command(flatten)]
    new: NewArgs,
    /// Do not wait: the container lives on until `ckrun delete`
    #[arg(short, long)]
    detach: bool,
    /// Do not delete the container when its job has ended
    #[arg(long)]
    keep: bool,
    /// Only tell whether it could be restored here, and what stands in the way. The container is built for that, without
    /// its hooks and network devices, and taken away again
    #[arg(long)]
    dry_run: bool,
    /// The other end of `ckrun migrate`: the image comes on standard input
    #[arg(long, hide = true)]
    handover: bool,
    /// Print the answer of --dry-run as JSON
    #[arg(long)]
    json: bool,
    /// What to do with files that changed since the checkpoint: strict (refuse), truncate (cut off what was appended),
    /// ignore; with PATH= for one file (repeatable). So may the annotation dev.ckrun.changed-files say
    #[arg(long, value_name = "[PATH=]POLICY", value_parser = changed::parse)]
    changed_files: Vec<changed::Word>,
    /// CPU features that this host lacks and that the job does not use, as you know: names separated by commas, or all.
    /// A thread that has something in registers which are not there is refused all the same
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    unused_cpu_features: Vec<String>,
    /// The container's name
    #[arg(value_name = "ID")]
    id: String,
}

impl Args {
    /// The log of this run.
    pub fn journal(&self) -> Option<Journal> {
        if self.dry_run { None } else { self.carry.journal("restore.log") }
    }

    /// The cgroups that the job gets.
    fn cgroups(&self, image: &Image) -> Result<Option<Cgroups>> {
        let mode = self.carry.manage_cgroups_mode;
        if mode == CgroupsMode::Ignore {
            return Ok(None);
        }
        let cgroups = Cgroups::read(image)?;
        if mode.whole() && !cgroups.is_whole() {
            log::warn!(
                "what was set in the container's own cgroups is not in the image: give `checkpoint` the same mode"
            );
        }
        Ok(Some(cgroups))
    }

    fn options(&self, spec: &Spec, maps: &Maps) -> Result<Options> {
        let (devices, vendors) = maps.devices();
        let mut options = Options {
            devices,
            vendors,
            sockets: maps.sockets.clone(),
            unix: self.carry.ext_unix_sk,
            network: match netdev::given(spec) {
                None => NetworkIs::Anothers,
                Some(_) if self.carry.without_network() => NetworkIs::LeftAsMade,
                Some(_) => NetworkIs::Made,
            },
            unused: self.unused_cpu_features.clone(),
            ..Options::default()
        };
        (options.changed, options.changed_files) = changed::policies(&self.changed_files, spec)?;
        Ok(options)
    }
}

/// Carries it out. With `--dry-run` the answer is 1 when something stands in the way.
pub fn run(args: &Args, context: &Context) -> Result<i32> {
    // First of all: it asks which descriptors are open.
    let mut options = args.new.options(context)?;
    args.carry.check("restore")?;
    // The job has the descriptors that it had.
    refuse("restore", "--preserve-fds", args.new.preserve_fds > 0)?;
    let path = absolute(&args.carry.image_path)?;
    let mut arrival = if args.handover { Some(Arrival::receive(&path)?) } else { None };
    let image = Image::open(&path).map_err(ckrun_virt::Error::from)?;
    let mut bundle = args.new.load(args.new.bundle.as_deref().unwrap_or(Path::new(".")), &mut options)?;
    let mut wishes = args.options(&bundle.spec, &options.maps)?;
    let mut guests = Guests::of(args, context, &image, &bundle, &mut wishes)?;
    validate(&bundle)?;
    let draft = Draft::read(&image)?;
    let problems = [draft.check(&wishes)?, std::mem::take(&mut guests.problems)].concat();
    if args.dry_run {
        // The plugins have said what they think of it.
        drop(guests);
        let found = rehearse(args, context, &image, &draft, &bundle, &options, &wishes)?;
        return answer(args, &path, &[problems, found].concat());
    }
    if !problems.is_empty() {
        return Err(Error::Unrestorable { image: path, problems });
    }
    guests.restart(&image, &mut bundle, &mut wishes, &mut options.maps)?;
    options.maps.sockets.clone_from(&wishes.sockets);
    let mut party = guests.party;
    party.as_mut().map_or(Ok(()), |party| party.answer(&mut bundle, &mut options))?;
    let terminal = args.new.wants_terminal(&bundle, args.detach)?;
    let mut foreground = if args.detach { None } else { Some(Foreground::prepare()?) };
    let console = match (&args.new.console_socket, &mut foreground) {
        (Some(path), _) => Some(console::connect_socket(path)?),
        (None, Some(foreground)) if terminal => Some(foreground.offer_terminal()?),
        _ => None,
    };
    let clocks: Clocks = image.json(Clocks::FILE).map_err(ckrun_virt::Error::from)?;
    let clocks = clocks.go_on_here()?;
    let baggage = Baggage::open(&image)?;
    let cgroups = args.cgroups(&image)?;
    let start = Start::Restart(Restart { baggage: &baggage, clocks, cgroups: cgroups.as_ref() });
    log::debug!("checked the image {}", path.display());
    let place = party::place(&mut party, context, &args.id);
    let raise = || build(place, &bundle, &options, start, console);
    let mut built = if args.handover { without_stderr(raise)?? } else { raise()? };
    log::debug!("the sandbox stands");
    let lost = || Error::InitEnded { during: "the restart", how: "without a hatch".into() };
    let Parked { hatch, guardian } = built.parked.take().ok_or_else(lost)?;
    let met = party.as_mut().map_or(Ok(()), |party| party.made(&mut built));
    let mode = args.carry.manage_cgroups_mode;
    if cgroups.is_some() {
        wishes.cgroups = built.state.cgroups.homes();
        wishes.own_cgroups = mode.whole();
    }
    let fresh = || match mode == CgroupsMode::Strict && built.state.cgroups.existed() {
        true => Err(Error::config("linux.cgroupsPath", "it is there already (--manage-cgroups-mode strict)")),
        false => Ok(()),
    };
    let revived = met.and_then(|()| fresh()).and_then(|()| {
        let mut watcher = Watcher {
            progress: Progress::new("restore"),
            built: &built,
            pid_file: args.new.pid_file.as_deref(),
            arrival: arrival.as_mut(),
            plugins: party.as_mut().map(|party| &mut party.client),
            failed: None,
        };
        revive(hatch, draft, &wishes, &mut watcher)
    });
    match revived {
        Ok(report) => args.carry.figures(|dir| stats::restored(dir, &report)),
        Err(e) => {
            built.abandon();
            return Err(e);
        }
    }
    // Nothing can be taken back any more.
    if let Some(Err(e)) = party.map(|mut party| party.client.done()) {
        log::warn!("{e}");
    }
    drop(guardian);
    if let Some(arrival) = &mut arrival
        && let Err(e) = arrival.say("running")
    {
        log::warn!("{e}");
    }
    hooks::run_leniently(&bundle.spec, "poststart", || built.state.for_hooks(Status::Running));
    let Some(foreground) = foreground else { return Ok(0) };
    log::debug!("the job runs");
    context.report.finish();
    let mut built = built.unlock();
    let status = foreground.wait(&built.init)?;
    log::debug!("the job has ended with {status}");
    // Somebody may have deleted it in the meantime.
    if !args.keep && built.entry.lock().is_ok() {
        destroy::forget(built.entry, &built.state)?;
    }
    Ok(status)
}

/// What a bundle must not ask for.
fn validate(bundle: &Bundle) -> Result<()> {
    validate::check(bundle)?;
    own_pids(&bundle.spec)?;
    // A label is taken on by an exec, which restored tasks don't make: they would be less confined than asked for.
    match bundle.spec.job().ok().and_then(labels::confining) {
        Some(field) => Err(Error::config(field, "is not supported for a job that is restored")),
        None => Ok(()),
    }
}

/// What is seen only where the job would be: builds the sandbox for it, looks around, and takes everything back. Hooks and
/// network devices are left out, since what those change can't be taken back.
fn rehearse(
    args: &Args,
    context: &Context,
    image: &Image,
    draft: &Draft<'_>,
    bundle: &Bundle,
    options: &sandbox::Options,
    wishes: &Options,
) -> Result<Vec<Problem>> {
    let mut bundle = bundle.clone();
    bundle.spec.set_hooks(None);
    if let Some(linux) = bundle.spec.linux_mut() {
        linux.set_net_devices(None);
    }
    bundle.refresh()?;
    let terminal = bundle.spec.job().ok().and_then(|job| job.terminal()).unwrap_or(false);
    // Nobody takes the terminal's master.
    let (console, _nobody) = UnixStream::pair().doing(|| "make a socket for the console")?;
    let clocks: Clocks = image.json(Clocks::FILE).map_err(ckrun_virt::Error::from)?;
    let cgroups = args.cgroups(image)?;
    let start =
        Restart { baggage: &Baggage::open(image)?, clocks: clocks.go_on_here()?, cgroups: cgroups.as_ref() };
    let console = terminal.then(|| console.into());
    let place = At::New(&context.store, &args.id);
    match build(place, &bundle, options, Start::Restart(start), console) {
        Ok(built) => {
            let found = draft.look_around(built.init.pid(), wishes);
            built.abandon();
            Ok(found?)
        }
        Err(e) => Ok(vec![Problem { what: "the sandbox".into(), why: e.to_string() }]),
    }
}

fn answer(args: &Args, image: &Path, problems: &[Problem]) -> Result<i32> {
    if args.json {
        print_json(&json!({ "image": image, "problems": problems }))?;
    } else if problems.is_empty() {
        print_line(&format!("{} can be restored here", image.display()))?;
    }
    if !args.json {
        problems.iter().try_for_each(|problem| print_line(&problem.to_string()))?;
    }
    Ok(i32::from(!problems.is_empty()))
}

/// From a parked init to a running job that needs no ckrun.
fn revive(hatch: OwnedFd, draft: Draft<'_>, wishes: &Options, watcher: &mut Watcher<'_>) -> Result<Report> {
    fault::point("restore:sandbox")?;
    let restored = restore(draft, watcher.built.init.pid(), hatch, wishes, watcher);
    let restored = restored.map_err(|e| watcher.failed.take().unwrap_or(e.into()))?;
    log::debug!(
        "restored {} processes, {} threads, {} in {:.1} ms",
        restored.processes,
        restored.threads,
        size(restored.bytes),
        restored.total.as_secs_f64() * 1e3,
    );
    fault::point("restore:done")?;
    Ok(restored)
}

/// What a restart has to do at the moments of its story.
struct Watcher<'a> {
    progress: Progress,
    built: &'a Built,
    pid_file: Option<&'a Path>,
    arrival: Option<&'a mut Arrival>,
    plugins: Option<&'a mut Client>,
    /// Why the story was ended, if that was here.
    failed: Option<Error>,
}

impl Watcher<'_> {
    fn remember(&self, table: &Table) -> Result<()> {
        fault::point("restore:save")?;
        table.write(self.built.entry.dir())?;
        self.built.restored()?;
        self.pid_file.map_or(Ok(()), |path| write_pid_file(path, self.built.init.pid().as_raw()))
    }

    fn about_to_run(&mut self, table: &Table, job: &mut dyn Still) -> Result<()> {
        self.remember(table)?;
        // Before the other host gives the job away: this can fail.
        if let Some(client) = &mut self.plugins {
            client.running(After::Restart, Some(job))?;
        }
        self.arrival.as_mut().map_or(Ok(()), |arrival| arrival.await_go())?;
        self.plugins.as_mut().map_or(Ok(()), |client| client.stay())
    }
}

impl Events for Watcher<'_> {
    fn restart(&mut self, connections: &[Renewed]) -> Result<(), ckrun_virt::Error> {
        let Some(client) = self.plugins.as_mut().filter(|_| !connections.is_empty()) else { return Ok(()) };
        client.renewed(connections.to_vec()).map_err(|e| {
            let text = e.to_string();
            self.failed = Some(e);
            ckrun_virt::Error::Unsupported(text)
        })
    }

    fn running(&mut self, table: &Table, job: &mut dyn Still) -> Result<(), ckrun_virt::Error> {
        self.about_to_run(table, job).map_err(|e| {
            let text = e.to_string();
            self.failed = Some(e);
            ckrun_virt::Error::Unsupported(text)
        })
    }

    fn progress(&mut self, done: u64, total: u64) {
        self.progress.update(done, total);
    }
}

/// The plugins of a job that is to be restored.
struct Guests {
    plugins: Vec<Plugin>,
    party: Option<Party>,
    /// What they say against it.
    problems: Vec<Problem>,
}

impl Guests {
    /// Finds and starts them, and lets them check the image.
    fn of(
        args: &Args,
        context: &Context,
        image: &Image,
        bundle: &Bundle,
        wishes: &mut Options,
    ) -> Result<Guests> {
        let (saved, words) = (of_image(image)?, args.new.plugins(bundle)?);
        let (plugins, mut problems) = party::of_image(context, &saved, words, &args.new.plugin_grant)?;
        party::promise(wishes, &saved);
        let answers = (!wishes.sockets.is_empty() || args.new.job_api.is_some()) && !args.dry_run;
        if plugins.is_empty() && !answers || !problems.is_empty() {
            return Ok(Guests { plugins, party: None, problems });
        }
        validate::check(bundle)?;
        let generation = u64::from(image.manifest().generation) + 1;
        let started = Party::start(context, &args.id, bundle, generation, &plugins, true);
        let checked = started.and_then(|mut party| {
            let folders = party.folders(image, &plugins)?;
            Ok((party.client.check(folders)?, party))
        });
        let party = match checked {
            Ok((failed, party)) => {
                problems.extend(failed.into_iter().map(party::problem));
                Some(party)
            }
            // It did not even say hello.
            Err(Error::Plugin(failed)) => {
                problems.push(party::problem(failed));
                None
            }
            Err(e) => return Err(e),
        };
        Ok(Guests { plugins, party, problems })
    }

    /// `restart`: ties the job to what they give it here.
    fn restart(
        &mut self,
        image: &Image,
        bundle: &mut Bundle,
        wishes: &mut Options,
        maps: &mut Maps,
    ) -> Result<()> {
        let Some(party) = &mut self.party else { return Ok(()) };
        let folders = party.folders(image, &self.plugins)?;
        party.ties = party.client.restart(folders)?;
        maps.paths = party::tie(&party.ties, bundle, &maps.paths, false)?;
        (wishes.devices, wishes.vendors) = maps.devices();
        party::bound(wishes, &party.ties, &mut party.client)
    }
}
