//! The map of a process's memory: read from smaps, judged, checked when it comes from an image.

use super::aio::{self, Ring};
use super::frames::{self, Frames};
use super::object::{Census, Name, Object, Obstacle};
use super::smaps::{self, Entry};
use super::vma::{Backing, Flags, PAGE, Span, Vma};
use crate::image::Bytes;
use crate::proc::{self, Stat};
use crate::resource::Blocker;
use crate::{Doing, Failure, vdso};
use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;

/// All mappings of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Layout {
    /// By ascending address.
    pub vmas: Vec<Vma>,
    /// Pages that `MADV_GUARD_INSTALL` has made guards; found while the pages are read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guards: Vec<Span>,
    /// Contexts of asynchronous I/O, whose rings are mapped besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rings: Vec<Ring>,
    /// Rings of packet sockets, which are mapped besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frames: Vec<Frames>,
    /// What is mapped from now on is locked (`mlockall(MCL_FUTURE)`): `lo`, or `lo lf` with MCL_ONFAULT.
    #[serde(default, skip_serializing_if = "Flags::is_empty")]
    pub future: Flags,
}

impl Layout {
    /// Reads the map of process `host`. New files and shared memory are added to `census`. `hidden` are ckrun's own
    /// mappings there, to be left out; they tell what the process's next mapping would be like. What can't be carried comes second; the map is of use only if there is nothing.
    ///
    /// # Errors
    /// The kernel's; `EPROTO` when it writes what this does not understand.
    pub fn read(host: Pid, census: &mut Census, hidden: &[Span]) -> Result<(Layout, Vec<Obstacle>), Failure> {
        Layout::from_file("smaps", host, census, hidden)
    }

    /// What `maps` shows is the first line of each mapping in `smaps`, without a look at its pages.
    fn from_file(
        name: &str,
        host: Pid,
        census: &mut Census,
        hidden: &[Span],
    ) -> Result<(Layout, Vec<Obstacle>), Failure> {
        let path = format!("/proc/{host}/{name}");
        let text = proc::read(&path).doing(|| format!("read {path}"))?;
        let entries = smaps::parse(&text).map_err(|strange| Failure::new(strange, Errno::EPROTO))?;
        let mut layout = Layout { vmas: Vec::with_capacity(entries.len()), ..Layout::default() };
        let mut obstacles = Vec::new();
        let locks = Flags::LOCKED.and(Flags::LOCK_ON_FAULT);
        for entry in &entries {
            if hidden.iter().any(|hidden| !hidden.overlap(entry.range).is_empty()) {
                layout.future = entry.flags.only(locks);
            }
            if aio::is_ring(entry) {
                match Ring::at(entry) {
                    Ok(ring) => layout.rings.push(ring),
                    Err(obstacle) => obstacles.push(obstacle),
                }
                continue;
            }
            if frames::is_socket(entry) {
                match Frames::at(host, entry)? {
                    Ok(frames) => layout.frames.push(frames),
                    Err(obstacle) => obstacles.push(obstacle),
                }
                continue;
            }
            // The kernel may have joined a mapping of ckrun with a neighbour: cut out what is hidden.
            for range in cut(entry.range, hidden) {
                let offset = entry.offset.wrapping_add(range.start - entry.range.start);
                let entry = Entry { range, offset, ..entry.clone() };
                match judge(host, &entry, census)? {
                    Ok(Some(vma)) => layout.vmas.push(vma),
                    Ok(None) => {}
                    Err(obstacle) => obstacles.push(obstacle),
                }
            }
        }
        // valgrind unmaps the code of the vDSO and leaves its data, which only the code reads.
        if !layout.vmas.iter().any(|vma| vma.backing == Backing::Vdso) {
            layout.vmas.retain(|vma| vma.backing != Backing::Vvar);
        }
        if layout.vdso().is_none() && !layout.vmas.is_empty() {
            let memory = format!("/proc/{host}/mem");
            let memory = File::open(&memory).doing(|| format!("open {memory}"))?;
            if vdso::foothold(host, &memory).is_err() {
                let why = "it was unmapped, and no program that is mapped has room for what ckrun does there";
                obstacles.push(Obstacle::new("[vdso]", why));
            }
        }
        if let Err(why) = layout.check_vdso() {
            obstacles.push(Obstacle::new("[vdso]", why));
        }
        Ok((layout, obstacles))
    }

    /// The mapping that holds `address`.
    pub fn at(&self, address: u64) -> Option<&Vma> {
        let next = self.vmas.partition_point(|vma| vma.range.end <= address);
        self.vmas.get(next).filter(|vma| vma.range.start <= address)
    }

