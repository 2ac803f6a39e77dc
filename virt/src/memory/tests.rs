//! Capture of real processes.

use super::testing::{Task, advise, anonymous, map, poke, protect, sinks};
use super::*;
use crate::image::{PageRun, PagesWriter};
use libc::{MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

const GUARD_INSTALL: i32 = 102;

/// The stored bytes of the page at `address`, if there are any.
fn stored(runs: &[PageRun], sinks: &[PagesWriter], address: u64) -> Option<Vec<u8>> {
    let run = runs.iter().find(|run| run.vaddr <= address && address < run.vaddr + run.len())?;
    let mut bytes = vec![0; run.len() as usize];
    sinks[usize::from(run.file)].file().read_exact_at(&mut bytes, run.offset).unwrap();
    run.verify(&bytes).unwrap();
    let at = (address - run.vaddr) as usize;
    Some(bytes[at..at + PAGE as usize].to_vec())
}

fn within(runs: &[PageRun], range: Span) -> Vec<(u64, u32)> {
    runs.iter()
        .filter(|run| range.holds(Span::new(run.vaddr, run.vaddr + run.len())))
        .map(|run| ((run.vaddr - range.start) / PAGE, run.pages))
        .collect()
}

#[test]
fn every_page_that_is_stored_is_the_processes_own() {
    let task = Task::new(|| vec![anonymous(PAGE)]);
    let layout = task.layout(&mut task.census());
    let (_dir, mut sinks) = sinks(2);
    let dumped = task.dump(&layout, &mut sinks);
    assert!(dumped.runs.windows(2).all(|pair| pair[0].vaddr + pair[0].len() <= pair[1].vaddr));
    let pages: u64 = dumped.runs.iter().map(PageRun::len).sum();
    assert_eq!(pages, dumped.written);
    for run in &dumped.runs {
        let bytes = task.bytes(run.vaddr, run.len() as usize);
        run.verify(&bytes).unwrap();
        let vma = layout.at(run.vaddr).unwrap();
        assert!(vma.stored() && vma.range.holds(Span::new(run.vaddr, run.vaddr + run.len())));
    }
    // The stack the child sleeps on is there.
    let regs = task.tracee.as_ref().unwrap().regs;
    assert!(stored(&dumped.runs, &sinks, regs.rsp / PAGE * PAGE).is_some());
}

#[test]
fn zeroes_cost_nothing_but_where_they_hide_a_file() {
    let task = Task::new(|| {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 4 * PAGE as usize], 0).unwrap();
        let anon = anonymous(8 * PAGE);
        advise(anon, 8 * PAGE, libc::MADV_NOHUGEPAGE);
        for page in [0, 1, 3, 4, 5] {
            // Written, so it is a page of its own; 1 and 5 are all zeroes but for the time of a write.
            poke(anon + page * PAGE, &[1]);
            if page == 1 || page == 5 {
                poke(anon + page * PAGE, &[0]);
            }
        }
        // One byte at the end is not zero.
        poke(anon + 7 * PAGE - 1, &[1]);
        let over = map(0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.as_raw_fd(), 0);
        poke(over + PAGE, &[0; PAGE as usize]);
        poke(over + 2 * PAGE, &[8; 10]);
        vec![anon, over]
    });
    let layout = task.layout(&mut task.census());
    let (_dir, mut sinks) = sinks(1);
    let dumped = task.dump(&layout, &mut sinks);
    let anon = Span::new(task.told[0], task.told[0] + 8 * PAGE);
    assert_eq!(within(&dumped.runs, anon), [(0, 1), (3, 2), (6, 1)]);
    let over = Span::new(task.told[1], task.told[1] + 4 * PAGE);
    assert_eq!(within(&dumped.runs, over), [(1, 2)]);
    assert_eq!(stored(&dumped.runs, &sinks, over.start + PAGE), Some(vec![0; PAGE as usize]));
    assert!(dumped.dropped >= 2 * PAGE);
}

