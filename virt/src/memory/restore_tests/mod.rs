//! Address spaces of real processes, built again in new ones.

mod shared;

use super::testing::{Task, advise, anonymous, map, newborn, page_files, poke, protect, sinks};
use super::*;
use crate::image::{PageRun, PagesWriter};
use crate::nursery::{Birth, beget};
use crate::worker::Worker;
use libc::{
    MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_EXEC, PROT_NONE, PROT_READ,
    PROT_WRITE,
};
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// What was read of a process.
struct Image {
    layout: Layout,
    state: MmState,
    dumped: Dumped,
}

impl Image {
    fn blueprint<'a>(
        &'a self,
        census: &'a Census,
        handles: &'a Handles,
        plan: &'a Plan<'a>,
    ) -> Blueprint<'a> {
        Blueprint {
            layout: &self.layout,
            state: &self.state,
            objects: census.objects(),
            handles,
            plan,
            inherited: None,
        }
    }
}

fn capture(task: &Task, census: &mut Census, relatives: &[Relative<'_>], sinks: &mut [PagesWriter]) -> Image {
    let mut layout = task.layout(census);
    // First what makes the task run: the kernel writes the number of the CPU into its memory then (rseq).
    let state = task.state(census, &mut layout);
    let dumped = dump(task.pid, &task.memory, &layout, |_| true, Some(relatives), sinks).unwrap();
    layout.guards = dumped.guards.clone();
    layout.check(census.objects()).unwrap();
    state.check(census.objects().len()).unwrap();
    let json = serde_json::to_vec(&(&layout, &state, census.objects())).unwrap();
    let (layout, state, objects): (Layout, MmState, Vec<Object>) = serde_json::from_slice(&json).unwrap();
    assert_eq!(objects, census.objects());
    Image { layout, state, dumped }
}

/// Objects of the census, made in `worker`.
fn objects(worker: &mut Worker, census: &Census, images: &[&Image], sinks: &mut [PagesWriter]) -> Handles {
    let runs: BTreeMap<u32, Vec<PageRun>> = (0_u32..)
        .zip(census.objects())
        .filter(|(_, object)| object.carried())
        .map(|(id, _)| (id, dump_object(&census.open(id).unwrap(), sinks).unwrap().runs))
        .collect();
    let mut handles = Handles::new();
    let layouts = images.iter().map(|image| &image.layout);
    let of = |id: u32| runs.get(&id).map_or(&[][..], Vec::as_slice);
    let pages = page_files(sinks);
    make_objects(worker, census.objects(), layouts, of, &pages, 200, &mut handles).unwrap();
    assert!(handles.values().all(|handle| handle.write >= 200 && handle.read >= 200));
    handles
}

/// Puts `image` into `worker`.
fn restore(
    worker: &mut Worker,
    image: &Image,
    census: &Census,
    handles: &Handles,
    plan: &Plan<'_>,
    inherited: Option<&MmState>,
    sinks: &[PagesWriter],
) {
    build(worker, &Blueprint { inherited, ..image.blueprint(census, handles, plan) }).unwrap();
    fill(worker, &image.layout, plan, &page_files(sinks)).unwrap();
    finish(worker, &image.layout, plan).unwrap();
}

/// What smaps shows of a process but for ckrun's own mapping, with what must be the same.
fn shown(pid: nix::unistd::Pid, hidden: Option<Span>) -> Vec<String> {
    let text = std::fs::read(format!("/proc/{pid}/smaps")).unwrap();
    let entries = smaps::parse(&text).unwrap();
    let inodes = |entry: &smaps::Entry<'_>| {
        let made = entry.path.ends_with(b" (deleted)");
        if made { "new".to_owned() } else { format!("{:?} {}", entry.device, entry.inode) }
    };
    // Neighbours that only the history of their pages keeps apart are one mapping in a new process.
    let mut joined: Vec<smaps::Entry<'_>> = Vec::new();
    for mut entry in entries {
        if entry.prot == Prot::default() {
            // What was accessible once counts as committed for good if it had pages: a guard gap that the C library put into
            // the cached stack of a former thread of this process, say.
            entry.flags = entry.flags.without(Flags::ACCOUNT);
        }
        match joined.last_mut() {
            Some(last)
                if last.range.end == entry.range.start
                    && (last.path, entry.path) == (b"", b"")
                    && (last.prot, last.shared, last.flags) == (entry.prot, entry.shared, entry.flags) =>
            {
                last.range.end = entry.range.end;
            }
            _ => joined.push(entry),
        }
    }
    joined
        .iter()
        .filter(|entry| {
            entry.path != b"[vsyscall]" && hidden.is_none_or(|h| h.overlap(entry.range).is_empty())
        })
        .map(|entry| {
            // The kernel calls a file that never had a name by its inode, which is another one after a restart.
            let path = String::from_utf8_lossy(entry.path);
            let path = path.split_once('#').map_or(&*path, |(directory, _)| directory);
            let sharing = if entry.shared { 's' } else { 'p' };
            let (range, prot, offset, flags) = (entry.range, entry.prot, entry.offset, entry.flags);
            format!("{range} {prot}{sharing} {offset:x} {} {path} [{flags}]", inodes(entry))
        })
        .collect()
}