    /// The vdso and its data, which lie side by side.
    pub fn vdso(&self) -> Option<Span> {
        let mut of_it = self.vmas.iter().filter(|vma| matches!(vma.backing, Backing::Vdso | Backing::Vvar));
        let first = of_it.next()?.range;
        Some(of_it.fold(first, |all, vma| Span::new(all.start, vma.range.end)))
    }

    /// The data of the vdso, and its code.
    pub fn vdso_parts(&self) -> Option<(Span, Span)> {
        let whole = self.vdso()?;
        let code = self.vmas.iter().rfind(|vma| vma.backing == Backing::Vdso)?.range;
        Some((Span::new(whole.start, code.start), code))
    }

    /// Checks what an image holds: mappings that a process can have, objects that there are.
    ///
    /// # Errors
    /// What is wrong, for [`crate::Error::Damaged`].
    pub fn check(&self, objects: &[Object]) -> Result<(), String> {
        let mut end = 0;
        for vma in &self.vmas {
            let wrong = |why: &str| Err(format!("mapping {}: {why}", vma.range));
            if vma.range.start < end {
                return wrong("it overlaps the one before it");
            }
            end = vma.range.end;
            if let Backing::Object { id, offset, .. } = vma.backing {
                if objects.get(id as usize).is_none() {
                    return wrong("there is no such object");
                }
                if offset % PAGE != 0 || offset.checked_add(vma.range.len()).is_none() {
                    return wrong("its offset is impossible");
                }
            }
        }
        let rings = self.rings.iter().map(|ring| (ring.range, ring.wrong()));
        let frames = self.frames.iter().map(|frames| (frames.range, None));
        for (range, why) in rings.chain(frames) {
            let first = self.vmas.partition_point(|vma| vma.range.end <= range.start);
            let taken = self.vmas.get(first).is_some_and(|vma| vma.range.start < range.end);
            if let Some(why) = why.or(taken.then_some("it overlaps another one")) {
                return Err(format!("mapping {range}: {why}"));
            }
        }
        if let Some(guard) = self.guards.iter().find(|guard| !self.covers(**guard)) {
            return Err(format!("guard pages {guard}: there is no mapping"));
        }
        self.check_vdso().map_err(str::to_owned)
    }

    /// There is a mapping at every address of `range`.
    pub(super) fn covers(&self, range: Span) -> bool {
        let mut at = range.start;
        while at < range.end {
            match self.at(at) {
                Some(vma) => at = vma.range.end,
                None => return false,
            }
        }
        true
    }

    /// A process may have unmapped its vdso, or parts, or moved them apart; the kernel gives back only the whole.
    fn check_vdso(&self) -> Result<(), &'static str> {
        let of_it: Vec<_> =
            self.vmas.iter().filter(|vma| matches!(vma.backing, Backing::Vdso | Backing::Vvar)).collect();
        let adjacent = of_it.windows(2).all(|pair| pair[0].range.end == pair[1].range.start);
        match of_it.split_last() {
            None => Ok(()),
            Some((last, before)) => {
                let data_first = before.iter().all(|vma| vma.backing == Backing::Vvar);
                if adjacent && data_first && !before.is_empty() && last.backing == Backing::Vdso {
                    Ok(())
                } else {
                    Err("it was split or unmapped in part")
                }
            }
        }
    }
}

/// What could not be carried of the memory of a job's process, which may be running or even end meanwhile. `pid` and `comm` are for the
/// answer. In `haste` the flags of mappings, for which the kernel looks at every page, are read only if something is in the way.
///
/// # Errors
/// As [`Layout::read`].
pub fn survey(
    host: Pid,
    pid: i32,
    comm: &str,
    census: &mut Census,
    haste: bool,
) -> Result<Vec<Blocker>, Failure> {
    let look = |census: &mut Census| {
        if haste && Layout::from_file("maps", host, census, &[])?.1.is_empty() {
            return Ok(census.executable(host)?.err().into_iter().collect());
        }
        let (_, mut obstacles) = Layout::read(host, census, &[])?;
        obstacles.extend(census.executable(host)?.err());
        Ok(obstacles)
    };
    // A mapping can go between the map and the look at its file. The second or third look finds the truth.
    let mut looks = 0;
    let obstacles = loop {
        looks += 1;
        match look(census) {
            Err(_) if Stat::of(host).is_none_or(|stat| stat.ended()) => return Ok(Vec::new()),
            Err(Failure { errno: Errno::ENOENT, .. }) if looks < 10 => {}
            answer => break answer?,
        }
    };
    Ok(blockers(pid, comm, obstacles))
}

