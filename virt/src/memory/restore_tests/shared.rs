//! Memory that is not only one process's: shared, sealed, of huge pages, System V's.

use super::*;

#[test]
fn shared_memory_is_shared_again() {
    let shared = map(0, 600 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for page in 0..200 {
        poke(shared + 3 * page * PAGE, &(page + 1).to_ne_bytes());
    }
    let memfd = rustix::fs::memfd_create(c"seen", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&memfd, 5 * PAGE + 7).unwrap();
    let seen = map(0, 6 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd.as_raw_fd(), 0);
    poke(seen + 5 * PAGE, b"the end");
    // SAFETY: the mapping above.
    unsafe { libc::munmap(seen as *mut libc::c_void, 6 * PAGE as usize) };
    let seals = rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::GROW | rustix::fs::SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memfd, seals).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    std::fs::write(&gone, [4; 5000]).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(&gone).unwrap();
    std::fs::remove_file(&gone).unwrap();
    let setup = || {
        let sealed = map(0, 6 * PAGE, PROT_READ, MAP_SHARED, memfd.as_raw_fd(), 0);
        let part = map(0, 2 * PAGE, PROT_READ, MAP_PRIVATE, memfd.as_raw_fd(), 4 * PAGE as i64);
        let deleted = map(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file.as_raw_fd(), 0);
        protect(shared + 10 * PAGE, 10 * PAGE, PROT_READ);
        vec![sealed, part, deleted]
    };
    let (one, two) = (Task::new(setup), Task::new(setup));
    let mut census = one.census();
    let (_dir, mut sinks) = sinks(2);
    let first = capture(&one, &mut census, &[], &mut sinks);
    let second = capture(&two, &mut census, &[], &mut sinks);
    let mut root = newborn();
    let handles = objects(&mut root, &census, &[&first, &second], &mut sinks);
    assert!(!gone.exists());
    let mut other = testing::child_of(&mut root);
    let (plan_one, plan_two) = (Plan::fresh(&first.dumped.runs), Plan::fresh(&second.dumped.runs));
    restore(&mut root, &first, &census, &handles, &plan_one, None, &sinks);
    restore(&mut other, &second, &census, &handles, &plan_two, None, &sinks);
    seal_objects(&root, census.objects(), &handles).unwrap();
    assert_same(&one, &root, &first);
    assert_same(&two, &other, &second);
    for (task, worker) in [(&one, &root), (&two, &other)] {
        for (at, len) in [
            (shared, 600 * PAGE),
            (task.told[0], 6 * PAGE),
            (task.told[1], 2 * PAGE),
            (task.told[2], 2 * PAGE),
        ] {
            let mut there = vec![0; len as usize];
            worker.read(at, &mut there).unwrap();
            assert!(task.bytes(at, len as usize) == there, "at {at:#x}");
        }
    }
    // What one writes, the other reads.
    root.write(shared + PAGE, b"hello").unwrap();
    root.write(one.told[2] + 100, b"file").unwrap();
    let mut read = [0; 5];
    other.read(shared + PAGE, &mut read).unwrap();
    assert_eq!(&read, b"hello");
    other.read(two.told[2] + 100, &mut read[..4]).unwrap();
    assert_eq!(&read[..4], b"file");
    let (id, _) =
        census.objects().iter().enumerate().find(|(_, o)| matches!(o.kind, Kind::Memfd { .. })).unwrap();
    let made = root.pidfd_getfd(handles[&(id as u32)].write).unwrap();
    assert_eq!(rustix::fs::fcntl_get_seals(&made).unwrap(), seals);
    // SAFETY: mapped by this test.
    unsafe { libc::munmap(shared as *mut libc::c_void, 600 * PAGE as usize) };
}

#[test]
fn sealed_memory_is_sealed_last() {
    const SYS_MSEAL: libc::c_long = 462;
    let task = Task::new(|| {
        let at = anonymous(4 * PAGE);
        poke(at, b"sealed");
        // SAFETY: seals what was mapped here.
        assert_eq!(unsafe { libc::syscall(SYS_MSEAL, at, 2 * PAGE, 0) }, 0);
        vec![at]
    });
    let mut census = task.census();
    let (_dir, mut sinks) = sinks(1);
    let image = capture(&task, &mut census, &[], &mut sinks);
    assert!(image.layout.at(task.told[0]).unwrap().flags.has(Flags::SEALED));
    let mut worker = newborn();
    let plan = Plan::fresh(&image.dumped.runs);
    restore(&mut worker, &image, &census, &Handles::new(), &plan, None, &sinks);
    let sealing = seal(&mut worker, &image.layout, None).unwrap();
    worker.run(&sealing).unwrap();
    assert_same(&task, &worker, &image);
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("library");
    std::fs::write(&path, [1; 100]).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let task = Task::new(|| vec![map(0, PAGE, PROT_READ, MAP_PRIVATE, file.as_raw_fd(), 0)]);
    let mut census = task.census();
    let (_dir, mut sinks) = sinks(1);
    let image = capture(&task, &mut census, &[], &mut sinks);
    std::fs::remove_file(&path).unwrap();
    let mut worker = newborn();
    let plan = Plan::fresh(&image.dumped.runs);
    let said = build(&mut worker, &image.blueprint(&census, &Handles::new(), &plan)).unwrap_err().to_string();
    assert!(said.contains(&format!("open {} to map it: no such file", path.display())), "{said}");
}

/// Lets the kernel make huge pages as they are asked for, as long as it lives.
struct HugePages(String);

impl HugePages {
    const KNOB: &str = "/proc/sys/vm/nr_overcommit_hugepages";

