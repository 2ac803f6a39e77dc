//! Neither checkpoint nor restore touches a process or a cgroup that is not the job's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bystander::{Bystander, OwnCgroup};
use ckrun_integration::job::{Job, path};
use ckrun_integration::run::{binary, finish, needs};
use serde_json::json;
use std::os::unix::process::CommandExt;
use std::process::Command;

#[test]
fn in_other_cgroups() {
    let job = Job::new("processes", "wide");
    let name = format!("around-{}", job.container.id().replace("ckrun-", ""));
    let (above, beside) = (OwnCgroup::new(&name), OwnCgroup::new(&format!("{name}/beside")));
    let bystanders = [Bystander::new(), Bystander::new(), Bystander::new()];
    above.take(bystanders[0].pid());
    beside.take(bystanders[1].pid());
    job.container.change(|c| c["linux"]["cgroupsPath"] = json!(format!("/{name}/{}", job.container.id())));
    job.start();
    let image = job.image("image");
    job.checkpoint(&image);
    job.restore(&image);
    // And one that fails in the middle.
    let mut command =
        job.container.command(&["checkpoint", "--image-path", path(&job.image("second")), "ID"]);
    command.env("CKRUN_FAULT", "fail@checkpoint:memory");
    finish(command).exits(1);
    job.is_well();
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
    for bystander in bystanders {
        bystander.survives();
    }
    drop((beside, above));
}

/// In a pid namespace of its own ckrun sees strangers under the very numbers that the job's processes have inside: whoever
/// confuses the two kills the wrong ones.
#[test]
fn under_the_numbers_of_the_job() {
    let job = Job::new("processes", "wide");
    let image = job.image("image");
    let script = r#"
        set -e
        mount -t proc proc /proc
        for i in $(seq 70); do sleep 1000 <&- >&- 2>&- & done
        strangers=$(jobs -p)
        rises() { old=$(head -c 16 "$STATUS"); while [ "$(head -c 16 "$STATUS")" = "$old" ]; do :; done; }
        "$@" run --detach "$ID" <&- >&- 2>&-
        rises
        "$@" checkpoint --image-path "$IMAGE" "$ID"
        "$@" restore --detach --image-path "$IMAGE" "$ID" <&- >&- 2>&-
        rises
        "$@" checkpoint --leave-running --image-path "$IMAGE.2" "$ID"
        rises
        "$@" delete --force "$ID"
        for pid in $strangers; do
            case $(cut -d' ' -f3 /proc/$pid/stat) in [SDR]) ;; *) echo "$pid is stopped or dead"; exit 1 ;; esac
        done
        [ "$(echo $strangers | wc -w)" = 70 ]
        echo all there
    "#;
    let mut command = Command::new(needs("unshare", "util-linux"));
    command.args(["--pid", "--mount", "--fork", "--kill-child", "bash", "-c", script, "bash"]);
    command.arg(binary()).arg("--root").arg(job.container.store()).current_dir(job.container.bundle());
    command.env("ID", job.container.id()).env("IMAGE", path(&image));
    command.env("STATUS", job.container.rootfs().join("status")).process_group(0);
    let said = finish(command);
    assert_eq!((said.code, said.stdout.as_str()), (0, "all there\n"), "{}", said.stderr);
    job.container.no_trace();
}
