//! An image is complete or absent, whatever happens to its writer.

use super::*;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt, symlink};

const ENTRIES: [&str; 7] =
    ["files", "inventory.img", "manifest.json", "pages-0.img", "pages.idx", "plugins", "tasks.json"];

/// Runs `work` in a process of its own, which may be killed or change its limits, and returns how it ended.
fn in_a_child(work: impl FnOnce() -> i32) -> WaitStatus {
    // A panic must not unwind into the harness, of which the child has a copy.
    let code = || std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101);
    // SAFETY: the child has this thread only; glibc makes malloc usable in it, and it leaves by _exit without running
    // any destructor of the test.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        // SAFETY: _exit may be called anywhere.
        ForkResult::Child => unsafe { libc::_exit(code()) },
    }
}

fn exited(status: WaitStatus) -> i32 {
    match status {
        WaitStatus::Exited(_, code) => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_kind_of_file_comes_back() {
    let (_dir, path) = place();
    let committed = write_image(&path);
    assert_eq!(listing(&path), ENTRIES);

    let image = Image::open(&path).unwrap();
    assert_eq!((image.manifest(), image.digest()), (&committed.manifest, committed.digest));
    image.verify().unwrap();
    let tasks: BTreeMap<i32, String> = image.json("tasks.json").unwrap();
    assert_eq!(tasks[&7], "sh");
    assert_eq!(image.bytes("files/0", 100).unwrap(), b"what a pipe held");
    assert_eq!(std::io::read_to_string(image.file("files/1").unwrap()).unwrap(), "piece by piece");
    assert_eq!(image.bytes("plugins/emu/state/.design", 100).unwrap(), b"registers");
    assert_eq!(image.names("plugins/emu/").collect::<Vec<_>>(), ["plugins/emu/state/.design"]);

    let restored = tempfile::tempfile().unwrap();
    assert_eq!(image.copy("files/2", &restored).unwrap(), 1 << 30);
    for meta in [restored.metadata().unwrap(), fs::metadata(path.join("files/2")).unwrap()] {
        assert!(meta.blocks() * 512 < 1 << 20, "the hole was filled: {} blocks", meta.blocks());
    }
    let mut word = [0; 7];
    std::os::unix::fs::FileExt::read_exact_at(&restored, &mut word, 1 << 29).unwrap();
    assert_eq!(&word, b"far out");

    let index = image.index().unwrap();
    let [run] = index.of(Owner::Process(1)) else { panic!("{index:?}") };
    let mut pages = Vec::new();
    image.read_run(run, &image.pages(run.file).unwrap(), &mut pages).unwrap();
    assert_eq!(pages, [page(1), page(2)].concat());
    assert_eq!(index.of(Owner::Shared(0))[0].offset, run.offset);
}

#[test]
fn only_the_owner_can_read_it() {
    let (_dir, path) = place();
    write_image(&path);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("files")), 0o700);
    assert_eq!(mode(&path.join("pages-0.img")), 0o600);
}

#[test]
fn nothing_is_seen_before_the_commit_and_nothing_stays_without_one() {
    let (dir, path) = place();
    let mut writer = Writer::create(&path).unwrap();
    write_all_kinds(&mut writer);
    assert!(matches!(Image::open(&path), Err(Error::Sys(_))));
    assert_eq!(listing(dir.path()), ["checkpoint.partial"]);
    drop(writer);
    assert_eq!(listing(dir.path()), [""; 0]);
}

#[test]
fn a_file_that_was_not_finished_makes_no_image() {
    let (dir, path) = place();
    let mut writer = Writer::create(&path).unwrap();
    drop(writer.file("half").unwrap());
    assert!(matches!(writer.commit(manifest()), Err(Error::Unfinished { .. })));
    assert_eq!(listing(dir.path()), [""; 0]);
}

#[test]
fn an_image_is_never_overwritten_unless_it_is_asked_for() {
    let (dir, path) = place();
    let old = write_image(&path);
    fs::write(path.join("dump.log"), b"a client's").unwrap();
    assert!(matches!(Writer::create(&path), Err(Error::Exists { .. })));

    let mut writer = Writer::replace(&path).unwrap();
    writer.json("tasks.json", &"new").unwrap();
    writer.bytes("more.json", b"7").unwrap();
    assert_eq!(Image::open(&path).unwrap().digest(), old.digest, "the old one stays until the commit");
    writer.commit(manifest()).unwrap();

    let image = Image::open(&path).unwrap();
    assert_eq!(image.json::<String>("tasks.json").unwrap(), "new");
    assert_eq!(listing(&path), ["dump.log", "manifest.json", "more.json", "tasks.json"]);
    assert_eq!(listing(dir.path()), ["checkpoint"]);
}

