//! File systems in memory: what is in a container's tmpfs mounts travels with its image.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::job::{path, quietly};
use ckrun_integration::pipes::{await_end, pidfd};
use serde_json::json;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A container that sleeps, with one more tmpfs.
fn sleeper() -> Container {
    let container = Container::new().args(&["sleep", "100000"]);
    container.mount("/tmp", "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=1777", "size=32m"])
}

fn up(container: &Container) {
    quietly(container, &["run", "--detach", "ID"]).ok();
}

fn checkpoint(container: &Container, image: &Path) {
    let end = pidfd(container.pid());
    container.ckrun(&["checkpoint", "--image-path", path(image), "ID"]).ok();
    await_end(end);
    container.no_trace();
}

fn restore(container: &Container, image: &Path) {
    quietly(container, &["restore", "--detach", "--image-path", path(image), "ID"]).ok();
    assert_eq!(container.status(), "running");
}

/// A path as the container has it.
fn inside(container: &Container, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", container.pid()))
}

/// Fills a directory of the container with one of everything.
fn fill(dir: &Path) {
    let at = |name: &str| dir.join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::set_permissions(at("a"), Permissions::from_mode(0o1703)).unwrap();
    fs::write(at("a/b/file"), "content").unwrap();
    fs::hard_link(at("a/b/file"), at("second")).unwrap();
    chown(at("second"), Some(12), Some(34)).unwrap();
    fs::set_permissions(at("second"), Permissions::from_mode(0o4750)).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    symlink("/no/where", at("link")).unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(1 << 33).unwrap();
    sparse.write_all_at(b"end", (1 << 33) - 3).unwrap();
    fs::write(at("large"), vec![7; 3_000_000]).unwrap();
    drop(UnixListener::bind(at("socket")).unwrap());
    sparse.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
}

fn is_full(dir: &Path) {
    let at = |name: &str| dir.join(name);
    assert_eq!(at("a").metadata().unwrap().mode(), 0o41703);
    let file = at("a/b/file").metadata().unwrap();
    assert_eq!((file.mode(), file.uid(), file.gid(), file.nlink()), (0o104_750, 12, 34, 2));
    assert_eq!(file.ino(), at("second").metadata().unwrap().ino());
    assert_eq!(fs::read(at("second")).unwrap(), b"content");
    let fifo = at("fifo").metadata().unwrap();
    assert!(fifo.file_type().is_fifo() && fifo.mode() & 0o777 == 0o640);
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("/no/where"));
    let sparse = File::open(at("sparse")).unwrap();
    let about = sparse.metadata().unwrap();
    assert_eq!((about.len(), about.modified().unwrap()), (1 << 33, std::time::SystemTime::UNIX_EPOCH));
    assert!(about.blocks() < 100, "{} blocks", about.blocks());
    let mut end = [0; 4];
    sparse.read_exact_at(&mut end, (1 << 33) - 4).unwrap();
    assert_eq!(&end, b"\0end");
    assert_eq!(fs::read(at("large")).unwrap(), vec![7; 3_000_000]);
    let names = fs::read_dir(dir).unwrap().count();
    assert_eq!(names, 6, "there are no others, since whoever binds a socket makes its name");
}

#[test]
fn files_in_memory_come_back_twice() {
    let container = sleeper();
    up(&container);
    for dir in ["/dev/shm", "/tmp"] {
        fill(&inside(&container, dir));
    }
    fs::set_permissions(inside(&container, "/tmp"), Permissions::from_mode(0o711)).unwrap();
    fs::write(inside(&container, "/dev/made"), "by the job").unwrap();
    for name in ["first", "second"] {
        let image = container.file(name);
        checkpoint(&container, &image);
        container.ckrun(&["restore", "--dry-run", "--image-path", path(&image), "ID"]).ok();
        restore(&container, &image);
        for dir in ["/dev/shm", "/tmp"] {
            is_full(&inside(&container, dir));
        }
        assert_eq!(inside(&container, "/tmp").metadata().unwrap().mode(), 0o40711);
        assert_eq!(fs::read(inside(&container, "/dev/made")).unwrap(), b"by the job");
        let null = inside(&container, "/dev/null").metadata().unwrap();
        assert_eq!((null.mode(), null.rdev()), (0o20666, nix::sys::stat::makedev(1, 3)));
    }
    container.ckrun(&["delete", "--force", "ID"]).ok();
    container.no_trace();
}