#[test]
fn hidden_memory_and_guard_pages_are_found() {
    let task = Task::new(|| {
        let at = anonymous(16 * PAGE);
        for page in 0..16 {
            poke(at + page * PAGE, &[page as u8 + 1]);
        }
        protect(at + 4 * PAGE, 4 * PAGE, PROT_NONE);
        protect(at + 8 * PAGE, 4 * PAGE, PROT_READ);
        assert!(advise(at + 2 * PAGE, 2 * PAGE, GUARD_INSTALL));
        vec![at]
    });
    let at = task.told[0];
    let layout = task.layout(&mut task.census());
    let (_dir, mut sinks) = sinks(1);
    let dumped = task.dump(&layout, &mut sinks);
    assert_eq!(dumped.guards, [Span::new(at + 2 * PAGE, at + 4 * PAGE)]);
    for page in (0..16).filter(|page| !(2..4).contains(page)) {
        assert_eq!(stored(&dumped.runs, &sinks, at + page * PAGE).unwrap()[0], page as u8 + 1, "page {page}");
    }
    assert_eq!(stored(&dumped.runs, &sinks, at + 2 * PAGE), None);
    // Each protection is a mapping of its own, and a run stays in one.
    let runs = within(&dumped.runs, Span::new(at, at + 16 * PAGE));
    assert_eq!(runs, [(0, 2), (4, 4), (8, 4), (12, 4)]);
}

#[test]
fn a_large_process_is_copied_by_two_threads() {
    const LEN: u64 = 24 << 20;
    let task = Task::new(|| {
        let at = anonymous(LEN);
        for page in 0..LEN / PAGE {
            // Every hundredth page stays zero.
            poke(at + page * PAGE + 40, &if page % 100 == 99 { 0 } else { page + 1 }.to_ne_bytes());
        }
        vec![at]
    });
    let layout = task.layout(&mut task.census());
    let (_dir, mut sinks) = sinks(2);
    let dumped = task.dump(&layout, &mut sinks);
    assert!(dumped.runs.iter().any(|run| run.file == 1), "the second thread had nothing to do");
    assert!(dumped.runs.iter().all(|run| run.pages <= 256));
    assert!(dumped.runs.windows(2).all(|pair| pair[0].vaddr + pair[0].len() <= pair[1].vaddr));
    let mut seen = 0;
    for run in dumped.runs.iter().filter(|run| (task.told[0]..task.told[0] + LEN).contains(&run.vaddr)) {
        let mut bytes = vec![0; run.len() as usize];
        sinks[usize::from(run.file)].file().read_exact_at(&mut bytes, run.offset).unwrap();
        run.verify(&bytes).unwrap();
        for (n, page) in bytes.chunks(PAGE as usize).enumerate() {
            let number = (run.vaddr - task.told[0]) / PAGE + n as u64;
            assert_eq!(page[40..48], (number + 1).to_ne_bytes());
            seen += 1;
        }
    }
    assert_eq!(seen, LEN / PAGE - LEN / PAGE / 100);
}

