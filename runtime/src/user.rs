//! Who runs ckrun.

use nix::unistd::geteuid;

/// Whether this is the host's root, and not the root of a user namespace: engines of ordinary users (podman, buildah)
/// start the runtime as root of a namespace of theirs, where it may do no more to the host than they.
pub fn is_host_root() -> bool {
    // Without /proc nothing works, so the answer does not matter then.
    geteuid().is_root() && std::fs::read_to_string("/proc/self/uid_map").map_or(true, |map| is_initial(&map))
}

/// The initial user namespace maps every id to itself, all but the last one, which stands for "no user" (user_namespaces(7)).
fn is_initial(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_tells_the_initial_namespace() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("         0       1000          1\n         1     100000      65536\n"));
        assert!(!is_initial("         0          0      65536\n"));
    }
}
