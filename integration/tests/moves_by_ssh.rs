//! A job moves to another host by a real ssh.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::hosts::{Host, SMALL, Site};
use ckrun_integration::pipes::Lines;
use ckrun_integration::run::needs;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

/// An ssh server, until it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lays a cable between two hosts.
fn cable(a: &Host, b: &Host) {
    let other = b.id.to_string();
    let words = ["ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &other];
    a.run(&words).ok();
    for (host, address) in [(a, "10.78.0.1/24"), (b, "10.78.0.2/24")] {
        host.run(&["ip", "address", "add", address, "dev", "cable"]).ok();
        host.run(&["ip", "link", "set", "cable", "up"]).ok();
    }
}

/// A server on `host` that lets in who has the key of `site`, and a file that tells ssh how to reach it.
fn listens(site: &Site, host: &Host) -> Server {
    needs("ssh", "openssh-client");
    needs("dropbear", "dropbear-bin");
    host.run(&["dropbearkey", "-t", "ed25519", "-f", "/etc/key"]).exits(0);
    host.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/mnt/key"]).ok();
    fs::create_dir_all(host.path("/etc/root/.ssh")).unwrap();
    for private in ["/etc/root", "/etc/root/.ssh"] {
        fs::set_permissions(host.path(private), fs::Permissions::from_mode(0o700)).unwrap();
    }
    fs::copy(site.shared("key.pub"), host.path("/etc/root/.ssh/authorized_keys")).unwrap();
    fs::set_permissions(host.path("/etc/root/.ssh/authorized_keys"), fs::Permissions::from_mode(0o600))
        .unwrap();
    let config = "Host *\nUser root\nIdentityFile /mnt/key\nIdentitiesOnly yes\nBatchMode yes\n\
                  StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n";
    fs::write(site.shared("config"), config).unwrap();
    let mut serve =
        host.command(&["dropbear", "-F", "-E", "-s", "-r", "/etc/key", "-P", "", "-p", "10.78.0.2:22"]);
    let mut server = serve.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = Lines::new(OwnedFd::from(server.stderr.take().unwrap()));
    let server = Server(server);
    // It says so when it listens.
    let line = said.line();
    assert!(line.ends_with("Not backgrounding"), "{line}");
    server
}

#[test]
fn a_job_moves_by_ssh() {
    let site = Site::new();
    let (mut a, mut b) = (site.host("a"), site.host("b"));
    a.serve("emu-a", 1, &SMALL);
    b.serve("emu-b", 1, &SMALL);
    cable(&a, &b);
    for host in [&a, &b] {
        // In a host /etc is its own, and empty.
        fs::write(host.path("/etc/passwd"), "root:x:0:0:root:/etc/root:/bin/sh\n").unwrap();
    }
    let server = listens(&site, &b);
    for host in [&a, &b] {
        // Words that a shell would take apart.
        host.bundle("tb of 'mine'", "dev:/dev/emu0", 4000);
    }
    let start = |plugin| {
        a.quietly(&["run", "--detach", "--bundle", "/srv/tb of 'mine'", "--plugin", plugin, "ID"]).ok();
    };
    start("emu:link=device");
    let expected = a.outcome_of("ID", "tb of 'mine'");
    start("emu:link=device");
    a.reaches(1000);
    let ssh =
        ["migrate", "--to", "10.78.0.2", "--via", "ssh -F /mnt/config", "--ckrun", "/usr/local/bin/ckrun"];
    let said = a.ckrun(&[&ssh[..], &["ID"]].concat()).ok();
    assert!(said.contains(" runs on 10.78.0.2: "), "{said}");
    a.is_empty();
    assert_eq!(b.outcome_of("ID", "tb of 'mine'"), expected);
    b.is_empty();
    // Nobody there.
    drop(server);
    start("emu:link=device");
    a.reaches(1000);
    a.ckrun(&[&ssh[..], &["ID"]].concat()).fails(1, &["Connection refused", "goes on here"]);
    assert_eq!(a.outcome_of("ID", "tb of 'mine'"), expected);
    drop((a, b));
    site.no_trace();
}
