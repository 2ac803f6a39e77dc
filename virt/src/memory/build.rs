//! Mappings, made in a task that has none of its own yet, or only inherited ones.
//!
//! The order is: [`draw`] and [`build`] (the mappings), [`super::fill`] (the pages), [`finish`] (what
//! would be in the way of filling), and [`seal`] when no other process is made from this one any more.

use super::aio;
use super::batch::Batch;
use super::layout::Layout;
use super::mm::MmState;
use super::object::{Kind, Object};
use super::plan::Plan;
use super::policy;
use super::segment;
use super::vma::{Backing, Flags, Prot, Span, Vma};
use crate::Failure;
use crate::program::{Arg, Program};
use crate::worker::Worker;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::os::fd::RawFd;

/// The end of what mmap(2) gives without being asked for more: 47 bits.
const TASK_END: u64 = 0x7fff_ffff_f000;
/// The end of what it gives at all, with five levels of page tables.
const LAST_END: u64 = (1 << 56) - 0x1000;

const ARCH_MAP_VDSO_64: u64 = 0x2003;
const MADV_GUARD_INSTALL: i32 = 102;
const PR_SET_VMA: i32 = 0x53_56_4d_41;
const SYS_MSEAL: libc::c_long = 462;
const MAP_DROPPABLE: i32 = 8;
const MAP_HUGE_2MB: i32 = 21 << 26;

/// Where a task has a carried object open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle {
    /// For reading and writing.
    pub write: RawFd,
    /// For reading only; the same as `write` if no mapping asks for it.
    pub read: RawFd,
}

/// The carried objects that a task has open, by their places in the list.
pub type Handles = BTreeMap<u32, Handle>;

/// What a task's memory is to be.
#[derive(Debug, Clone, Copy)]
pub struct Blueprint<'a> {
    /// The mappings.
    pub layout: &'a Layout,
    /// The kernel's notes beside them.
    pub state: &'a MmState,
    /// All objects of the job.
    pub objects: &'a [Object],
    /// Where the task has the carried ones open.
    pub handles: &'a Handles,
    /// What it keeps of what it has inherited.
    pub plan: &'a Plan<'a>,
    /// The notes of the process that it was made from, if that is one of the job.
    pub inherited: Option<&'a MmState>,
}

/// Unmaps everything that the plan does not keep, and maps what the layout says. Files are opened by their paths: the
/// task's root directory must be the container's. rseq and other registrations of user memory must have been taken back.
///
/// # Errors
/// The failed call: `map 7f00-7f01 of /usr/lib/x: no such file or directory`.
pub fn build(worker: &mut Worker, blueprint: &Blueprint<'_>) -> Result<(), Failure> {
    let last = draw(worker, blueprint)?;
    worker.run(&last)?;
    aio::make(worker, &blueprint.layout.rings)
}

/// The first part of [`build`], up to the last calls, which are the answer. After them come the rings of asynchronous I/O
/// ([`aio::make`]).
///
/// # Errors
/// As [`build`].
pub fn draw(worker: &mut Worker, blueprint: &Blueprint<'_>) -> Result<Program, Failure> {
    let Blueprint { layout, objects, handles, plan, .. } = *blueprint;
    let stub = worker.stub_range();
    let mut batch = Batch::new(worker);
    clear(&mut batch.program, Span::new(stub.start, stub.end), plan);
    for range in &plan.forgotten {
        batch.pause()?;
        advise(&mut batch.program, *range, libc::MADV_DONTNEED, "forget inherited pages");
    }
    note(&mut batch, blueprint)?;
    if let Some(vdso) = layout.vdso().filter(|vdso| plan.missing(*vdso).next().is_some()) {
        // It lands where it is asked to, as nothing is in the way yet.
        batch.program.call(
            format!("map the vdso at {vdso}"),
            libc::SYS_arch_prctl,
            &[ARCH_MAP_VDSO_64.into(), vdso.start.into()],
        );
    }
    segment::attach(&mut batch.program, &layout.vmas, objects, |vma| {
        plan.missing(vma.range).next().is_none()
    });
    // The pieces to be mapped; those of one file share its opening.
    let pieces: Vec<(&Vma, Span)> = layout
        .vmas
        .iter()
        .filter(|vma| !attached(vma, objects))
        .flat_map(|vma| plan.missing(vma.range).map(move |piece| (vma, piece)))
        .collect();
    for group in
        pieces.chunk_by(|(a, _), (b, _)| file(a, objects).is_some() && file(a, objects) == file(b, objects))
    {
        // Not so many that they would not fit into one program.
        for group in group.chunks(256) {
            batch.pause()?;
            map_group(&mut batch.program, group, objects, handles)?;
        }
    }
    Ok(batch.rest())
}