#[test]
fn an_old_image_stays_when_its_replacement_fails() {
    let (_dir, path) = place();
    let old = write_image(&path);
    let mut writer = Writer::replace(&path).unwrap();
    writer.bytes("tasks.json", b"1").unwrap();
    writer.bytes("zzz.json", b"1").unwrap();
    fs::write(path.join("zzz.json"), b"somebody else was faster").unwrap();
    assert!(matches!(writer.commit(manifest()), Err(Error::Exists { .. })));
    let image = Image::open(&path).unwrap();
    assert_eq!(image.digest(), old.digest);
    image.verify().unwrap();
    assert_eq!(fs::read(path.join("zzz.json")).unwrap(), b"somebody else was faster");
    assert!(!path.join(".partial").exists());
}

#[test]
fn a_directory_that_was_there_keeps_its_inode_its_mode_and_its_files() {
    let (_dir, path) = place();
    fs::DirBuilder::new().mode(0o755).create(&path).unwrap();
    fs::write(path.join("dump.log"), b"mine").unwrap();
    let before = fs::metadata(&path).unwrap();
    write_image(&path);
    let after = fs::metadata(&path).unwrap();
    assert_eq!((before.ino(), before.mode()), (after.ino(), after.mode()));
    assert_eq!(fs::read(path.join("dump.log")).unwrap(), b"mine");
    let mut names = ENTRIES.to_vec();
    names.insert(0, "dump.log");
    assert_eq!(listing(&path), names);
    Image::open(&path).unwrap().verify().unwrap();
}

#[test]
fn files_of_others_are_not_overwritten() {
    let (_dir, path) = place();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("config.json"), b"a bundle's").unwrap();
    let mut writer = Writer::create(&path).unwrap();
    let said = writer.bytes("config.json", b"ours").unwrap_err();
    assert!(matches!(said, Error::Exists { .. }), "{said}");
    // One that comes later is seen by the rename.
    writer.bytes("tasks.json", b"ours").unwrap();
    fs::write(path.join("tasks.json"), b"theirs").unwrap();
    assert!(matches!(writer.commit(manifest()), Err(Error::Exists { .. })));
    assert_eq!(listing(&path), ["config.json", "tasks.json"]);
    assert_eq!(fs::read(path.join("tasks.json")).unwrap(), b"theirs");
}

#[test]
fn a_name_that_leads_elsewhere_is_not_written_to() {
    let (dir, path) = place();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, dir.path().join("checkpoint.partial")).unwrap();
    assert!(matches!(Writer::create(&path), Err(Error::Foreign { .. })));
    fs::remove_file(dir.path().join("checkpoint.partial")).unwrap();

    let mut writer = Writer::create(&path).unwrap();
    for name in ["../x", "/x", "", "a/../../x", ".old", "manifest.json", "pages-0.img"] {
        assert!(matches!(writer.bytes(name, b"x"), Err(Error::Name { .. })), "{name}");
    }
    assert!(matches!(writer.pages(65536), Err(Error::Name { .. })));
    assert_eq!(listing(&outside), [""; 0]);
}

#[test]
fn a_folder_of_a_plugin_holds_files_only() {
    let (_dir, path) = place();
    let mut writer = Writer::create(&path).unwrap();
    let folder = writer.folder("plugins/emu").unwrap();
    symlink("/etc/passwd", folder.join("link")).unwrap();
    let said = writer.adopt("plugins/emu").unwrap_err().to_string();
    assert!(said.contains("plugins/emu/link") && said.contains("Symlink"), "{said}");
}

#[test]
fn the_offset_of_a_copied_file_stays() {
    use std::io::{Seek, SeekFrom, Write};
    let (_dir, path) = place();
    let mut source = tempfile::tempfile().unwrap();
    source.write_all(b"0123456789").unwrap();
    source.seek(SeekFrom::Start(4)).unwrap();
    Writer::create(&path).unwrap().copy("files/0", &source).unwrap();
    assert_eq!(source.stream_position().unwrap(), 4);
}

