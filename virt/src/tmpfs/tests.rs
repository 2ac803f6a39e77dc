//! Real mounts, in mount namespaces of the tests' own.

use super::*;
use crate::fd;
use crate::image::{Manifest, Writer};
use crate::mounts::Found;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, mkfifo};
use rustix::fs::{AtFlags, CWD, OFlags, Timespec, Timestamps, XattrFlags};
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write as _};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A child that has done something and waits to be killed.
struct Child(Pid);

impl Child {
    /// The child, and what it has to say.
    fn doing(work: impl FnOnce() -> String) -> (Child, String) {
        let (read, write) = nix::unistd::pipe().unwrap();
        // SAFETY: the child calls nothing that needs another thread, and never returns.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                drop(read);
                let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                let said = said.unwrap_or_else(|_| "it panicked".into());
                let mut write = File::from(write);
                write.write_all(&said.len().to_ne_bytes()).unwrap();
                write.write_all(said.as_bytes()).unwrap();
                loop {
                    nix::unistd::pause();
                }
            }
            ForkResult::Parent { child } => {
                drop(write);
                let child = Child(child);
                // Not up to its end: children of other tests have inherited the other side.
                let (mut len, mut read) = ([0; 8], File::from(read));
                read.read_exact(&mut len).unwrap();
                let mut said = vec![0; usize::from_ne_bytes(len)];
                read.read_exact(&mut said).unwrap();
                (child, String::from_utf8(said).unwrap())
            }
        }
    }

    /// In a mount namespace of its own.
    fn apart(work: impl FnOnce() -> String) -> (Child, String) {
        Child::doing(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            work()
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGKILL).unwrap();
        waitpid(self.0, None).unwrap();
    }
}

fn tmpfs(point: &Path) {
    mount(Some("none"), point, Some("tmpfs"), MsFlags::MS_NOATIME, Some("mode=1777")).unwrap();
}

/// An image with what is in the mounts that `job` has for itself.
fn image(job: &Child, dir: &Path) -> Image {
    let mut writer = Writer::create(dir).unwrap();
    capture(job.0, &fd::mounts(job.0).unwrap(), &Found::default(), &mut writer).unwrap();
    writer.commit(Manifest::new(0).unwrap()).unwrap();
    Image::open(dir).unwrap()
}

/// Everything that there is to be known of a directory, without a trace.
fn describe(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::from([(PathBuf::new(), about(dir))]);
    let mut names = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let stat = path.symlink_metadata().unwrap();
            let relative = path.strip_prefix(dir).unwrap().to_owned();
            names.entry(stat.ino()).or_insert_with(Vec::new).push(relative.clone());
            all.insert(relative, about(&path));
            if stat.is_dir() {
                dirs.push(path);
            }
        }
    }
    for mut same in names.into_values().filter(|names| names.len() > 1) {
        same.sort();
        write!(all.get_mut(&same[0]).unwrap(), " is also {same:?}").unwrap();
    }
    all
}

fn about(path: &Path) -> String {
    let stat = path.symlink_metadata().unwrap();
    let mut text = format!("{:o} {}:{}", stat.mode(), stat.uid(), stat.gid());
    for (seconds, nanos) in [(stat.atime(), stat.atime_nsec()), (stat.mtime(), stat.mtime_nsec())] {
        write!(text, " {seconds}.{nanos:09}").unwrap();
    }
    if stat.is_symlink() {
        write!(text, " {:?}", fs::read_link(path).unwrap()).unwrap();
    } else if stat.is_file() {
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap());
        let (mut at, size, mut sum) = (0, stat.len(), xxhash_rust::xxh3::Xxh3::new());
        while let Some(data) = crate::image::next_data(&file, at, size).unwrap() {
            let mut bytes = vec![0; (data.end - data.start) as usize];
            file.read_exact_at(&mut bytes, data.start).unwrap();
            for (n, block) in bytes.chunks(4096).enumerate().filter(|(_, b)| !crate::image::is_zero(b)) {
                sum.update(&(data.start + 4096 * n as u64).to_le_bytes());
                sum.update(block);
            }
            at = data.end;
        }
        write!(text, " {size} bytes {:x}", sum.digest()).unwrap();
    }
    if stat.is_file() || stat.is_dir() {
        for name in ["user.a", "trusted.b", "security.capability", "system.posix_acl_access"] {
            let mut value = [0; 100];
            if let Ok(len) = rustix::fs::lgetxattr(path, name, &mut value[..]) {
                write!(text, " {name}={:?}", &value[..len]).unwrap();
            }
        }
    }
    text
}