fn userfaultfds(worker: &Worker) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", worker.host())).unwrap();
    let names = fds.map(|fd| std::fs::read_link(fd.unwrap().path()).unwrap());
    names.filter(|name| name.to_string_lossy().contains("userfaultfd")).count()
}

/// The new process looks like the old one and has its memory.
fn assert_same(task: &Task, worker: &Worker, image: &Image) {
    let stub = worker.stub_range();
    let (old, new) = (shown(task.pid, None), shown(worker.host(), Some(Span::new(stub.start, stub.end))));
    for (old, new) in old.iter().zip(&new) {
        assert_eq!(old, new);
    }
    assert_eq!(old.len(), new.len());
    for vma in image.layout.vmas.iter().filter(|vma| vma.stored()) {
        let mut at = vma.range.start;
        while at < vma.range.end {
            let len = (vma.range.end - at).min(1 << 20) as usize;
            let mut there = vec![0; len];
            let mut here = vec![0; len];
            // Guard pages, and what lies behind the end of a file, can be read in neither.
            let (old, new) = (task.memory.read_exact_at(&mut here, at), worker.read(at, &mut there));
            assert_eq!(old.is_ok(), new.is_ok(), "at {at:#x} of {vma:?}");
            assert!(here == there, "at {at:#x} of {vma:?}");
            at += len as u64;
        }
    }
    let files = |name: &str, pid| std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
    for name in ["auxv", "cmdline", "environ"] {
        assert_eq!(files(name, task.pid), files(name, worker.host()), "{name}");
    }
    let exe = |pid| std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(exe(task.pid), exe(worker.host()));
}