/// Gives the kernel its notes. It lets an executable go only when nothing of it is mapped, not even by those who are to
/// have it again: so this is done when the old memory is gone and the new one not there yet.
fn note(batch: &mut Batch<'_>, blueprint: &Blueprint<'_>) -> Result<(), Failure> {
    let Blueprint { state, objects, handles, inherited, .. } = *blueprint;
    if inherited == Some(state) {
        return Ok(());
    }
    if inherited.is_some_and(|inherited| inherited.exe == state.exe) {
        state.restore(&mut batch.program, None);
        return Ok(());
    }
    if let Some(handle) = handles.get(&state.exe) {
        state.restore(&mut batch.program, Some(handle.read));
        return Ok(());
    }
    let Some(Kind::File { path, .. }) = objects.get(state.exe as usize).map(|object| &object.kind) else {
        return Err(Failure::new(format!("find the executable, object {}", state.exe), Errno::EBADF));
    };
    let place = batch.program.put_cstr(path);
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    let what = format!("open the executable {path}");
    let args = [libc::AT_FDCWD.into(), place.into(), flags.into()];
    let open = batch.program.call(what.clone(), libc::SYS_openat, &args);
    let exe = batch.run()?.of(open).map_err(|errno| Failure::new(what, errno))? as RawFd;
    state.restore(&mut batch.program, Some(exe));
    batch.program.call("close the executable", libc::SYS_close, &[exe.into()]);
    Ok(())
}

/// It is attached, not mapped.
fn attached(vma: &Vma, objects: &[Object]) -> bool {
    let Backing::Object { id, .. } = vma.backing else { return false };
    matches!(objects.get(id as usize).map(|object| &object.kind), Some(Kind::Segment { .. }))
}

/// The file behind a mapping that must be opened for it: its path, and whether for writing.
fn file<'a>(vma: &Vma, objects: &'a [Object]) -> Option<(&'a [u8], bool)> {
    let Backing::Object { id, shared, .. } = vma.backing else { return None };
    match &objects.get(id as usize)?.kind {
        Kind::File { path, namespace: 0, .. } => {
            Some((path.as_bytes(), shared && vma.flags.has(Flags::MAY_WRITE)))
        }
        _ => None,
    }
}

/// Unmaps all but the stub and what is kept.
fn clear(program: &mut Program, stub: Span, plan: &Plan<'_>) {
    let mut stay: Vec<Span> = plan.kept.iter().copied().chain([stub]).collect();
    stay.sort_unstable();
    let mut at = 0;
    for span in stay.iter().copied().chain([Span::new(TASK_END, TASK_END)]) {
        if at < span.start {
            program.call("unmap inherited memory", libc::SYS_munmap, &[at.into(), (span.start - at).into()]);
        }
        at = at.max(span.end);
    }
    // A CPU or kernel that has no addresses there says EINVAL.
    if at < LAST_END {
        program.attempt(
            "unmap inherited high memory",
            libc::SYS_munmap,
            &[at.into(), (LAST_END - at).into()],
        );
    }
}

