//! A job comes back under another kernel, or so it seems: its image says that the functions of its vDSO were elsewhere.
//! other_hosts.rs has a kernel that is really another one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::job::{Job, path};
use ckrun_integration::modes_survive;
use ckrun_virt::image::Manifest;
use ckrun_virt::{cpu, vdso};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

modes_survive! { "vdso": functions ; else }

/// Where the vDSO of the job's first process is.
fn place(job: &Job) -> u64 {
    vdso::find(Pid::from_raw(job.container.pid()), &memory(job)).unwrap().range.start
}

fn memory(job: &Job) -> File {
    File::open(format!("/proc/{}/mem", job.container.pid())).unwrap()
}

/// Changes what an image says about the vDSO.
fn of_another_kernel(image: &Path) {
    let file = image.join("manifest.json");
    let (mut manifest, _) = Manifest::parse(&file, &fs::read(&file).unwrap()).unwrap();
    manifest.host.vdso.entries ^= 1;
    fs::write(&file, manifest.to_bytes().unwrap().0).unwrap();
}

/// The code that was at `old` when the file `vdso` of the image was written begins each function with a jump into what is at
/// `new`.
fn leads(job: &Job, image: &Path, old: u64, new: u64) {
    let code = fs::read(image.join("vdso")).unwrap();
    for (name, at) in cpu::vdso::functions(&code).unwrap() {
        let mut jump = [0; 12];
        memory(job).read_exact_at(&mut jump, old + at).unwrap();
        let [0x48, 0xb8, to @ .., 0xff, 0xe0] = jump else { panic!("{jump:x?} of {name:?}") };
        let to = u64::from_le_bytes(to);
        assert!((new..new + code.len() as u64).contains(&to), "{to:#x} of {name:?}");
    }
}

/// Three generations, of which the second finds the vDSO where the first restart has put it.
#[test]
fn the_old_functions_lead_to_the_new_ones() {
    let job = Job::up("vdso", "functions");
    let images = ["first", "second", "third"].map(|name| job.image(name));

    let first = place(&job);
    job.checkpoint(&images[0]);
    of_another_kernel(&images[0]);
    job.restore(&images[0]);
    let second = place(&job);
    assert_ne!(first, second);
    leads(&job, &images[0], first, second);

    job.checkpoint(&images[1]);
    job.restore(&images[1]);
    assert_eq!(place(&job), second);
    leads(&job, &images[0], first, second);

    job.checkpoint(&images[2]);
    of_another_kernel(&images[2]);
    job.restore(&images[2]);
    let third = place(&job);
    assert!(third != first && third != second);
    leads(&job, &images[0], first, second);
    leads(&job, &images[2], second, third);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
}

#[test]
fn without_the_old_code_both_kernels_are_named() {
    let job = Job::up("vdso", "functions");
    let image = job.image("image");
    job.checkpoint(&image);
    let file = image.join("manifest.json");
    let (mut manifest, _) = Manifest::parse(&file, &fs::read(&file).unwrap()).unwrap();
    manifest.host.vdso.entries ^= 1;
    manifest.host.vdso.kernel = "5.0.0 #1".into();
    manifest.files.remove("vdso");
    fs::write(&file, manifest.to_bytes().unwrap().0).unwrap();
    fs::remove_file(image.join("vdso")).unwrap();
    let here = rustix::system::uname().release().to_string_lossy().into_owned();
    let words = ["restore", "--dry-run", "--image-path", path(&image), "ID"];
    let refused = job.container.ckrun(&words).exits(1);
    assert!(refused.stdout.contains("5.0.0 #1") && refused.stdout.contains(&here), "{refused:?}");
}
