//! What is in a network namespace that ckrun has made.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::bundle::Container;
use ckrun_integration::guests::{guest, modes};
use ckrun_integration::job::{Job, cleared, path};
use ckrun_integration::run::{finish, install, install_text, needs};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// A container with the host's programs, a network namespace of its own, and `/dev/net/tun`.
fn with_programs(mut container: Container) -> Container {
    needs("ip", "iproute2");
    needs("nft", "nftables");
    let dirs = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc"];
    for dir in dirs.iter().filter(|dir| Path::new(dir).exists()) {
        // Root of another user namespace can't make it.
        fs::create_dir_all(container.rootfs().join(dir.trim_start_matches('/'))).unwrap();
        container = container.mount(dir, "bind", dir, &["rbind", "ro"]);
    }
    container.with(|c| {
        c["linux"]["devices"] =
            json!([{"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666}]);
        let rules = c["linux"]["resources"]["devices"].as_array_mut().unwrap();
        rules.push(json!({"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"}));
    })
}

/// A mode of the guest, not running yet.
fn job(mode: &str) -> Job {
    let job = Job::with(&["/guest", mode, "/status"], with_programs);
    install(&guest("network"), &job.container.rootfs().join("guest"));
    job
}

/// The same with a `/proc/sys` that can be written to.
fn free(mode: &str) -> Job {
    let job = job(mode);
    job.container.change(|c| {
        c["linux"]["readonlyPaths"].as_array_mut().unwrap().retain(|path| path != "/proc/sys");
    });
    job
}

/// Runs a script in the container's network namespace, by an administrator of the host.
fn sh(container: &Container, script: &str) -> String {
    let mut command = Command::new(needs("nsenter", "util-linux"));
    command.args(["--target", &container.pid().to_string(), "--net", "sh", "-ec", script]);
    finish(command).ok()
}

/// Everything that is seen, but for what is counted, and what follows the state of links, which is told a little later. The
/// listing of parameters is seen twice: the kernel loses its place when links come or go in other namespaces meanwhile.
fn look(container: &Container) -> String {
    let script = "exec 2>&1
        plain() { sed -E 's/ [a-z_]+_timer +[0-9.]+//g; s/usedbcqueuelen [0-9]+//; s/qdisc [a-z_]+ //; s/ state [A-Z]+//
            s/NO-CARRIER,|,LOWER_UP|,M-DOWN|tentative|stable-privacy|linkdown|dead//g; s/(valid|preferred)_lft [0-9]+sec//g; s/ +/ /g
            s/expires [0-9a-z]+//g; s/link-netnsid [0-9]+//; s/@if[0-9]+//'; }
        { ip -d link; ip addr | sed '/inet6 fe80:.*ff:fe/{N;d}'; ip -4 route show table all; ip -6 route show table all | grep -v 'proto kernel' || true
        ip rule; ip -6 rule; ip neigh show nud permanent; ip neigh show proxy; nft list ruleset; } | plain
        parameters() { sysctl -a 2>/dev/null | grep '^net' | grep -v 'nf_conntrack_count\\|addr_gen_mode\\|stable_secret' | sort; }
        all=$(parameters); until again=$(parameters); [ \"$all\" = \"$again\" ]; do all=$again; done; echo \"$all\"";
    sh(container, script)
}

/// Shows only what differs.
fn same(now: &str, before: &str) {
    let lacks = |text: &str, other: &str, sign: char| -> Vec<String> {
        let lines = text.lines().filter(|line| !other.lines().any(|there| there == *line));
        lines.map(|line| format!("{sign} {line}")).collect()
    };
    assert_eq!([lacks(before, now, '-'), lacks(now, before, '+')].concat(), Vec::<String>::new());
    // It is only the order then.
    let place = now.lines().zip(before.lines()).find(|(now, before)| now != before);
    assert_eq!(place, None);
    assert_eq!(now, before);
}

/// Two generations; what `script` has made and all else is there again in each.
fn survives(job: &Job, script: &str) {
    job.start();
    sh(&job.container, script);
    let before = look(&job.container);
    for name in ["first", "second"] {
        let image = job.image(name);
        job.checkpoint(&image);
        job.restore(&image);
        same(&look(&job.container), &before);
    }
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
}

/// Whether an image has a part about the network.
fn network(image: &Path) -> Option<Value> {
    let text = fs::read(image.join("network.json")).ok()?;
    Some(serde_json::from_slice(&text).unwrap())
}

#[test]
fn every_mode_of_the_guest_is_tested() {
    assert_eq!(modes("network"), ["tun", "bridge", "queues", "idle", "bound", "guarded", "parameters"]);
}

#[test]
fn a_device_that_goes_with_the_job_comes_back_with_it() {
    survives(&job("tun"), "");
}

#[test]
fn packets_find_their_way_through_pairs_bridges_and_devices() {
    survives(&job("bridge"), "");
}

#[test]
fn several_queues_of_a_device_are_attached_again() {
    survives(&job("queues"), "");
    let idle = job("idle");
    idle.start();
    idle.survives();
}

#[test]
fn sockets_are_bound_to_addresses_of_links_that_were_made() {
    survives(&job("bound"), "");
}

#[test]
fn packet_filters_know_connections_that_were_there_before() {
    survives(&job("guarded"), "");
}

#[test]
fn parameters_that_a_job_has_set_are_kept() {
    survives(&free("parameters"), "sysctl -q net.ipv4.conf.default.rp_filter=2 net.ipv4.tcp_syncookies=0");
}

#[test]
fn whatever_somebody_else_makes_there_is_kept_too() {
    survives(
        &free("bound"),
        "ip link set lo mtu 1500; ip addr add 192.0.2.1/32 dev lo; ip link add br0 type bridge
        ip link set br0 up address 02:00:00:00:00:b0; ip link add m0 link va type macvlan mode bridge; ip link set m0 up; ip tuntap add t0 mode tun user 77
        ip route add 198.51.100.0/24 dev lo; ip -6 route add blackhole 2001:db8:66::/48; ip rule del priority 32767
        sysctl -q net.ipv4.conf.m0.rp_filter=2 net.ipv6.conf.br0.accept_ra=0
        nft -f - <<'END'
        table inet filter {
            set hosts { type ipv4_addr; flags interval; elements = { 172.16.0.0/12, 198.51.100.1 }; }
            chain in { type filter hook input priority 0; ip saddr @hosts counter accept; tcp dport { 1, 2 } drop; }
        }
END",
    );
}

#[test]
fn a_job_that_goes_on_notices_nothing() {
    let job = job("tun");
    job.start();
    let before = look(&job.container);
    let image = job.image("image");
    job.leave_running(&image);
    job.is_well();
    same(&look(&job.container), &before);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    // The image is none the worse for it.
    job.restore_with(&image, &["--changed-files", "ignore"]);
    same(&look(&job.container), &before);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
}

#[test]
fn nothing_is_left_of_a_restart_that_is_killed_after_the_network_was_made() {
    let job = job("bridge");
    job.start();
    let image = job.image("image");
    job.checkpoint(&image);
    for fault in ["restore:network", "restore:tree", "fail@restore:tree"] {
        let mut command = job.container.command(&["restore", "--detach", "--image-path", path(&image), "ID"]);
        command.env("CKRUN_FAULT", fault).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(!command.status().unwrap().success(), "{fault}");
        cleared(&job.container);
        job.container.no_trace();
    }
    job.restore(&image);
    let said = job.container.ckrun(&["inspect", path(&image)]).ok();
    for word in ["network   lo", "va (veth)", "br7 (bridge)", "tap7 (tun)", "routes"] {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
}

#[test]
fn a_namespace_of_another_user_namespace_is_made_again() {
    let job = job("bound");
    job.container.change(|c| {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
        c["linux"].as_object_mut().unwrap().remove("devices");
    });
    survives(&job, "nft add table inet mine; ip tuntap add t0 mode tun");
}

#[test]
fn nothing_is_said_of_a_network_in_which_nothing_was_done() {
    let job = job("idle");
    job.start();
    let image = job.image("image");
    job.checkpoint(&image);
    assert_eq!(network(&image), None);
    job.restore(&image);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
}

#[test]
fn what_is_in_the_network_namespace_can_be_left_out() {
    let job = job("idle");
    job.start();
    sh(&job.container, "ip link add va type veth peer name vb");
    let (with, without) = (job.image("with"), job.image("without"));
    let checkpoint = |image: &Path, more: &[&str]| {
        let words = [&["checkpoint", "--leave-running", "--image-path", path(image)], more, &["ID"]].concat();
        job.container.ckrun(&words).ok();
    };
    checkpoint(&without, &["--empty-ns", "network"]);
    assert_eq!(network(&without), None);
    checkpoint(&with, &[]);
    let names = |image: &Path| -> Vec<String> {
        let links = network(image).unwrap()["links"].as_array().unwrap().clone();
        links.iter().map(|link| link["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&with), ["lo", "vb", "va"]);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.restore_with(&with, &["--empty-ns", "network", "--changed-files", "ignore"]);
    assert_eq!(sh(&job.container, "ip -o link | wc -l").trim(), "1");
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
}

/// The checkpoint is refused by these words before the job is stopped, and it goes on; without `script` nothing is in the
/// way. Whatever `script` makes outside has the name of the container in its alias.
fn refused(script: &str, undo: &str, words: &[&str]) {
    let job = job("idle");
    job.start();
    sh(&job.container, script);
    let said = job.container.ckrun(&["checkpoint", "--dry-run", "ID"]).exits(1).stdout;
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    let image = job.image("image");
    let said = job.container.ckrun(&["checkpoint", "--image-path", path(&image), "ID"]).exits(1).stderr;
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    job.is_unharmed(&image);
    sh(&job.container, undo);
    job.checkpoint(&image);
    job.restore(&image);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();
    job.container.no_trace();
}

#[test]
fn what_can_not_be_made_again_is_named() {
    refused("ip link add x0 type vxlan id 5 dstport 4789", "ip link del x0", &["link x0", "vxlan"]);
    refused(
        "ip link add va type veth peer name vb; ip link add br0 type bridge; tc qdisc add dev va root tbf rate 1mbit burst 32k latency 400ms",
        "tc qdisc del dev va root",
        &["link va: queueing discipline tbf", "tc qdisc del dev va"],
    );
    refused("ip nexthop add id 7 dev lo", "ip nexthop del id 7", &["nexthop objects"]);
    refused(
        "ip xfrm policy add src 10.0.0.1 dst 10.0.0.2 dir out action block",
        "ip xfrm policy flush",
        &["IPsec"],
    );
}

#[test]
fn a_link_to_the_outside_is_named_unless_the_sandbox_brings_it() {
    // The other end is in a namespace that goes with its only process.
    let mut other = Command::new(needs("unshare", "util-linux"));
    let mut other = other.args(["--net", "sleep", "100000"]).spawn().unwrap();
    let job = job("idle");
    job.start();
    let tie = |container: &Container| {
        sh(container, &format!("ip link add name eth7 type veth peer name out$$ netns {}", other.id()));
        sh(
            container,
            "ip addr add 10.92.0.1/24 dev eth7; ip link set eth7 up; ip route add default via 10.92.0.254",
        );
    };
    // Until it has its namespace.
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    while fs::read_link(format!("/proc/{}/ns/net", other.id())).unwrap() == own {
        std::thread::yield_now();
    }
    tie(&job.container);
    let image = job.image("image");
    let said = job.container.ckrun(&["checkpoint", "--image-path", path(&image), "ID"]).exits(1).stderr;
    for word in
        ["link eth7", "its other end is outside the container", "linux.netDevices", "--empty-ns network"]
    {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    job.is_unharmed(&image);
    job.container.ckrun(&["delete", "--force", "ID"]).ok();

    // A hook brings it, to this container and the next.
    let hook = job.container.file("hook");
    let script = format!(
        "#!/bin/sh -e
        pid=$(sed -E 's/.*\"pid\":([0-9]+).*/\\1/')
        nsenter --target $pid --net ip link add name eth7 type veth peer name out$pid netns {}
        nsenter --target $pid --net ip link set eth7 up
        [ -e {} ] || nsenter --target $pid --net ip addr add 10.92.0.1/24 dev eth7",
        other.id(),
        path(&job.container.file("bare")),
    );
    install_text(&script, &hook);
    job.container.change(|c| {
        c["hooks"] = json!({"createRuntime": [{"path": path(&hook), "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}]});
    });
    job.start();
    sh(&job.container, "ip route add default via 10.92.0.254; ip link add v7 type veth peer name w7");
    let before = look(&job.container);
    job.checkpoint(&image);
    job.restore(&image);
    let moved =
        |text: &str| text.lines().filter(|l| !l.contains("link/ether")).collect::<Vec<_>>().join("\n");
    same(&moved(&look(&job.container)), &moved(&before));
    job.container.ckrun(&["delete", "--force", "ID"]).ok();

    // One that brings the link without its address: the job's is given to it.
    fs::write(job.container.file("bare"), "").unwrap();
    job.restore_with(&image, &["--changed-files", "ignore"]);
    same(&moved(&look(&job.container)), &moved(&before));
    job.container.ckrun(&["delete", "--force", "ID"]).ok();

    // None that brings it.
    job.container.change(|c| c["hooks"] = json!({}));
    let said = job
        .quietly(&["restore", "--changed-files", "ignore", "--detach", "--image-path", path(&image), "ID"])
        .exits(1)
        .stderr;
    assert!(said.contains("link eth7"), "{said}");
    job.container.no_trace();
    other.kill().unwrap();
    other.wait().unwrap();
}