#[test]
fn pages_that_parent_and_child_share_are_stored_once() {
    const PAGES: u64 = 1000;
    let parent = Task::new(|| {
        let at = anonymous(PAGES * PAGE);
        advise(at, PAGES * PAGE, libc::MADV_NOHUGEPAGE);
        for page in 0..PAGES {
            poke(at + page * PAGE, &(page + 1).to_ne_bytes());
        }
        let (read, write) = nix::unistd::pipe().unwrap();
        // SAFETY: a copy of a process with one thread.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                // Its own: one page in the middle, one zeroed, one gone.
                poke(at + 300 * PAGE, &[0xff; 8]);
                poke(at + 500 * PAGE, &[0; 8]);
                advise(at + 700 * PAGE, PAGE, libc::MADV_DONTNEED);
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
    let at = parent.told[0];
    let child = Task::catch(Pid::from_raw(parent.told[1] as i32), vec![]);
    let mut census = parent.census();
    let (_dir, mut sinks) = sinks(1);
    let elder = parent.dump(&parent.layout(&mut census), &mut sinks);
    let relatives = [Relative::new(parent.pid, &elder.runs).unwrap()];
    let layout = child.layout(&mut census);
    let younger = dump(child.pid, &child.memory, &layout, |_| true, Some(&relatives), &mut sinks).unwrap();
    assert!(younger.shared >= (PAGES - 3) * PAGE, "only {} bytes shared", younger.shared);
    assert!(younger.written < elder.written / 4);
    for page in 0..PAGES {
        let expected = match page {
            300 => Some([0xff; 8]),
            500 | 700 => None,
            _ => Some((page + 1).to_ne_bytes()),
        };
        let found = stored(&younger.runs, &sinks, at + page * PAGE);
        assert_eq!(
            found.as_ref().map(|bytes| &bytes[..8]),
            expected.as_ref().map(|bytes| &bytes[..]),
            "{page}"
        );
    }
    let place = |runs: &[PageRun]| {
        let run = *runs
            .iter()
            .find(|run| run.vaddr <= at + 900 * PAGE && at + 900 * PAGE < run.vaddr + run.len())
            .unwrap();
        (run.file, run.offset + at + 900 * PAGE - run.vaddr)
    };
    assert_eq!(place(&elder.runs), place(&younger.runs));
    // Being read has not given either of them a copy of its own: whatever is stored now is found shared again.
    let again = dump(child.pid, &child.memory, &layout, |_| true, Some(&relatives), &mut sinks).unwrap();
    assert_eq!(again.shared, younger.shared);
}

#[test]
fn shared_memory_is_one_object_for_all() {
    let shared = map(0, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    poke(shared + 2 * PAGE, b"from the parent");
    let setup = move || {
        let memfd = rustix::fs::memfd_create(c"a name", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&memfd, 3 * PAGE + 5).unwrap();
        rustix::fs::fcntl_add_seals(&memfd, rustix::fs::SealFlags::SHRINK).unwrap();
        let at = map(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd.as_raw_fd(), PAGE as i64);
        poke(at + PAGE, b"in the memfd");
        vec![at]
    };
    let (one, two) = (Task::new(setup), Task::new(setup));
    let mut census = one.census();
    let (first, second) = (one.layout(&mut census), two.layout(&mut census));
    let object = |layout: &Layout, at: u64| match layout.at(at).unwrap().backing {
        Backing::Object { id, offset, shared: true } => (id, offset),
        ref other => panic!("{other:?}"),
    };
    assert_eq!(object(&first, shared), object(&second, shared));
    let (memfd, offset) = object(&first, one.told[0]);
    assert_ne!(memfd, object(&second, two.told[0]).0);
    assert_eq!(offset, PAGE);
    let objects = census.objects();
    let expected =
        Kind::Memfd { name: "a name".into(), seals: rustix::fs::SealFlags::SHRINK.bits(), huge: 0 };
    assert_eq!((&objects[memfd as usize].kind, objects[memfd as usize].size), (&expected, 3 * PAGE + 5));
    let (id, _) = object(&first, shared);
    assert_eq!(objects[id as usize].kind, Kind::Shared { huge: 0 });

    let (_dir, mut sinks) = sinks(1);
    let dumped = dump_object(&census.open(id).unwrap(), &mut sinks).unwrap();
    assert_eq!(dumped.runs.len(), 1);
    assert_eq!(&stored(&dumped.runs, &sinks, 2 * PAGE).unwrap()[..15], b"from the parent");
    let dumped = dump_object(&census.open(memfd).unwrap(), &mut sinks).unwrap();
    assert_eq!(&stored(&dumped.runs, &sinks, 2 * PAGE).unwrap()[..12], b"in the memfd");
    assert_eq!(dumped.written, PAGE);
    // Nothing of it is stored with the process.
    let own = one.dump(&first, &mut sinks);
    assert_eq!(stored(&own.runs, &sinks, shared + 2 * PAGE), None);
}

#[test]
fn files_are_known_by_their_names_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, vec![3; 2 * PAGE as usize]).unwrap();
        (std::fs::File::open(&path).unwrap(), path)
    };
    let (plain, plain_path) = file("a\nb\\012 (deleted)");
    let (gone, gone_path) = file("gone");
    let (replaced, replaced_path) = file("replaced");
    let (linked, linked_path) = file("linked");
    let (big, big_path) = file("big");
    big.set_len(0).unwrap_err();
    std::fs::File::options().write(true).open(&big_path).unwrap().set_len(2 << 20).unwrap();
    let task = Task::new(|| {
        [&plain, &gone, &replaced, &big, &linked]
            .map(|file| map(0, PAGE, PROT_READ, MAP_PRIVATE, file.as_raw_fd(), 0))
            .to_vec()
    });
    std::fs::remove_file(&gone_path).unwrap();
    std::fs::remove_file(&big_path).unwrap();
    let other_path = dir.path().join("other");
    std::fs::hard_link(&linked_path, &other_path).unwrap();
    std::fs::remove_file(&linked_path).unwrap();
    std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
    std::fs::hard_link(&replaced_path, dir.path().join("elsewhere/other")).unwrap();
    std::fs::write(dir.path().join("new"), b"new").unwrap();
    std::fs::rename(dir.path().join("new"), &replaced_path).unwrap();
    let mut census = task.census();
    let (layout, obstacles) = Layout::read(task.pid, &mut census, &[]).unwrap();
    let kind = |at: u64| match layout.at(at).unwrap().backing {
        Backing::Object { id, .. } => census.objects()[id as usize].kind.clone(),
        ref other => panic!("{other:?}"),
    };
    match kind(task.told[0]) {
        Kind::File { path, .. } => assert_eq!(path.as_bytes(), plain_path.as_os_str().as_bytes()),
        other => panic!("{other:?}"),
    }
    match kind(task.told[1]) {
        Kind::Deleted { path } => assert_eq!(path.as_bytes(), gone_path.as_os_str().as_bytes()),
        other => panic!("{other:?}"),
    }
    match kind(task.told[4]) {
        Kind::File { path, .. } => assert_eq!(path.as_bytes(), other_path.as_os_str().as_bytes()),
        other => panic!("{other:?}"),
    }
    let said: Vec<String> = obstacles.iter().map(|o| format!("{}: {}", o.what, o.why)).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said.iter().any(|s| s.contains("replaced") && s.contains("not found under its name")),
        "{said:?}"
    );
    assert!(said.iter().any(|s| s.contains("big") && s.contains("2097152 bytes")), "{said:?}");
}

