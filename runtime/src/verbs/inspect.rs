//! `ckrun inspect`: what is in an image.

use super::{columns, ids, print_json, print_line};
use crate::error::Result;
use crate::progress::size;
use crate::supervisor::record::{Saved, of_image};
use ckrun_virt::image::{Image, Index, Owner};
use ckrun_virt::memory::{Kind, Layout, Object};
use ckrun_virt::network::{self, Network};
use ckrun_virt::table::file::NAME as TABLE;
use ckrun_virt::table::id::Printable;
use ckrun_virt::table::{Id, Table};
use ckrun_virt::tree::{Life, Member};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// How many descriptors are named that lead to one file.
const HOLDERS: usize = 6;

/// Show what is in a checkpoint's image
///
/// Its origin and its size, the tree of its processes, their memory as far as it is stored, the files and devices that
/// they have open, and what the job was bound to before. The digests of all small files are checked on the way.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ckrun inspect checkpoint\n  \
        ckrun inspect --json checkpoint | jq .manifest.host.kernel\n  \
        ckrun ids --image checkpoint                 every id that the job had, and what it stood for")]
pub struct Args {
    /// The image
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

/// The state of a job, as far as it is shown. Parts that an image does not have are empty.
#[derive(Debug, Default)]
struct Contents {
    members: Vec<Member>,
    layouts: BTreeMap<i32, Layout>,
    objects: Vec<Object>,
    table: Option<Table>,
    network: Option<Network>,
}

/// Bytes of an image.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Sizes {
    /// All files but the manifest.
    total: u64,
    /// Pages of memory as they lie in the files, each once.
    pages: u64,
    /// Contents of files, and what plugins have put there.
    contents: u64,
    /// Pages of each process; one that several have counts for each.
    processes: BTreeMap<i32, u64>,
    /// Pages of each shared memory object.
    shared: BTreeMap<u32, u64>,
}

/// Carries it out.
pub fn run(args: &Args) -> Result<()> {
    let image = Image::open(&args.dir)?;
    let contents = Contents::read(&image)?;
    let sizes = Sizes::of(&image)?;
    if args.json {
        return print_json(&serde_json::json!({
            "dir": args.dir,
            "digest": image.digest(),
            "manifest": image.manifest(),
            "sizes": sizes,
            "tasks": contents.members,
            "objects": contents.objects,
            "table": contents.table.as_ref().map(ids::Shown::of),
            "plugins": of_image(&image)?,
            "network": contents.network,
        }));
    }
    let mut lines = origin(&image, &sizes);
    lines.extend(contents.processes(&sizes));
    lines.extend(contents.objects(&sizes));
    lines.extend(plugins(&of_image(&image)?));
    if let Some(network) = &contents.network {
        lines.push(format!("\nnetwork   {}", Printable(network.summary().as_bytes())));
    }
    if let Some(table) = &contents.table {
        lines.extend(files(table));
        lines.extend(outside(table));
        lines.push(String::new());
        lines.extend(ids::generations(table));
        lines.extend(ids::history(table));
    }
    lines.iter().try_for_each(|line| print_line(line))
}

impl Sizes {
    fn of(image: &Image) -> Result<Sizes> {
        let mut sizes = Sizes::default();
        for (name, entry) in &image.manifest().files {
            // Files may have holes, so that what they claim in all may be more than any disk holds.
            let add = |sum: &mut u64| *sum = sum.saturating_add(entry.size);
            add(&mut sizes.total);
            match name.split_once('/') {
                Some(_) => add(&mut sizes.contents),
                // Files of pages are the ones without a digest.
                None if entry.digest.is_none() => add(&mut sizes.pages),
                None => {}
            }
        }
        sizes.count(&image.index()?);
        Ok(sizes)
    }

    fn count(&mut self, index: &Index) {
        for (owner, runs) in index.sections() {
            let bytes = runs.iter().map(|run| run.len()).sum();
            match owner {
                Owner::Process(pid) => drop(self.processes.insert(pid, bytes)),
                Owner::Shared(object) => drop(self.shared.insert(object, bytes)),
            }
        }
    }
}