fn map_group(
    program: &mut Program,
    group: &[(&Vma, Span)],
    objects: &[Object],
    handles: &Handles,
) -> Result<(), Failure> {
    let Some((first, _)) = group.first() else { return Ok(()) };
    let Some((path, write)) = file(first, objects) else {
        for (vma, piece) in group {
            let fd = match vma.backing {
                Backing::Anonymous => -1,
                Backing::Object { id, shared, .. } => {
                    let handle = handles
                        .get(&id)
                        .ok_or_else(|| Failure::new(format!("map {piece} of object {id}"), Errno::EBADF))?;
                    let write = shared && vma.flags.has(Flags::MAY_WRITE);
                    if write { handle.write } else { handle.read }
                }
                Backing::Vdso | Backing::Vvar => continue,
            };
            map(program, vma, *piece, fd.into(), b"");
        }
        return Ok(());
    };
    let name = String::from_utf8_lossy(path);
    let flags = libc::O_CLOEXEC | if write { libc::O_RDWR } else { libc::O_RDONLY };
    let place = program.put_cstr(path);
    let open = program.call(
        format!("open {name} to map it"),
        libc::SYS_openat,
        &[libc::AT_FDCWD.into(), place.into(), flags.into()],
    );
    for (vma, piece) in group {
        map(program, vma, *piece, open.into(), path);
    }
    program.call(format!("close {name}"), libc::SYS_close, &[open.into()]);
    Ok(())
}

/// Maps the part `piece` of a mapping.
fn map(program: &mut Program, vma: &Vma, piece: Span, fd: Arg, path: &[u8]) {
    let mut flags = libc::MAP_FIXED_NOREPLACE;
    let mut offset = 0;
    match vma.backing {
        Backing::Object { offset: start, shared, .. } => {
            offset = start.wrapping_add(piece.start - vma.range.start);
            flags |= match (shared, vma.flags.has(Flags::SYNC)) {
                (true, true) => libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC,
                (true, false) => libc::MAP_SHARED,
                (false, _) => libc::MAP_PRIVATE,
            };
        }
        _ => {
            flags |= libc::MAP_ANONYMOUS;
            flags |= if vma.flags.has(Flags::DROPPABLE) { MAP_DROPPABLE } else { libc::MAP_PRIVATE };
            if vma.flags.has(Flags::HUGETLB) {
                flags |= libc::MAP_HUGETLB | MAP_HUGE_2MB;
            }
        }
    }
    for (flag, bit) in [(Flags::GROWS_DOWN, libc::MAP_GROWSDOWN), (Flags::NO_RESERVE, libc::MAP_NORESERVE)] {
        if vma.flags.has(flag) {
            flags |= bit;
        }
    }
    let what = if path.is_empty() {
        format!("map memory at {piece}")
    } else {
        format!("map {piece} of {}", String::from_utf8_lossy(path))
    };
    let args =
        [piece.start.into(), piece.len().into(), initial(vma).bits().into(), flags.into(), fd, offset.into()];
    program.call(what, libc::SYS_mmap, &args);
    policy::bind(program, vma, piece);
}

/// The protection of a mapping while it is filled. Memory that counts as committed without being writable was writable
/// once (the relocations of a program, say): only by having been, with pages in it, can it count again.
pub(super) fn initial(vma: &Vma) -> Prot {
    let was_writable = vma.private() && vma.flags.has(Flags::ACCOUNT) && !vma.flags.has(Flags::HUGETLB);
    if was_writable { vma.prot.and(Prot::WRITE) } else { vma.prot }
}

/// Sets what mappings have besides their pages, and the protection of those that had to be writable until now.
///
/// # Errors
/// The failed call.
pub fn finish(worker: &mut Worker, layout: &Layout, plan: &Plan<'_>) -> Result<(), Failure> {
    let mut batch = Batch::new(worker);
    add_rest(&mut batch, layout, plan)?;
    batch.run().map(drop)
}