#[test]
fn pages_in_more_parts_than_one_call_takes() {
    let (_dir, path) = place();
    let mut writer = Writer::create(&path).unwrap();
    let mut pages = writer.pages(0).unwrap();
    pages.write(&page(1)).unwrap();
    let parts: Vec<Vec<u8>> =
        (0..3000_usize).map(|n| vec![n as u8; if n.is_multiple_of(2) { 1 } else { 4095 }]).collect();
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    assert_eq!(pages.write_parts(&mut slices).unwrap(), 4096);
    let mut found = vec![0; 1500 * 4096];
    pages.file().read_exact_at(&mut found, 4096).unwrap();
    assert_eq!(found, parts.concat());
    assert!(matches!(pages.write_parts(&mut [IoSlice::new(&parts[0])]), Err(Error::Unfit { .. })));
}

#[test]
fn a_page_index_that_breaks_the_rules_is_not_written() {
    let (_dir, path) = place();
    let mut writer = Writer::create(&path).unwrap();
    let mut pages = writer.pages(3).unwrap();
    assert!(matches!(pages.write(b"half a page"), Err(Error::Unfit { .. })));
    pages.write(&page(1)).unwrap();
    let run = PageRun { vaddr: 0, pages: 2, file: 3, flags: 0, offset: 0, digest: 0 };
    let said = writer.index(&[(Owner::Process(1), vec![run])]).unwrap_err().to_string();
    assert!(said.contains("beyond the end of pages-3.img"), "{said}");
}

#[test]
fn two_writers_don_t_meet() {
    for exists in [false, true] {
        let (_dir, path) = place();
        if exists {
            fs::create_dir(&path).unwrap();
        }
        let mut first = Writer::create(&path).unwrap();
        write_all_kinds(&mut first);
        let said = Writer::create(&path).unwrap_err();
        assert!(matches!(said, Error::Busy { .. }), "{said}");
        first.commit(manifest()).unwrap();
        Image::open(&path).unwrap().verify().unwrap();
    }
}

#[test]
fn a_child_that_was_forked_meanwhile_does_not_hold_the_lock() {
    let (dir, path) = place();
    let (reader, ends) = std::io::pipe().unwrap();
    let writer = Writer::create(&path).unwrap();
    // SAFETY: the child only reads and ends, both by calls that are safe after a fork.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let mut byte = [0u8];
            let parts = (reader.as_raw_fd(), ends.as_raw_fd());
            // SAFETY: close, read and _exit take nothing but the byte that lives here.
            unsafe {
                libc::close(parts.1);
                libc::read(parts.0, byte.as_mut_ptr().cast(), 1);
                libc::_exit(0)
            }
        }
    };
    writer.commit(manifest()).unwrap();
    fs::rename(&path, dir.path().join("checkpoint.partial")).unwrap();
    let next = Writer::create(&path);
    drop(ends);
    assert_eq!(exited(waitpid(child, None).unwrap()), 0);
    next.unwrap();
}