fn age(path: &Path, seconds: i64) {
    let time = |tv_sec| Timespec { tv_sec, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time(seconds), last_modification: time(seconds + 1) };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// A file system with one of everything.
fn populate(dir: &Path) {
    let at = |name: &str| dir.join(name);
    fs::set_permissions(dir, Permissions::from_mode(0o2750)).unwrap();
    chown(dir, Some(5), Some(6)).unwrap();
    fs::create_dir_all(at("a/b/c")).unwrap();
    fs::set_permissions(at("a/b"), Permissions::from_mode(0o1501)).unwrap();
    fs::write(at("a/b/c/file"), "content").unwrap();
    fs::hard_link(at("a/b/c/file"), at("second")).unwrap();
    chown(at("second"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(at("second"), Permissions::from_mode(0o6755)).unwrap();
    fs::write(at("empty"), "").unwrap();
    symlink("/no/where", at("link")).unwrap();
    fs::hard_link(at("link"), at("second link")).unwrap();
    std::os::unix::fs::lchown(at("link"), Some(7), Some(8)).unwrap();
    mkfifo(&at("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    fs::write(dir.join(std::ffi::OsString::from_vec(b"odd \xff\n\"".to_vec())), "odd").unwrap();
    // Larger than what is read at once, and with zeroes in the middle.
    let mut large: Vec<u8> = (0..3_000_001_u32).map(|n| (n / 7) as u8 | 1).collect();
    large[500_000..1_500_000].fill(0);
    large[2_000_000..2_020_000].fill(0);
    fs::write(at("large"), large).unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    sparse.write_all_at(b"middle", (1 << 39) + 5).unwrap();
    sparse.write_all_at(b"end", (1 << 40) - 3).unwrap();
    File::create(at("hole")).unwrap().set_len(100_000).unwrap();
    attribute(&at("a"), "trusted.b", b"\0\xff");
    attribute(&at("a/b/c/file"), "security.capability", &capability());
    attribute(&at("empty"), "system.posix_acl_access", &acl());
    for path in describe(dir).keys().rev() {
        age(&dir.join(path), 1_000_000_000);
    }
}

/// CAP_CHOWN for everybody who runs the file.
fn capability() -> Vec<u8> {
    [0x0200_0001_u32, 1, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// User 99 may read.
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 4, 99), (4, 4, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn shown(all: &BTreeMap<PathBuf, String>) -> String {
    all.iter().map(|(path, text)| format!("{path:?}: {text}\n")).collect()
}

#[test]
fn everything_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let point = dir.path().join("mount point");
    fs::create_dir(&point).unwrap();
    let (job, before) = Child::apart(|| {
        tmpfs(&point);
        populate(&point);
        shown(&describe(&point))
    });
    let image = image(&job, &dir.path().join("image"));
    assert!(image.manifest().size() < 4_000_000, "holes and zeroes are left out");
    let contents = Contents::open(&image).unwrap();
    let (_restored, after) = Child::apart(|| {
        tmpfs(&point);
        // What a sandbox may have put there.
        fs::write(point.join("link"), "gives way").unwrap();
        symlink("gives way", point.join("fifo")).unwrap();
        fs::create_dir(point.join("a")).unwrap();
        restore(&contents, [point.as_path()]).unwrap();
        let sparse = point.join("sparse").metadata().unwrap().blocks() * 512;
        assert!(sparse < 1 << 20, "a hole stays a hole");
        shown(&describe(&point))
    });
    assert_eq!(before, after);
    for word in
        ["second", "security.capability", "posix_acl_access=[2, 0", "trusted.b=[0, 255]", "6755 1234:4321"]
    {
        assert!(before.contains(word), "{word}: {before}");
    }
}

#[test]
fn devices_and_sockets_and_other_mounts_are_left_to_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let point = dir.path().join("dev");
    fs::create_dir(&point).unwrap();
    let null = |path: &Path| mknod(path, SFlag::S_IFCHR, Mode::all(), makedev(1, 3)).unwrap();
    let (job, _) = Child::apart(|| {
        tmpfs(&point);
        null(&point.join("null"));
        null(&point.join("another"));
        drop(UnixListener::bind(point.join("socket")).unwrap());
        fs::create_dir(point.join("inner")).unwrap();
        tmpfs(&point.join("inner"));
        fs::write(point.join("inner/file"), "inner").unwrap();
        fs::write(point.join("bound"), "hidden").unwrap();
        mount(
            Some("/proc/self/mountinfo"),
            &point.join("bound"),
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        String::new()
    });
    let image = image(&job, &dir.path().join("image"));
    let contents = Contents::open(&image).unwrap();
    let points: Vec<_> = contents.mounts.iter().map(|(tmpfs, _)| tmpfs.point.as_path()).collect();
    assert_eq!(points, [point.as_path(), &point.join("inner")]);
    let (_restored, said) = Child::apart(|| {
        tmpfs(&point);
        null(&point.join("null"));
        fs::create_dir(point.join("inner")).unwrap();
        tmpfs(&point.join("inner"));
        restore(&contents, [point.as_path(), &point.join("inner")]).unwrap();
        let names = |dir: &Path| {
            let mut names: Vec<_> =
                fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let null = point.join("null").metadata().unwrap();
        assert!(null.file_type().is_char_device() && null.rdev() == makedev(1, 3));
        format!("{:?} {:?}", names(&point), names(&point.join("inner")))
    });
    assert_eq!(said, r#"["inner", "null"] ["file"]"#);
}

#[test]
fn a_file_system_of_the_host_is_not_the_containers() {
    let dir = tempfile::tempdir().unwrap();
    let point = |name: &str| dir.path().join(name);
    for name in ["host", "bound", "own", "again", "part"] {
        fs::create_dir(point(name)).unwrap();
    }
    let (_ckrun, said) = Child::apart(|| {
        tmpfs(&point("host"));
        let (job, _) = Child::apart(|| {
            let bind = |from: &str, to: &str| {
                mount(Some(&point(from)), &point(to), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            };
            bind("host", "bound");
            tmpfs(&point("own"));
            bind("own", "again");
            fs::create_dir(point("own").join("dir")).unwrap();
            bind("own/dir", "part");
            String::new()
        });
        let own = mounts::own(job.0, &crate::fd::mounts(job.0).unwrap(), &HashSet::new()).unwrap().0;
        own.iter().map(|own| String::from_utf8_lossy(&own.point).into_owned()).collect()
    });
    assert!([point("own"), point("again")].contains(&said.into()));
}

#[test]
fn nothing_is_written_to_what_the_sandbox_has_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let point = dir.path().join("point");
    fs::create_dir(&point).unwrap();
    let fill = || {
        tmpfs(&point);
        fs::create_dir(point.join("dir")).unwrap();
        fs::write(point.join("dir/file"), "content").unwrap();
        symlink("dir", point.join("link")).unwrap();
        age(&point.join("dir/file"), 77);
    };
    let (job, _) = Child::apart(|| {
        fill();
        String::new()
    });
    let image = image(&job, &dir.path().join("image"));
    let contents = Contents::open(&image).unwrap();
    let other = dir.path();
    type Case<'a> = (&'a str, &'a dyn Fn(), &'a [&'a Path], &'a str);
    let cases: [Case<'_>; 5] = [
        ("no mount", &|| {}, &[&point], "lacks"),
        ("another mount", &|| tmpfs(&point), &[other], " and 2 more"),
        ("the mount is full already", &fill, &[other], ""),
        (
            "and read-only",
            &|| {
                fill();
                let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
                mount(None::<&str>, &point, None::<&str>, flags, None::<&str>).unwrap();
            },
            &[&point],
            "",
        ),
        (
            "a file has changed",
            &|| {
                fill();
                fs::write(point.join("dir/file"), "changed").unwrap();
            },
            &[],
            "dir/file:",
        ),
    ];
    for (case, prepare, made, expected) in cases {
        let (_restored, said) = Child::apart(|| {
            prepare();
            let modified = || {
                let paths = describe(&point).into_keys();
                paths
                    .map(|path| (fs::metadata(point.join(&path)).unwrap().modified().unwrap(), path))
                    .collect()
            };
            let before: Vec<_> = modified();
            let said = restore(&contents, made.iter().copied());
            assert_eq!(before, modified());
            said.err().map(|e| e.to_string()).unwrap_or_default()
        });
        assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{case}: {said}");
        assert!(said.is_empty() || said.contains(point.to_str().unwrap()), "{case}: {said}");
    }
}

#[test]
fn a_hostile_mount_point_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let (point, outside) = (dir.path().join("point"), dir.path().join("outside"));
    fs::create_dir(&point).unwrap();
    fs::create_dir(&outside).unwrap();
    let (job, _) = Child::apart(|| {
        tmpfs(&point);
        fs::create_dir(point.join("dir")).unwrap();
        fs::write(point.join("dir/file"), "content").unwrap();
        String::new()
    });
    let image = image(&job, &dir.path().join("image"));
    let contents = Contents::open(&image).unwrap();
    let (_restored, said) = Child::apart(|| {
        tmpfs(&point);
        symlink(&outside, point.join("dir")).unwrap();
        restore(&contents, [point.as_path()]).unwrap_err().to_string()
    });
    assert!(said.contains("point/dir: file exists"), "{said}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_content_that_was_altered_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let point = dir.path().join("point");
    fs::create_dir(&point).unwrap();
    let (job, _) = Child::apart(|| {
        tmpfs(&point);
        fs::write(point.join("file"), "content").unwrap();
        String::new()
    });
    let image = image(&job, &dir.path().join("image"));
    let contents = Contents::open(&image).unwrap();
    fs::write(dir.path().join("image/files/tmpfs-0"), "CONTENT").unwrap();
    let (_restored, said) = Child::apart(|| {
        tmpfs(&point);
        restore(&contents, [point.as_path()]).unwrap_err().to_string()
    });
    assert!(said.contains("tmpfs-0: its digest is"), "{said}");
}

#[test]
fn what_no_capture_writes_is_refused() {
    let attributes = r#""attributes":{"mode":384,"owner":[0,0],"times":[[0,0],[0,0]]}"#;
    let entry = |path: &str, what: &str| format!(r#"{{"path":{path:?},{attributes},"what":{what}}}"#);
    let root = entry("", "\"directory\"");
    let read = |point: &str, entries: &[String]| {
        let json = format!(r#"{{"point":{point:?},"entries":[{}]}}"#, entries.join(","));
        serde_json::from_str::<Tmpfs>(&json).map_err(|e| e.to_string()).and_then(|tmpfs| tmpfs.check())
    };
    let with = |more: &[String]| read("/tmp", &[std::slice::from_ref(&root), more].concat());
    let file = |data: &str| entry("f", &format!(r#"{{"file":{{"size":8192,"data":{data}}}}}"#));
    assert_eq!(with(&[file("[[0,4096],[4096,10]]"), entry("l", r#"{"link":"f"}"#)]), Ok(4106));
    for point in ["", "/", "tmp", "/../etc", "/tmp/", "//tmp", "/a/./b"] {
        assert!(read(point, std::slice::from_ref(&root)).is_err(), "{point}");
    }
    assert!(read("/tmp", &[]).is_err());
    assert!(read("/tmp", &[file("[]")]).is_err());
    let wrong = [
        vec![entry("..", "\"fifo\"")],
        vec![entry("/etc", "\"fifo\"")],
        vec![entry("a/b", "\"fifo\"")],
        vec![entry("a", "\"fifo\""), entry("a/b", "\"fifo\"")],
        vec![entry("a", "\"fifo\""), entry("a", "\"fifo\"")],
        vec![entry("", "\"directory\"")],
        vec![entry("a", "\"socket\"")],
        vec![entry("a", r#"{"link":"b"}"#)],
        vec![entry("a", r#"{"link":""}"#)],
        vec![entry("a", r#"{"link":"a"}"#)],
        vec![entry("a", r#"{"symlink":""}"#)],
        vec![file("[[0,0]]")],
        vec![file("[[0,8193]]")],
        vec![file("[[4096,4096],[0,4096]]")],
        vec![file("[[0,4096],[4095,1]]")],
        vec![file("[[18446744073709551615,2]]")],
        vec![entry("a", "\"fifo\"").replace("384", "4096")],
        vec![entry("a", "\"fifo\"").replace("[0,0]]", "[0,1000000000]]")],
        vec![entry("a", "\"fifo\"").replace("}", r#","extended":[["security.selinux","x"]]}"#)],
    ];
    for entries in wrong {
        assert!(with(&entries).is_err(), "{entries:?}");
    }
}

#[test]
fn a_mount_that_comes_twice_or_has_other_bytes_is_refused() {
    let root =
        Entry { path: b"".as_slice().into(), attributes: Attributes::default(), what: What::Directory };
    let one = Tmpfs { point: "/tmp".into(), part: None, content: None, entries: vec![root] };
    let other = Tmpfs { content: Some("files/tmpfs-0".into()), ..one.clone() };
    for (mounts, why) in [(vec![one.clone(), one], "twice"), (vec![other], "0 bytes")] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let mut writer = Writer::create(&path).unwrap();
        writer.bytes("files/tmpfs-0", b"more").unwrap();
        writer.json(FILE, &mounts).unwrap();
        writer.commit(Manifest::new(0).unwrap()).unwrap();
        let said = Contents::open(&Image::open(&path).unwrap()).unwrap_err().to_string();
        assert!(said.contains(why), "{said}");
    }
}