fn add_rest(batch: &mut Batch<'_>, layout: &Layout, plan: &Plan<'_>) -> Result<(), Failure> {
    for guard in &layout.guards {
        batch.pause()?;
        advise(&mut batch.program, *guard, MADV_GUARD_INSTALL, "install guard pages (Linux 6.13)");
    }
    for vma in &layout.vmas {
        for piece in plan.missing(vma.range) {
            batch.pause()?;
            if initial(vma) != vma.prot {
                let args = [piece.start.into(), piece.len().into(), vma.prot.bits().into()];
                batch.program.call(format!("protect memory at {piece}"), libc::SYS_mprotect, &args);
            }
            embellish(&mut batch.program, vma, piece);
        }
    }
    // Locking comes behind all else: guard pages can't be installed in what is locked.
    for vma in layout.vmas.iter().filter(|vma| vma.flags.has(Flags::LOCKED)) {
        batch.pause()?;
        lock(&mut batch.program, vma);
    }
    if layout.future.has(Flags::LOCKED) {
        let on_fault = if layout.future.has(Flags::LOCK_ON_FAULT) { libc::MCL_ONFAULT } else { 0 };
        let flags = libc::MCL_FUTURE | on_fault;
        batch.program.call("lock future memory", libc::SYS_mlockall, &[flags.into()]);
    }
    Ok(())
}

fn embellish(program: &mut Program, vma: &Vma, piece: Span) {
    // A kernel without huge or mergeable pages refuses these; without them, they mean nothing.
    let hints = [
        (Flags::HUGE, libc::MADV_HUGEPAGE),
        (Flags::NO_HUGE, libc::MADV_NOHUGEPAGE),
        (Flags::MERGEABLE, libc::MADV_MERGEABLE),
    ];
    for (_, advice) in hints.into_iter().filter(|(flag, _)| vma.flags.has(*flag)) {
        let args = [piece.start.into(), piece.len().into(), advice.into()];
        program.attempt("advise on huge pages", libc::SYS_madvise, &args);
    }
    let duties = [
        (Flags::SEQUENTIAL, libc::MADV_SEQUENTIAL),
        (Flags::RANDOM, libc::MADV_RANDOM),
        (Flags::DONT_DUMP, libc::MADV_DONTDUMP),
        (Flags::DONT_FORK, libc::MADV_DONTFORK),
        (Flags::WIPE_ON_FORK, libc::MADV_WIPEONFORK),
    ];
    // Droppable memory is born with what it has.
    for (flag, advice) in duties.into_iter().filter(|_| !vma.flags.has(Flags::DROPPABLE)) {
        if vma.flags.has(flag) {
            advise(program, piece, advice, &format!("set the flag {flag}"));
        }
    }
    if let Some(name) = &vma.name {
        let place = program.put_cstr(name);
        let args = [PR_SET_VMA.into(), 0.into(), piece.start.into(), piece.len().into(), place.into()];
        // A kernel without names for memory can't have shown one, but the new one may be another.
        program.attempt("name memory", libc::SYS_prctl, &args);
    }
}

fn lock(program: &mut Program, vma: &Vma) {
    let on_fault = u64::from(vma.flags.has(Flags::LOCK_ON_FAULT));
    let args = [vma.range.start.into(), vma.range.len().into(), on_fault.into()];
    let what = format!("lock memory at {}", vma.range);
    // What can't be read is locked all the same, but the kernel complains that it could not bring it in.
    if vma.prot.allows(Prot::READ) {
        program.call(what, libc::SYS_mlock2, &args);
    } else {
        program.attempt(what, libc::SYS_mlock2, &args);
    }
}

/// Does what [`finish`] does, for a process that it has not been done for, and seals what was sealed. Whoever is forked from
/// this process afterwards could not get rid of it. The last calls are the answer.
///
/// # Errors
/// The failed call: `ENOSYS` before Linux 6.10.
pub fn seal(worker: &mut Worker, layout: &Layout, plan: Option<&Plan<'_>>) -> Result<Program, Failure> {
    let mut batch = Batch::new(worker);
    if let Some(plan) = plan {
        add_rest(&mut batch, layout, plan)?;
    }
    for vma in layout.vmas.iter().filter(|vma| vma.flags.has(Flags::SEALED)) {
        batch.pause()?;
        let args = [vma.range.start.into(), vma.range.len().into(), 0.into()];
        batch.program.call(format!("seal memory at {}", vma.range), SYS_MSEAL, &args);
    }
    Ok(batch.rest())
}

fn advise(program: &mut Program, range: Span, advice: i32, what: &str) {
    let args = [range.start.into(), range.len().into(), advice.into()];
    program.call(format!("{what} at {range}"), libc::SYS_madvise, &args);
}