#[test]
fn flags_are_read() {
    let task = Task::new(|| {
        let at = map(0, 64 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0);
        let advices = [
            libc::MADV_DONTFORK,
            libc::MADV_WIPEONFORK,
            libc::MADV_DONTDUMP,
            libc::MADV_HUGEPAGE,
            libc::MADV_RANDOM,
        ];
        for (n, advice) in advices.into_iter().enumerate() {
            advise(at + 2 * PAGE * n as u64, PAGE, advice);
        }
        let stack =
            map(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | libc::MAP_GROWSDOWN, -1, 0);
        vec![at, stack]
    });
    let layout = task.layout(&mut task.census());
    let flags = |at: u64| layout.at(at).unwrap().flags;
    for (n, flag) in [Flags::DONT_FORK, Flags::WIPE_ON_FORK, Flags::DONT_DUMP, Flags::HUGE, Flags::RANDOM]
        .into_iter()
        .enumerate()
    {
        assert_eq!(flags(task.told[0] + 2 * PAGE * n as u64), flag.and(Flags::NO_RESERVE));
    }
    assert_eq!(flags(task.told[1]), Flags::GROWS_DOWN.and(Flags::ACCOUNT));
    assert!(!layout.at(task.told[0]).unwrap().survives_clone());
    let vdso = layout.vdso().unwrap();
    assert_eq!(layout.at(vdso.start).unwrap().backing, Backing::Vvar);
    assert_eq!(layout.at(vdso.end - 1).unwrap().backing, Backing::Vdso);
    layout.check(task.census().objects()).unwrap_err();
    let json = serde_json::to_string(&layout).unwrap();
    assert_eq!(serde_json::from_str::<Layout>(&json).unwrap(), layout);
}