#[test]
fn a_job_that_goes_on_keeps_its_files() {
    let container = sleeper();
    up(&container);
    fill(&inside(&container, "/tmp"));
    let image = container.file("image");
    container.ckrun(&["checkpoint", "--leave-running", "--image-path", path(&image), "ID"]).ok();
    assert!(inside(&container, "/tmp/socket").exists());
    fs::remove_file(inside(&container, "/tmp/socket")).unwrap();
    is_full(&inside(&container, "/tmp"));
    container.ckrun(&["delete", "--force", "ID"]).ok();
    restore(&container, &image);
    is_full(&inside(&container, "/tmp"));
}

#[test]
fn a_mount_that_is_missing_is_named_unless_it_was_empty() {
    let container = sleeper().mount("/empty", "tmpfs", "tmpfs", &[]);
    let config = container.config();
    up(&container);
    fs::write(inside(&container, "/tmp/precious"), "x").unwrap();
    let image = container.file("image");
    checkpoint(&container, &image);
    let without = |c: &mut serde_json::Value, gone: &[&str]| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !gone.contains(&mount["destination"].as_str().unwrap()));
    };
    container.change(|c| without(c, &["/empty", "/tmp"]));
    let refused = quietly(&container, &["restore", "--detach", "--image-path", path(&image), "ID"]);
    refused.fails(1, &["/tmp/precious", "mount one there"]);
    container.no_trace();
    container.change(|c| {
        *c = config;
        without(c, &["/empty"]);
    });
    restore(&container, &image);
    assert_eq!(fs::read(inside(&container, "/tmp/precious")).unwrap(), b"x");
}

#[test]
fn a_directory_of_the_host_in_place_of_a_tmpfs_is_not_written_to() {
    let container = sleeper();
    up(&container);
    fs::write(inside(&container, "/tmp/precious"), "x").unwrap();
    let image = container.file("image");
    checkpoint(&container, &image);
    let host = container.file("host");
    fs::create_dir(&host).unwrap();
    container.change(|c| {
        for mount in c["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/tmp" {
                *mount = json!({"destination": "/tmp", "type": "bind", "source": host, "options": ["rbind"]});
            }
        }
    });
    let refused = quietly(&container, &["restore", "--detach", "--image-path", path(&image), "ID"]);
    refused.fails(1, &["/tmp/precious"]);
    assert_eq!(fs::read_dir(&host).unwrap().count(), 0);
    container.no_trace();
}

#[test]
fn read_only_devices_and_copied_directories_are_there_already() {
    let container = sleeper().mount("/etc", "tmpfs", "tmpfs", &["ro", "tmpcopyup"]).with(|c| {
        for mount in c["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/dev" {
                mount["options"].as_array_mut().unwrap().push(json!("ro"));
            }
        }
    });
    for dir in ["pts", "shm", "mqueue"] {
        fs::create_dir_all(container.rootfs().join("dev").join(dir)).unwrap();
    }
    up(&container);
    let image = container.file("image");
    checkpoint(&container, &image);
    restore(&container, &image);
    assert!(fs::read_to_string(inside(&container, "/etc/passwd")).unwrap().starts_with("root:"));
}

#[test]
fn owners_are_those_of_the_containers_user_namespace() {
    let container = sleeper().with(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
    });
    up(&container);
    container
        .ckrun(&["exec", "ID", "sh", "-c", "echo x >/tmp/mine; mkfifo /tmp/fifo || mknod /tmp/fifo p"])
        .ok();
    let mine = inside(&container, "/tmp/mine");
    chown(&mine, Some(200_007), Some(200_008)).unwrap();
    let image = container.file("image");
    checkpoint(&container, &image);
    // Another container may have other ids on the host.
    container.change(|c| {
        let map = json!([{"containerID": 0, "hostID": 300_000, "size": 65536}]);
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
    });
    restore(&container, &image);
    let mine = inside(&container, "/tmp/mine").metadata().unwrap();
    assert_eq!((mine.uid(), mine.gid(), mine.len()), (300_007, 300_008, 2));
    assert!(inside(&container, "/tmp/fifo").metadata().unwrap().file_type().is_fifo());
}
