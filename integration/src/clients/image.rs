//! The image that the clients run: the host's static busybox, as a tar archive of a root file system and as an OCI image.

use super::call::call;
use super::program;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes the archive `dir/rootfs.tar`.
///
/// Besides busybox there are: `/noexec` (a script that nobody may execute), `/var/tmp/copied` (to be seen below a tmpfs
/// that copies up), and the user `guest` (1000:1000, also in group 2000).
pub fn rootfs_tar(dir: &Path) -> PathBuf {
    let rootfs = dir.join("rootfs");
    let busybox = program("/bin/busybox", "busybox-static");
    for sub in ["bin", "dev", "etc", "home/guest", "proc", "root", "run", "sys", "tmp", "var/tmp"] {
        fs::create_dir_all(rootfs.join(sub)).unwrap();
    }
    fs::copy(&busybox, rootfs.join("bin/busybox")).unwrap();
    let applets = call(
        {
            let mut list = Command::new(&busybox);
            list.arg("--list");
            list
        },
        "",
    )
    .ok();
    for applet in applets.lines().filter(|name| *name != "busybox") {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/home/guest:/bin/sh\n";
    fs::write(rootfs.join("etc/passwd"), passwd).unwrap();
    fs::write(rootfs.join("etc/group"), "root:x:0:\nguest:x:1000:\nfriends:x:2000:guest\n").unwrap();
    fs::write(rootfs.join("noexec"), "#!/bin/sh\n").unwrap();
    fs::write(rootfs.join("var/tmp/copied"), "from the image\n").unwrap();
    for shared in ["tmp", "var/tmp"] {
        fs::set_permissions(rootfs.join(shared), fs::Permissions::from_mode(0o1777)).unwrap();
    }
    fs::set_permissions(rootfs.join("noexec"), fs::Permissions::from_mode(0o644)).unwrap();
    tar(&rootfs, &dir.join("rootfs.tar"))
}

/// Writes the OCI archive `dir/image.oci` of the root file system, which containerd imports under `name`.
pub fn oci_archive(dir: &Path, name: &str) -> PathBuf {
    let layout = dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let layer = blob(&blobs, &rootfs_tar(dir), "application/vnd.oci.image.layer.v1.tar");
    let document = |value: &Value, kind: &str| {
        let file = dir.join("document.json");
        fs::write(&file, value.to_string()).unwrap();
        blob(&blobs, &file, kind)
    };
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = document(
        &json!({
            "architecture": architecture, "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        }),
        "application/vnd.oci.image.config.v1+json",
    );
    let mut manifest = document(
        &json!({"schemaVersion": 2, "config": config, "layers": [layer]}),
        "application/vnd.oci.image.manifest.v1+json",
    );
    manifest["annotations"] = json!({
        "org.opencontainers.image.ref.name": "latest",
        "io.containerd.image.name": name,
    });
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    tar(&layout, &dir.join("image.oci"))
}

/// Copies a file to the blobs under its digest; its descriptor.
fn blob(blobs: &Path, file: &Path, kind: &str) -> Value {
    let mut sum = Command::new("sha256sum");
    sum.arg(file);
    let digest = call(sum, "").ok().split_whitespace().next().unwrap().to_owned();
    let size = fs::copy(file, blobs.join(&digest)).unwrap();
    json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": size})
}

fn tar(dir: &Path, archive: &Path) -> PathBuf {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(dir).args(["--owner=0", "--group=0", "--numeric-owner", "-cf"]).arg(archive).arg(".");
    call(tar, "").ok();
    archive.to_owned()
}