/// The plugins that a restart needs, and what they need.
fn plugins(all: &[Saved]) -> Vec<String> {
    let mut lines = Vec::new();
    for Saved { plugin, requirements, .. } in all {
        let plain = |text: &str| Printable(text.as_bytes()).to_string();
        let program = plugin.program.as_ref().map(|path| format!(" ({})", plain(&path.to_string_lossy())));
        let options: Vec<String> =
            plugin.options.iter().map(|(key, value)| format!(" {}={}", plain(key), plain(value))).collect();
        lines.push(format!("plugin    {}{}{}", plugin.name, program.unwrap_or_default(), options.concat()));
        let needs = requirements
            .iter()
            .map(|(name, value)| format!("          needs {} {}", plain(name), plain(&value.to_string())));
        lines.extend(needs);
    }
    if !lines.is_empty() {
        lines.insert(0, String::new());
    }
    lines
}

/// Where the image is from, and how large.
fn origin(image: &Image, sizes: &Sizes) -> Vec<String> {
    let manifest = image.manifest();
    let (host, plain) = (&manifest.host, |text: &str| Printable(text.as_bytes()).to_string());
    let taken = ckrun_virt::table::Time::from(manifest.taken);
    let parent = manifest.parent.as_ref();
    let parent = parent.map(|p| format!("adds to   {} ({})", Printable(&p.path), p.digest));
    let rest = sizes.total.saturating_sub(sizes.pages).saturating_sub(sizes.contents);
    [
        Some(format!("image     {}", image.dir().display())),
        Some(format!(
            "taken     {taken}, generation {}, by ckrun {}",
            manifest.generation,
            plain(&manifest.ckrun)
        )),
        Some(format!(
            "host      Linux {} on {}, {}",
            plain(&host.kernel),
            plain(&host.machine),
            plain(&host.cpu.model)
        )),
        Some(format!(
            "size      {}: memory {}, files {}, all else {}",
            size(sizes.total),
            size(sizes.pages),
            size(sizes.contents),
            size(rest)
        )),
        Some(format!("digest    {}", image.digest())),
        parent,
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl Contents {
    fn read(image: &Image) -> Result<Contents> {
        fn part<T: DeserializeOwned + Default>(image: &Image, name: &str) -> Result<T> {
            if image.has(name) { Ok(image.json(name)?) } else { Ok(T::default()) }
        }
        Ok(Contents {
            members: part(image, "tasks.json")?,
            layouts: part(image, "mappings.json")?,
            objects: part(image, "objects.json")?,
            table: part(image, TABLE)?,
            network: part(image, network::FILE)?,
        })
    }

    /// The tree of processes.
    fn processes(&self, sizes: &Sizes) -> Vec<String> {
        let table = self.table.as_ref();
        let mut descriptors: BTreeMap<i32, usize> = BTreeMap::new();
        for row in table.map(Table::rows).unwrap_or_default() {
            if let Id::Descriptor { process, .. } = row.id {
                *descriptors.entry(process).or_default() += 1;
            }
        }
        let head = ["PID", "COMMAND", "STATE", "THREADS", "MAPPED", "STORED", "DESCRIPTORS", "HOST PID"];
        let rows = tree(&self.members).into_iter().map(|(prefix, member)| {
            let pid = &member.pid;
            let mapped = self.layouts.get(pid).map_or(&[][..], |layout| &layout.vmas);
            let mapped = mapped.iter().fold(0_u64, |sum, vma| sum.saturating_add(vma.range.len()));
            let real = match table.and_then(|table| table.to_real(&Id::Process(*pid))).map(|row| row.real) {
                Some(Id::Process(pid)) => pid.to_string(),
                _ => String::new(),
            };
            [
                format!("{prefix}{pid}"),
                Printable(member.comm.as_bytes()).to_string(),
                life(member.state).into(),
                member.threads.len().to_string(),
                size(mapped),
                size(sizes.processes.get(pid).copied().unwrap_or(0)),
                descriptors.get(pid).copied().unwrap_or(0).to_string(),
                real,
            ]
        });
        table_of(head, rows)
    }

    /// Files and shared memory that mappings show.
    fn objects(&self, sizes: &Sizes) -> Vec<String> {
        let rows = (0_u32..).zip(&self.objects).map(|(number, object)| {
            let (kind, what) = match &object.kind {
                Kind::File { path, .. } => ("file", Printable(path).to_string()),
                Kind::Deleted { path } => ("deleted file", Printable(path).to_string()),
                Kind::Shared { .. } => ("shared memory", String::new()),
                Kind::Memfd { name, .. } => ("memfd", Printable(name).to_string()),
                Kind::Segment { id, .. } => ("System V segment", id.to_string()),
            };
            let stored = match sizes.shared.get(&number) {
                Some(bytes) => size(*bytes),
                // The container has it at a restart.
                None if !object.carried() => "-".into(),
                None => size(0),
            };
            [number.to_string(), kind.into(), size(object.size), stored, what]
        });
        table_of(["OBJECT", "KIND", "SIZE", "STORED", "WHAT"], rows)
    }
}

fn life(state: Life) -> &'static str {
    match state {
        Life::Running => "running",
        Life::Stopped { .. } => "stopped",
        Life::Zombie { .. } => "zombie",
    }
}

/// A table after an empty line; nothing when it has no rows.
fn table_of<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> Vec<String> {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    if rows.len() == 1 {
        return Vec::new();
    }
    let mut lines = vec![String::new()];
    lines.extend(columns(&rows));
    lines
}

/// The processes in the order of a tree, each with the branches before it. One whose parent is not there is a root; each
/// is there once, whatever the image says.
fn tree(members: &[Member]) -> Vec<(String, &Member)> {
    let mut rest: BTreeMap<i32, &Member> = members.iter().map(|task| (task.pid, task)).collect();
    let mut children: BTreeMap<i32, BTreeSet<i32>> = BTreeMap::new();
    for task in rest.values().filter(|task| rest.contains_key(&task.parent) && task.parent != task.pid) {
        children.entry(task.parent).or_default().insert(task.pid);
    }
    let below: BTreeSet<i32> = children.values().flatten().copied().collect();
    let roots = rest.keys().copied().filter(|pid| !below.contains(pid)).collect::<Vec<_>>();
    // What is in a circle of parents has no root and comes at the end.
    let circles: Vec<i32> = rest.keys().copied().collect();
    let mut lines = Vec::new();
    for root in roots.into_iter().chain(circles) {
        let mut waiting = vec![(root, String::new(), String::new())];
        while let Some((pid, own, beneath)) = waiting.pop() {
            let Some(task) = rest.remove(&pid) else { continue };
            lines.push((own, task));
            let below = children.get(&pid).into_iter().flatten().rev();
            for (n, child) in below.enumerate() {
                let (branch, trunk) = if n == 0 { ("└─ ", "   ") } else { ("├─ ", "│  ") };
                waiting.push((*child, format!("{beneath}{branch}"), format!("{beneath}{trunk}")));
            }
        }
    }
    lines
}

/// The open file descriptions, and who has them.
fn files(table: &Table) -> Vec<String> {
    let mut holders: BTreeMap<u32, (String, Vec<String>)> = BTreeMap::new();
    for row in table.rows() {
        if let (Some((number, what)), Id::Descriptor { process, fd }) = (row.description, &row.id) {
            let entry = holders.entry(number).or_insert_with(|| (Printable(what).to_string(), Vec::new()));
            entry.1.push(format!("{process}:{fd}"));
        }
    }
    let rows = holders.into_iter().map(|(number, (what, who))| {
        let mut named = who.iter().take(HOLDERS).cloned().collect::<Vec<_>>().join(" ");
        if who.len() > HOLDERS {
            named.push_str(&format!(" and {} more", who.len() - HOLDERS));
        }
        [number.to_string(), what, named]
    });
    table_of(["DESCRIPTION", "WHAT", "DESCRIPTORS"], rows)
}

/// What ties the job to the world outside: sockets, devices, handles.
fn outside(table: &Table) -> Vec<String> {
    let rows = table.rows();
    let outside =
        rows.iter().filter(|row| matches!(row.id, Id::Socket(_) | Id::Device(_) | Id::Handle { .. }));
    let rows = outside.map(|row| [row.id.to_string(), row.real.to_string(), row.since.to_string()]);
    table_of(["OUTSIDE", "REAL", "SINCE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(tasks: &[(i32, i32)]) -> Vec<String> {
        let member = |&(pid, parent): &(i32, i32)| Member {
            pid,
            parent,
            group: 1,
            session: 1,
            exit_signal: 17,
            threads: vec![pid],
            state: Life::Running,
            comm: String::new(),
        };
        let members: Vec<Member> = tasks.iter().map(member).collect();
        tree(&members).into_iter().map(|(prefix, member)| format!("{prefix}{}", member.pid)).collect()
    }

    #[test]
    fn a_tree_is_drawn_whatever_the_order() {
        let tasks = [(9, 2), (1, 0), (4, 1), (2, 1), (3, 2)];
        assert_eq!(shown(&tasks), ["1", "├─ 2", "│  ├─ 3", "│  └─ 9", "└─ 4"]);
    }

    #[test]
    fn a_hostile_tree_comes_to_an_end() {
        assert_eq!(shown(&[(1, 1), (2, 3), (3, 2), (3, 2), (7, 99)]), ["1", "7", "2", "└─ 3"]);
    }
}