#[test]
fn writers_in_many_threads_make_one_image() {
    let (dir, path) = place();
    let made: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut made = 0;
                    for _ in 0..50 {
                        match Writer::create(&path).and_then(|writer| writer.commit(manifest())) {
                            Ok(_) => made += 1,
                            Err(Error::Busy { .. } | Error::Exists { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                    made
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(made, 1);
    assert_eq!(listing(dir.path()), ["checkpoint"]);
    Image::open(&path).unwrap();
}

#[test]
fn a_killed_writer_leaves_no_image_and_the_next_one_clears_up() {
    for exists in [false, true] {
        let (dir, path) = place();
        if exists {
            fs::create_dir(&path).unwrap();
        }
        let status = in_a_child(|| {
            let mut writer = Writer::create(&path).unwrap();
            write_all_kinds(&mut writer);
            nix::sys::signal::raise(Signal::SIGKILL).unwrap();
            0
        });
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
        assert!(Image::open(&path).is_err());
        write_image(&path);
        assert_eq!(listing(&path), ENTRIES);
        assert_eq!(listing(dir.path()), ["checkpoint"]);
    }
}

/// A writer that dies among its renames leaves some entries in DIR, and the manifest in the work folder.
#[test]
fn what_was_half_moved_is_taken_back_and_nothing_else() {
    for moved in 0..ENTRIES.len() {
        let (dir, path) = place();
        write_image(&path);
        // Back to what it was before the last renames.
        fs::rename(&path, dir.path().join("done")).unwrap();
        fs::create_dir(&path).unwrap();
        fs::rename(dir.path().join("done"), path.join(".partial")).unwrap();
        let entries = ENTRIES.iter().filter(|&&entry| entry != "manifest.json");
        for entry in entries.take(moved) {
            fs::rename(path.join(".partial").join(entry), path.join(entry)).unwrap();
        }
        fs::write(path.join("dump.log"), b"mine").unwrap();
        assert!(matches!(Image::open(&path), Err(Error::NoImage { .. })));
        drop(Writer::create(&path).unwrap());
        assert_eq!(listing(&path), ["dump.log"], "{moved} moved");
    }
}

/// The same while an image was being replaced: the old one comes back.
#[test]
fn a_death_in_a_replacement_brings_the_old_image_back() {
    let order =
        ["manifest.json", "files", "inventory.img", "pages-0.img", "pages.idx", "plugins", "tasks.json"];
    for moved in 0..=order.len() {
        let (dir, path) = place();
        let old = write_image(&path);
        let new = dir.path().join("new");
        let mut writer = Writer::create(&new).unwrap();
        writer.bytes("tasks.json", b"new").unwrap();
        writer.commit(manifest()).unwrap();
        let work = path.join(".partial");
        fs::rename(&new, &work).unwrap();
        fs::create_dir(work.join(".old")).unwrap();
        for entry in &order[..moved] {
            fs::rename(path.join(entry), work.join(".old").join(entry)).unwrap();
        }
        if moved == order.len() {
            fs::rename(work.join("tasks.json"), path.join("tasks.json")).unwrap();
        }
        drop(Writer::replace(&path).unwrap());
        assert_eq!(listing(&path), ENTRIES, "{moved} moved");
        let image = Image::open(&path).unwrap();
        assert_eq!(image.digest(), old.digest);
        image.verify().unwrap();
    }
}

#[test]
fn a_limit_on_file_sizes_is_an_error_that_names_the_file_and_nothing_stays() {
    let (dir, path) = place();
    let status = in_a_child(|| {
        // SAFETY: no handler is installed: the write fails instead of ending the process.
        unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, 10_000, 10_000).unwrap();
        let mut writer = Writer::create(&path).unwrap();
        let mut pages = writer.pages(0).unwrap();
        let failed = (0..3).find_map(|n| pages.write(&page(n)).err());
        let Some(said @ Error::NoRoom { .. }) = failed else { return 1 };
        if !said.to_string().contains("checkpoint/pages-0.img: file too large") {
            return 2;
        }
        0
    });
    assert_eq!(exited(status), 0);
    // The child ended without destructors, as if killed.
    drop(Writer::create(&path).unwrap());
    assert_eq!(listing(dir.path()), [""; 0]);
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file_and_nothing_stays() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    for exists in [false, true] {
        let (dir, path) = place();
        let status = in_a_child(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            mount(Some("none"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=256k")).unwrap();
            if exists {
                fs::create_dir(&path).unwrap();
            }
            let mut writer = Writer::create(&path).unwrap();
            writer.bytes("small.json", b"{}").unwrap();
            let said = writer.bytes("big.json", &vec![7; 1 << 20]).unwrap_err();
            if !matches!(said, Error::NoRoom { .. })
                || !said.to_string().contains("big.json: no space left on device")
            {
                return 1;
            }
            // Whoever goes on after a failed write gets no image.
            if !matches!(writer.commit(manifest()), Err(Error::Unfinished { .. })) {
                return 2;
            }
            let left = if exists { path.as_path() } else { dir.path() };
            if !listing(left).is_empty() {
                return 3;
            }
            0
        });
        assert_eq!(exited(status), 0);
    }
}

#[test]
fn a_mount_point_can_become_an_image() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let (_dir, path) = place();
    fs::create_dir(&path).unwrap();
    let status = in_a_child(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        write_image(&path);
        Image::open(&path).unwrap().verify().map_or(1, |()| 0)
    });
    assert_eq!(exited(status), 0);
}
