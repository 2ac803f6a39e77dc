//! Another host: a virtual machine with a kernel of Debian's and a CPU of QEMU's own making, without acceleration, so that
//! it is the same everywhere.

use crate::run::{binary, finish, needs};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A command with these arguments; it must succeed.
fn done(program: &Path, args: &[&str], dir: &Path) -> String {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir);
    finish(command).exits(0).stdout
}

/// Debian's kernel for virtual machines, unpacked beside the tests by whichever needs it first.
fn kernel() -> PathBuf {
    let dir = std::env::current_exe().expect("current_exe").parent().expect("deps").with_file_name("kernel");
    fs::create_dir_all(&dir).expect("make a directory for a kernel");
    let lock = File::create(dir.join("lock")).expect("make a lock file");
    lock.lock().expect("lock a file");
    let find = || {
        let boot = fs::read_dir(dir.join("unpacked/boot")).ok()?;
        boot.flatten().map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("vmlinuz"))
    };
    find().unwrap_or_else(|| {
        let said = done(&needs("apt-cache", "apt"), &["depends", "linux-image-cloud-amd64"], &dir);
        let package = said.split_ascii_whitespace().find(|word| word.starts_with("linux-image-6"));
        done(&needs("apt-get", "apt"), &["-q", "download", package.expect("the kernel's package")], &dir);
        let entries = fs::read_dir(&dir).expect("read a directory").flatten();
        let archive = entries.map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "deb"));
        let archive = archive.expect("a package");
        done(&needs("dpkg-deb", "dpkg"), &["-x", archive.to_str().expect("UTF-8"), "unpacked"], &dir);
        find().expect("a kernel in its package")
    })
}

/// One member of an initramfs: `newc` of cpio(5).
fn member(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let (size, length) = (content.len(), name.len() + 1);
    let fields = [0, mode as usize, 0, 0, 1, 0, size, 0, 0, device.0 as usize, device.1 as usize, length, 0];
    let header: String = fields.iter().map(|field| format!("{field:08X}")).collect();
    archive.extend(format!("070701{header}{name}\0").bytes());
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

fn tree(archive: &mut Vec<u8>, path: &Path, name: &str) {
    let meta = fs::symlink_metadata(path).expect("look at a file");
    if meta.is_dir() {
        member(archive, name, meta.mode(), (0, 0), b"");
        for entry in fs::read_dir(path).expect("read a directory").flatten() {
            tree(archive, &entry.path(), &format!("{name}/{}", entry.file_name().to_string_lossy()));
        }
    } else if meta.is_file() {
        member(archive, name, meta.mode(), (0, 0), &fs::read(path).expect("read a file"));
    }
}

/// What runs first. pivot_root(2) does not leave an initramfs, so everything moves to a tmpfs.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
if [ ! -e /moved ]; then
    mount -t tmpfs -o mode=755 tmpfs /new
    cp -a /bin /work /init /new/; mkdir /new/proc /new/sys /new/dev /new/tmp /new/run; touch /new/moved
    exec switch_root /new /init
fi
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm; mount -t devpts -o ptmxmode=666 devpts /dev/pts; mount -t cgroup2 none /sys/fs/cgroup
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -F /dev/ttyS1 raw -echo
cd /work; sh -e ./script; echo \"script: $?\"
echo o >/proc/sysrq-trigger; sleep 1000
";

/// Boots a machine with a CPU of this `model` (`qemu-system-x86_64 -cpu help`), in which the files of `work` are at /work
/// beside `ckrun`, and runs `script` there, which may send something by /dev/ttyS1. The answer is what it said and sent.
pub fn boot(model: &str, work: &Path, script: &str) -> (String, Vec<u8>) {
    let scratch = tempfile::tempdir().expect("make a directory");
    let ckrun = scratch.path().join("ckrun");
    let stripped =
        ["-o", ckrun.to_str().expect("UTF-8"), binary().to_str().expect("UTF-8")].map(str::to_owned);
    let mut strip = Command::new(needs("strip", "binutils"));
    strip.args(stripped);
    finish(strip).ok();
    fs::set_permissions(&ckrun, fs::Permissions::from_mode(0o755)).expect("make a file executable");

    let mut archive = Vec::new();
    let kind = (0o40755, 0o100_755);
    for dir in ["bin", "dev", "new"] {
        member(&mut archive, dir, kind.0, (0, 0), b"");
    }
    member(&mut archive, "dev/console", 0o20600, (5, 1), b"");
    member(&mut archive, "init", kind.1, (0, 0), INIT.as_bytes());
    tree(&mut archive, &needs("busybox", "busybox-static"), "bin/busybox");
    tree(&mut archive, &ckrun, "bin/ckrun");
    tree(&mut archive, work, "work");
    member(&mut archive, "work/script", kind.1, (0, 0), script.as_bytes());
    member(&mut archive, "TRAILER!!!", 0, (0, 0), b"");
    let (initrd, sent) = (scratch.path().join("initrd"), scratch.path().join("sent"));
    fs::write(&initrd, archive).expect("write an initramfs");

    let mut qemu = Command::new(needs("timeout", "coreutils"));
    qemu.arg("300").arg(needs("qemu-system-x86_64", "qemu-system-x86"));
    qemu.args("-nodefaults -no-reboot -display none -accel tcg -smp 2 -m 768 -serial stdio".split(' '));
    qemu.arg("-serial").arg(format!("file:{}", sent.display())).args(["-cpu", model]);
    qemu.arg("-kernel").arg(kernel()).arg("-initrd").arg(&initrd);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1"]);
    let said = finish(qemu).stdout.replace('\r', "");
    (said, fs::read(&sent).unwrap_or_default())
}
