//! `ckrun inspect`: what is in an image.

use super::{columns, ids, print_json, print_line};
use crate::error::Result;
use crate::progress::size;
use ckrun_virt::image::{Image, Index, Owner};
use ckrun_virt::table::file::NAME as TABLE;
use ckrun_virt::table::id::Printable;
use ckrun_virt::table::{Id, Table};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The file of an image that says which processes there are.
const TASKS: &str = "tasks.json";
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

/// What a person wants to know of a process. Other fields of the file are its readers' business.
#[derive(Debug, Deserialize)]
struct Task {
    pid: i32,
    parent: i32,
    #[serde(default)]
    comm: String,
    #[serde(default)]
    state: Value,
    #[serde(default)]
    threads: Vec<i32>,
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
    let table: Option<Table> = if image.has(TABLE) { Some(image.json(TABLE)?) } else { None };
    let tasks: Value = if image.has(TASKS) { image.json(TASKS)? } else { Value::Null };
    let sizes = Sizes::of(&image)?;
    if args.json {
        return print_json(&serde_json::json!({
            "dir": args.dir,
            "digest": image.digest(),
            "manifest": image.manifest(),
            "sizes": sizes,
            "tasks": tasks,
            "table": table.as_ref().map(ids::Shown::of),
        }));
    }
    let mut lines = origin(&image, &sizes);
    lines.extend(processes(&tasks, table.as_ref(), &sizes));
    lines.extend(shared(&sizes));
    if let Some(table) = &table {
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

/// The tree of processes.
fn processes(tasks: &Value, table: Option<&Table>, sizes: &Sizes) -> Vec<String> {
    let mut found = Vec::new();
    collect(tasks, &mut found);
    let rows = table.map(Table::rows).unwrap_or_default();
    let mut descriptors: BTreeMap<i32, usize> = BTreeMap::new();
    for row in &rows {
        if let Id::Descriptor { process, .. } = row.id {
            *descriptors.entry(process).or_default() += 1;
        }
    }
    let head = ["PID", "COMMAND", "STATE", "THREADS", "MEMORY", "DESCRIPTORS", "HOST PID"];
    let mut lines = vec![head.map(str::to_owned)];
    for (prefix, task) in tree(&found) {
        let state = match &task.state {
            Value::String(state) => state.clone(),
            // `{"zombie": …}`: the name of the state and its details.
            Value::Object(state) => state.keys().next().cloned().unwrap_or_default(),
            _ => String::new(),
        };
        let real = table.and_then(|table| table.to_real(&Id::Process(task.pid))).map(|row| row.real);
        lines.push([
            format!("{prefix}{}", task.pid),
            Printable(task.comm.as_bytes()).to_string(),
            Printable(state.as_bytes()).to_string(),
            task.threads.len().to_string(),
            size(sizes.processes.get(&task.pid).copied().unwrap_or(0)),
            descriptors.get(&task.pid).copied().unwrap_or(0).to_string(),
            match real {
                Some(Id::Process(pid)) => pid.to_string(),
                _ => String::new(),
            },
        ]);
    }
    let mut lines = columns(&lines);
    lines.insert(0, String::new());
    lines
}

/// Every object that describes a process, wherever it stands.
fn collect(value: &Value, found: &mut Vec<Task>) {
    if let Ok(task) = Task::deserialize(value) {
        found.push(task);
        return;
    }
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
        Value::Object(values) => values.values().for_each(|value| collect(value, found)),
        _ => {}
    }
}

/// The processes in the order of a tree, each with the branches before it. One whose parent is not there is a root; each
/// is there once, whatever the image says.
fn tree(tasks: &[Task]) -> Vec<(String, &Task)> {
    let mut rest: BTreeMap<i32, &Task> = tasks.iter().map(|task| (task.pid, task)).collect();
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

fn shared(sizes: &Sizes) -> Vec<String> {
    if sizes.shared.is_empty() {
        return Vec::new();
    }
    let head = ["SHARED MEMORY", "STORED"].map(str::to_owned);
    let rows = sizes.shared.iter().map(|(object, bytes)| [object.to_string(), size(*bytes)]);
    let mut lines = columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    lines.insert(0, String::new());
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
    if holders.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![["DESCRIPTION", "WHAT", "DESCRIPTORS"].map(str::to_owned)];
    for (number, (what, who)) in holders {
        let mut named = who.iter().take(HOLDERS).cloned().collect::<Vec<_>>().join(" ");
        if who.len() > HOLDERS {
            named.push_str(&format!(" and {} more", who.len() - HOLDERS));
        }
        lines.push([number.to_string(), what, named]);
    }
    let mut lines = columns(&lines);
    lines.insert(0, String::new());
    lines
}

/// What ties the job to the world outside: sockets, devices, handles.
fn outside(table: &Table) -> Vec<String> {
    let rows = table.rows();
    let outside =
        rows.iter().filter(|row| matches!(row.id, Id::Socket(_) | Id::Device(_) | Id::Handle { .. }));
    let mut lines = vec![["OUTSIDE", "REAL", "SINCE"].map(str::to_owned)];
    lines.extend(outside.map(|row| [row.id.to_string(), row.real.to_string(), row.since.to_string()]));
    if lines.len() == 1 {
        return Vec::new();
    }
    let mut lines = columns(&lines);
    lines.insert(0, String::new());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(tasks: &Value) -> Vec<String> {
        let mut found = Vec::new();
        collect(tasks, &mut found);
        tree(&found).into_iter().map(|(prefix, task)| format!("{prefix}{}", task.pid)).collect()
    }

    #[test]
    fn a_tree_is_drawn_whatever_the_order() {
        let task = |pid: i32, parent: i32| serde_json::json!({"pid": pid, "parent": parent, "more": [1]});
        let tasks =
            serde_json::json!({"members": [task(9, 2), task(1, 0), task(4, 1), task(2, 1), task(3, 2)]});
        assert_eq!(shown(&tasks), ["1", "├─ 2", "│  ├─ 3", "│  └─ 9", "└─ 4"]);
    }

    #[test]
    fn a_hostile_tree_comes_to_an_end() {
        let task = |pid: i32, parent: i32| serde_json::json!({"pid": pid, "parent": parent});
        let tasks = serde_json::json!([task(1, 1), task(2, 3), task(3, 2), task(3, 2), task(7, 99)]);
        assert_eq!(shown(&tasks), ["1", "7", "2", "└─ 3"]);
        assert_eq!(shown(&serde_json::json!({"a": {"pid": "x", "parent": 1}})), [""; 0]);
    }
}