    fn allow() -> Self {
        let before = std::fs::read_to_string(Self::KNOB).unwrap();
        let more = before.trim().parse::<u64>().unwrap() + 16;
        std::fs::write(Self::KNOB, more.to_string()).unwrap();
        HugePages(before)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        std::fs::write(Self::KNOB, &self.0).unwrap();
    }
}

#[test]
fn huge_pages_that_were_set_aside_come_back() {
    const HUGE: u64 = 2 << 20;
    let _huge = HugePages::allow();
    let task = Task::new(|| {
        let rw = PROT_READ | PROT_WRITE;
        let private = map(0, 2 * HUGE, rw, MAP_PRIVATE | MAP_ANONYMOUS | libc::MAP_HUGETLB, -1, 0);
        poke(private + HUGE + 5 * PAGE, b"private");
        let shared = map(0, HUGE, rw, MAP_SHARED | MAP_ANONYMOUS | libc::MAP_HUGETLB, -1, 0);
        poke(shared + 7 * PAGE, b"shared");
        let memfd = rustix::fs::memfd_create(c"huge", rustix::fs::MemfdFlags::HUGETLB).unwrap();
        rustix::fs::ftruncate(&memfd, HUGE).unwrap();
        let of_memfd = map(0, HUGE, rw, MAP_SHARED, memfd.as_raw_fd(), 0);
        poke(of_memfd + 9 * PAGE, b"memfd");
        vec![private, shared, of_memfd]
    });
    let mut census = task.census();
    let (_dir, mut sinks) = sinks(1);
    let image = capture(&task, &mut census, &[], &mut sinks);
    assert!(image.layout.at(task.told[0]).unwrap().flags.has(Flags::HUGETLB));
    let mut worker = newborn();
    let handles = objects(&mut worker, &census, &[&image], &mut sinks);
    let plan = Plan::fresh(&image.dumped.runs);
    restore(&mut worker, &image, &census, &handles, &plan, None, &sinks);
    assert_same(&task, &worker, &image);
    for (at, len) in [(task.told[1], HUGE), (task.told[2], HUGE)] {
        let mut there = vec![0; len as usize];
        worker.read(at, &mut there).unwrap();
        assert!(task.bytes(at, len as usize) == there, "at {at:#x}");
    }
}

#[test]
fn system_v_segments_come_back_with_their_ids() {
    let new_namespace = || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
    // SAFETY: makes, fills and attaches segments of this namespace, which goes with its last process.
    let segment = |key: i32, size: u64, byte: u8| unsafe {
        let id = libc::shmget(key, size as usize, libc::IPC_CREAT | 0o640);
        let at = libc::shmat(id, std::ptr::null(), 0) as u64;
        poke(at, &vec![byte; size as usize]);
        (id, at)
    };
    let task = Task::new(|| {
        new_namespace();
        // SAFETY: as above.
        unsafe {
            let (first, at) = segment(libc::IPC_PRIVATE, PAGE, 1);
            libc::shmdt(at as *const libc::c_void);
            libc::shmctl(first, libc::IPC_RMID, std::ptr::null_mut());
            // Its id is not the first that a new namespace gives.
            let (whole, at_whole) = segment(0x1234, 5 * PAGE + 7, 2);
            let (doomed, at_doomed) = segment(libc::IPC_PRIVATE, 2 * PAGE, 3);
            libc::shmctl(doomed, libc::IPC_RMID, std::ptr::null_mut());
            let (alone, at) = segment(0x77, PAGE, 4);
            libc::shmdt(at as *const libc::c_void);
            let part = libc::shmat(whole, std::ptr::null(), libc::SHM_RDONLY) as u64;
            libc::munmap((part + PAGE) as *mut libc::c_void, 2 * PAGE as usize);
            protect(at_whole + 2 * PAGE, PAGE, PROT_NONE);
            vec![whole as u64, at_whole, at_doomed, alone as u64, part]
        }
    });
    let mut census = task.census();
    let (_dir, mut sinks) = sinks(1);
    let image = capture(&task, &mut census, &[], &mut sinks);
    census.enter_segments().unwrap();
    let kinds: Vec<_> = census.objects().iter().filter(|o| matches!(o.kind, Kind::Segment { .. })).collect();
    assert_eq!(kinds.len(), 3, "{kinds:?}");
    let mut worker = testing::newborn_after(new_namespace);
    let handles = objects(&mut worker, &census, &[&image], &mut sinks);
    let plan = Plan::fresh(&image.dumped.runs);
    restore(&mut worker, &image, &census, &handles, &plan, None, &sinks);
    let child = testing::child_of(&mut worker);
    seal_objects(&worker, census.objects(), &handles).unwrap();
    assert_same(&task, &worker, &image);
    for (at, byte) in [(task.told[1], 2), (task.told[2], 3), (task.told[4], 2)] {
        let mut there = [0; PAGE as usize];
        worker.read(at, &mut there).unwrap();
        assert_eq!(there, [byte; PAGE as usize]);
    }
    worker.write(task.told[1] + 4 * PAGE, b"shared").unwrap();
    let mut there = [0; 6];
    child.read(task.told[4] + 4 * PAGE, &mut there).unwrap();
    assert_eq!(&there, b"shared");
    // The kernel shows the same segments in both namespaces.
    let seen = |pid| {
        let census = Census::of(pid, 0).unwrap();
        let mut census = census;
        census.enter_segments().unwrap();
        census.objects().to_vec()
    };
    assert_eq!(seen(task.pid), seen(worker.host()));
}