#[test]
fn a_zoo_of_mappings_comes_back() {
    let task = Task::new(|| {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 8 * PAGE as usize], 0).unwrap();
        let fd = file.as_raw_fd();
        let rw = PROT_READ | PROT_WRITE;
        // A reservation of which a part is in use, large enough to be filled by userfaultfd.
        let arena = map(0, 1 << 32, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        protect(arena, 4 << 20, rw);
        for page in (0..1024).filter(|page| page % 5 != 0) {
            poke(arena + page * PAGE, &(page + 1).to_ne_bytes());
        }
        protect(arena + (1 << 20), 512 << 10, PROT_READ);
        protect(arena + (2 << 20), 512 << 10, PROT_NONE);
        // Small ones of each protection, with a page of zeroes over a file.
        for prot in [PROT_NONE, PROT_READ, PROT_READ | PROT_EXEC, rw] {
            let at = anonymous(3 * PAGE);
            poke(at + PAGE, b"small");
            protect(at, 3 * PAGE, prot);
            let at = map(0, 8 * PAGE, rw, MAP_PRIVATE, fd, 0);
            poke(at + 2 * PAGE, &[0; PAGE as usize]);
            poke(at + 3 * PAGE + 1, b"over a file");
            protect(at, 8 * PAGE, prot);
        }
        // Beyond the end of the file.
        map(0, 4 * PAGE, PROT_READ, MAP_PRIVATE, fd, 6 * PAGE as i64);
        let stack = map(0, 8 * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS | libc::MAP_GROWSDOWN, -1, 0);
        poke(stack + 7 * PAGE, b"stack");
        let guarded = anonymous(8 * PAGE);
        poke(guarded, &[9; 8 * PAGE as usize]);
        assert!(advise(guarded + 3 * PAGE, 2 * PAGE, 102));
        let locked = anonymous(2 * PAGE);
        // SAFETY: locks and seals what was mapped above.
        unsafe {
            assert_eq!(libc::mlock(locked as *const libc::c_void, PAGE as usize), 0);
            let hidden = map(0, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            libc::mlock(hidden as *const libc::c_void, PAGE as usize);
            let fault = map(0, PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            libc::mlock2(fault as *const libc::c_void, PAGE as usize, 1);
        }
        for advice in [
            libc::MADV_DONTFORK,
            libc::MADV_WIPEONFORK,
            libc::MADV_DONTDUMP,
            libc::MADV_HUGEPAGE,
            libc::MADV_NOHUGEPAGE,
            libc::MADV_MERGEABLE,
            libc::MADV_RANDOM,
            libc::MADV_SEQUENTIAL,
        ] {
            let at = anonymous(4 * PAGE);
            assert!(advise(at + PAGE, PAGE, advice), "{advice}");
            poke(at + PAGE, b"advised");
        }
        let bound = anonymous(2 * PAGE);
        let (bind, nodes) = (2, 1_u64);
        // SAFETY: chooses the node of what was mapped above.
        let told = unsafe { libc::syscall(libc::SYS_mbind, bound, PAGE, bind, &raw const nodes, 64, 0) };
        assert_eq!(told, 0);
        // Droppable memory: its pages are not kept, so there are none here.
        map(0, PAGE, rw, 8 | MAP_ANONYMOUS, -1, 0);
        vec![arena]
    });
    let mut census = task.census();
    let (_dir, mut sinks) = sinks(2);
    let image = capture(&task, &mut census, &[], &mut sinks);
    let mut worker = newborn();
    let handles = objects(&mut worker, &census, &[&image], &mut sinks);
    let plan = Plan::fresh(&image.dumped.runs);
    restore(&mut worker, &image, &census, &handles, &plan, None, &sinks);
    assert_same(&task, &worker, &image);
    let mut again = image.layout.clone();
    again.vmas.iter_mut().for_each(|vma| vma.policy = None);
    testing::policies(&mut again, |program| worker.run(program).unwrap());
    assert_eq!(again, image.layout);
    assert_eq!(again.vmas.iter().filter(|vma| vma.policy.is_some()).count(), 1);
    // No page has become one of the process's own that was not.
    let again = dump(worker.host(), worker.memory(), &image.layout, |_| true, None, &mut sinks).unwrap();
    let pages = |run: &PageRun| (run.vaddr..run.vaddr + run.len()).step_by(PAGE as usize);
    let places = |dumped: &Dumped| dumped.runs.iter().flat_map(pages).collect::<Vec<_>>();
    assert_eq!(places(&again), places(&image.dumped));
    // But that which is locked, as the lock brings it in.
    assert_eq!((again.guards, again.dropped), (image.dumped.guards.clone(), PAGE));
}

#[test]
fn large_memory_is_filled_by_two_threads() {
    const LEN: u64 = 40 << 20;
    let task = Task::new(|| {
        let at = anonymous(LEN);
        for page in 0..LEN / PAGE {
            poke(at + page * PAGE + 8, &(page * page + 1).to_ne_bytes());
        }
        vec![at]
    });
    let mut census = task.census();
    let (_dir, mut sinks) = sinks(2);
    let image = capture(&task, &mut census, &[], &mut sinks);
    let mut worker = newborn();
    let before = userfaultfds(&worker);
    let plan = Plan::fresh(&image.dumped.runs);
    restore(&mut worker, &image, &census, &Handles::new(), &plan, None, &sinks);
    assert_same(&task, &worker, &image);
    // The end of the userfaultfd has taken its mark off the mapping; one descriptor is left, which goes with all that a
    // process does not keep. (It may have inherited those of other tests.)
    assert_eq!(userfaultfds(&worker), before + 1);
}

#[test]
fn a_flipped_bit_is_found_and_named() {
    for len in [PAGE, 1 << 20, 12 << 20] {
        let task = Task::new(|| {
            let at = anonymous(len);
            poke(at, &vec![3; len as usize]);
            vec![at]
        });
        let mut census = task.census();
        let (_dir, mut sinks) = sinks(1);
        let image = capture(&task, &mut census, &[], &mut sinks);
        let run = image
            .dumped
            .runs
            .iter()
            .rfind(|run| run.vaddr < task.told[0] + len && run.vaddr >= task.told[0])
            .unwrap();
        sinks[0].file().write_all_at(&[2], run.offset + run.len() - 1).unwrap();
        let mut worker = newborn();
        let plan = Plan::fresh(&image.dumped.runs);
        build(&mut worker, &image.blueprint(&census, &Handles::new(), &plan)).unwrap();
        let said = fill(&mut worker, &image.layout, &plan, &page_files(&sinks)).unwrap_err().to_string();
        assert!(said.contains("pages-0.img") && said.contains(&format!("{:#x}", run.offset)), "{said}");
    }
}

/// As by a reader of /proc/PID/cmdline.
#[test]
fn a_page_that_somebody_has_made_before_is_filled() {
    let len = 1 << 20;
    let task = Task::new(|| {
        let at = anonymous(len);
        poke(at, &vec![3; len as usize]);
        vec![at]
    });
    let mut census = task.census();
    let (_dir, mut sinks) = sinks(1);
    let image = capture(&task, &mut census, &[], &mut sinks);
    let mut worker = newborn();
    let plan = Plan::fresh(&image.dumped.runs);
    build(&mut worker, &image.blueprint(&census, &Handles::new(), &plan)).unwrap();
    worker.memory().write_all_at(&[9; 8], task.told[0] + 5 * PAGE).unwrap();
    fill(&mut worker, &image.layout, &plan, &page_files(&sinks)).unwrap();
    let mut found = vec![0; len as usize];
    worker.memory().read_exact_at(&mut found, task.told[0]).unwrap();
    assert!(found.iter().all(|byte| *byte == 3));
}

#[test]
fn pages_without_a_mapping_are_refused() {
    let task = Task::new(|| vec![anonymous(PAGE)]);
    let mut census = task.census();
    let (_dir, mut sinks) = sinks(1);
    let image = capture(&task, &mut census, &[], &mut sinks);
    let run = image.dumped.runs[0];
    let vdso = image.layout.vdso().unwrap();
    for vaddr in [0, vdso.end - PAGE, task.told[0], u64::MAX - PAGE + 1] {
        let mut worker = newborn();
        let pages = if vaddr == task.told[0] { 200 } else { 1 };
        let runs = [PageRun { vaddr, pages, ..run }];
        let plan = Plan::fresh(&runs);
        let refused = fill(&mut worker, &image.layout, &plan, &page_files(&sinks));
        assert!(matches!(refused, Err(crate::Error::Damaged(_))), "{refused:?}");
    }
}

#[test]
fn parent_and_child_share_their_pages_again() {
    const PAGES: u64 = 2000;
    let parent = Task::new(|| {
        let at = anonymous(PAGES * PAGE);
        advise(at, PAGES * PAGE, libc::MADV_NOHUGEPAGE);
        for page in 0..PAGES {
            poke(at + page * PAGE, &(page + 1).to_ne_bytes());
        }
        let changed = anonymous(100 * PAGE);
        poke(changed, &[1; 100 * PAGE as usize]);
        let (read, write) = nix::unistd::pipe().unwrap();
        // SAFETY: a copy of a process with one thread.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                poke(at + 300 * PAGE, &[0xff; 8]);
                poke(at + 500 * PAGE, &[0; 8]);
                advise(at + 700 * PAGE, 10 * PAGE, libc::MADV_DONTNEED);
                poke(changed, &[2; 90 * PAGE as usize]);
                // A part that is protected otherwise, one that is gone, and one that is new in its place.
                protect(at + 1000 * PAGE, 4 * PAGE, PROT_READ);
                let fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
                map(at + 1100 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, fixed, -1, 0);
                // SAFETY: a part of the mapping above.
                unsafe { libc::munmap((at + 1200 * PAGE) as *mut libc::c_void, PAGE as usize) };
                nix::unistd::write(&write, &[1]).unwrap();
                loop {
                    nix::unistd::pause();
                }
            }
            nix::unistd::ForkResult::Parent { child } => {
                nix::unistd::read(&read, &mut [0]).unwrap();
                vec![at, child.as_raw() as u64]
            }
        }
    });
    let child = Task::catch(nix::unistd::Pid::from_raw(parent.told[1] as i32), vec![]);
    let mut census = parent.census();
    let (_dir, mut sinks) = sinks(1);
    let elder = capture(&parent, &mut census, &[], &mut sinks);
    let relatives = [Relative::new(parent.pid, &elder.dumped.runs).unwrap()];
    let younger = capture(&child, &mut census, &relatives, &mut sinks);
    let shared_then = younger.dumped.shared;

    let mut root = newborn();
    let handles = objects(&mut root, &census, &[&elder, &younger], &mut sinks);
    restore(&mut root, &elder, &census, &handles, &Plan::fresh(&elder.dumped.runs), None, &sinks);
    let mut worker = testing::child_of(&mut root);
    let plan = Plan::inherit(&elder.layout, &elder.dumped.runs, &younger.layout, &younger.dumped.runs);
    let written: u64 = plan.runs.iter().map(PageRun::len).sum();
    assert!(written < 300 * PAGE, "{written} bytes are written instead of inherited");
    restore(&mut worker, &younger, &census, &handles, &plan, Some(&elder.state), &sinks);
    assert_same(&parent, &root, &elder);
    assert_same(&child, &worker, &younger);
    // The kernel sees as much in common as before, but for the stack on which the two went apart.
    let relatives = [Relative::new(root.host(), &elder.dumped.runs).unwrap()];
    let again = dump(worker.host(), worker.memory(), &younger.layout, |_| true, Some(&relatives), &mut sinks)
        .unwrap();
    assert!(again.shared + 32 * PAGE >= shared_then, "{} of {shared_then} bytes", again.shared);
}

#[test]
fn births_inherit_what_is_there() {
    // The same as the nursery's own use: a process made from a worker has its memory.
    let mut root = newborn();
    let children = beget(
        &mut root,
        &[Birth { pid: testing::free_pid(), signal: libc::SIGCHLD, sibling: false, shared: 0 }],
    )
    .unwrap();
    assert_eq!(children[0].stub_range(), root.stub_range());
}