/// The obstacles of one process, addressed to people.
pub fn blockers(pid: i32, comm: &str, obstacles: Vec<Obstacle>) -> Vec<Blocker> {
    let named = |Obstacle { what, why, remedy }| Blocker { pid, comm: comm.to_owned(), what, why, remedy };
    obstacles.into_iter().map(named).collect()
}

/// `range` without the `hidden` ones.
fn cut(range: Span, hidden: &[Span]) -> impl Iterator<Item = Span> {
    let mut pieces = vec![range];
    for hole in hidden {
        pieces = pieces
            .into_iter()
            .flat_map(|piece| {
                let before = Span::new(piece.start, piece.end.min(hole.start.max(piece.start)));
                let behind = Span::new(piece.start.max(hole.end.min(piece.end)), piece.end);
                if piece.overlap(*hole).is_empty() { [piece, Span::new(0, 0)] } else { [before, behind] }
            })
            .filter(|piece| !piece.is_empty())
            .collect();
    }
    pieces.into_iter()
}

/// What one line of the map means. None for what is in every process without being its own.
fn judge(
    host: Pid,
    entry: &Entry<'_>,
    census: &mut Census,
) -> Result<Result<Option<Vma>, Obstacle>, Failure> {
    let mut vma = Vma {
        range: entry.range,
        prot: entry.prot,
        backing: Backing::Anonymous,
        flags: entry.flags,
        name: None,
        policy: None,
    };
    // That it may be made writable is of interest only where the file must be opened accordingly.
    if !entry.shared {
        vma.flags = vma.flags.without(Flags::MAY_WRITE);
    }
    let shown = String::from_utf8_lossy(entry.path);
    let refuse = |why: &str| {
        let what = format!("mapping {} {shown}", entry.range);
        Ok(Err(Obstacle::new(what.trim_end(), why)))
    };
    match entry.path {
        b"[vsyscall]" => return Ok(Ok(None)),
        b"[vdso]" => vma.backing = Backing::Vdso,
        path if path.starts_with(b"[vvar") => vma.backing = Backing::Vvar,
        _ => {
            if let Some(name) = entry.refused {
                let why = smaps::REFUSED.iter().find(|(refused, _)| *refused == name);
                return refuse(why.map_or("it is of an unknown kind", |(_, why)| why));
            }
            if entry.key != 0 {
                return refuse("it has a protection key (pkey_mprotect)");
            }
        }
    }
    match (vma.backing == Backing::Anonymous, entry.path) {
        (false, _) => vma.flags = Flags::default(),
        (_, b"" | b"[heap]" | b"[stack]") if !entry.shared => {}
        // Anonymous memory of huge pages shows the kernel's own file.
        (_, b"/anon_hugepage (deleted)") if !entry.shared && entry.flags.has(Flags::HUGETLB) => {
            if entry.page != 2 << 20 {
                return refuse("it is of huge pages of another size than 2 MiB");
            }
        }
        (_, path) if path.starts_with(b"[anon:") && !entry.shared => {
            vma.name = given_name(path, b"[anon:");
        }
        (_, path) if path.starts_with(b"/") || path.starts_with(b"[anon_shmem:") => {
            let link = format!("/proc/{host}/map_files/{:x}-{:x}", entry.range.start, entry.range.end);
            vma.name = given_name(path, b"[anon_shmem:");
            let mut path = path.to_owned();
            if path.starts_with(b"[") || path.windows(4).any(|four| four == b"\\012") {
                // Only the link tells a newline from these four characters, and the file behind a name.
                path = std::fs::read_link(&link)
                    .doing(|| format!("read {link}"))?
                    .as_os_str()
                    .as_bytes()
                    .to_owned();
            }
            let name = Name { device: entry.device, inode: entry.inode, path };
            match census.enter(name, &link)? {
                Ok(id) => vma.backing = Backing::Object { id, offset: entry.offset, shared: entry.shared },
                Err(Obstacle { why, remedy, .. }) => {
                    let what = format!("mapping {} of {shown}", entry.range);
                    return Ok(Err(Obstacle { what, why, remedy }));
                }
            }
        }
        _ => return refuse("it is memory of a kernel driver"),
    }
    Ok(Ok(Some(vma)))
}

fn given_name(path: &[u8], prefix: &[u8]) -> Option<Bytes> {
    path.strip_prefix(prefix)?.strip_suffix(b"]").map(Into::into)
}