#[test]
fn what_cannot_be_carried_is_named() {
    let task = Task::new(|| {
        // SAFETY: asks for an asynchronous I/O context, which can't be made read-only and be carried, and for a segment of a
        // page, which goes with the process.
        unsafe {
            let mut context = 0_u64;
            assert_eq!(libc::syscall(libc::SYS_io_setup, 1, &raw mut context), 0);
            assert_eq!(libc::mprotect(context as *mut _, PAGE as usize, libc::PROT_READ), 0);
            let segment = libc::shmget(libc::IPC_PRIVATE, PAGE as usize, 0o600);
            assert_ne!(libc::shmat(segment, std::ptr::null(), 0) as isize, -1);
            libc::shmctl(segment, libc::IPC_RMID, std::ptr::null_mut());
            let uffd =
                libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | crate::sys::uffd::USER_MODE_ONLY);
            let at = anonymous(PAGE);
            let uffd = std::os::fd::FromRawFd::from_raw_fd(uffd as i32);
            let uffd = crate::sys::uffd::Uffd::open(uffd).unwrap();
            uffd.register(at, at + PAGE).unwrap();
            std::mem::forget(uffd);
        }
        vec![1]
    });
    for haste in [false, true] {
        let blockers = survey(task.pid, 7, "victim", &mut task.census(), haste).unwrap();
        let said: Vec<String> = blockers.iter().map(ToString::to_string).collect();
        for part in ["asynchronous I/O", "not the job's own", "userfaultfd"] {
            assert!(
                said.iter().any(|s| s.starts_with("process 7 (victim): mapping ") && s.contains(part)),
                "{said:?}"
            );
        }
        assert_eq!(said.len(), 3, "{said:?}");
    }
}

#[test]
fn a_process_that_is_gone_blocks_nothing() {
    let task = Task::new(|| vec![1]);
    let mut census = task.census();
    nix::sys::signal::kill(task.pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let ended = nix::sys::wait::waitpid(task.pid, None).unwrap();
    assert!(matches!(ended, WaitStatus::Signaled(..)));
    let gone = survey(task.pid, 1, "x", &mut census, true);
    assert!(matches!(&gone, Ok(blockers) if blockers.is_empty()), "{gone:?}");
    // Its id may be somebody else's by now.
    std::mem::forget(task);
}

#[test]
fn a_file_of_an_overlay_is_found_by_its_name() {
    let task = Task::new(|| {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("x"), "/mnt", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        for dir in ["lower", "upper", "work", "all"] {
            std::fs::create_dir(format!("/mnt/{dir}")).unwrap();
        }
        std::fs::write("/mnt/lower/file", [5; 100]).unwrap();
        let options = "lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work";
        mount(Some("x"), "/mnt/all", Some("overlay"), MsFlags::empty(), Some(options)).unwrap();
        let file = std::fs::File::open("/mnt/all/file").unwrap();
        vec![map(0, PAGE, PROT_READ, MAP_PRIVATE, file.as_raw_fd(), 0)]
    });
    let mut census = task.census();
    let layout = task.layout(&mut census);
    let Backing::Object { id, .. } = layout.at(task.told[0]).unwrap().backing else { panic!("no object") };
    assert!(
        matches!(&census.objects()[id as usize].kind, Kind::File { path, .. } if path.as_bytes() == b"/mnt/all/file")
    );
}
