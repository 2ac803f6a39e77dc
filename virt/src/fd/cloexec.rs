//! Whether a descriptor is closed by execve(2), where `/proc` does not tell.
//!
//! `/proc/PID/fdinfo` shows the flags of the description and the one of the descriptor in one number. Usually no
//! description has O_CLOEXEC among its flags: open(2) takes it out. What TIOCGPTPEER and mq_open(3) open keeps it, for
//! all its descriptors; then only the process itself can say of which one it is true (F_GETFD).

use super::graph::Graph;
use crate::dispatch::UserDispatch;
use crate::outside::Outside;
use crate::program::Program;
use crate::seize::Frozen;
use crate::visit::{Visit, stay_on_this_cpu};
use crate::{Doing, Failure};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, RawFd};

/// Asks the processes of a stopped job, where that is needed.
pub(super) fn ask(graph: &mut Graph, frozen: &Frozen) -> Result<(), Failure> {
    for member in 0..graph.members.len() {
        let doubtful = doubtful(graph, member)?;
        let host = graph.members[member].host;
        let leader =
            frozen.processes.iter().filter(|process| process.stopped.host == host).find_map(|p| p.leader());
        let Some(leader) = leader.filter(|_| !doubtful.is_empty()) else { continue };
        // Calls of ckrun's would become signals.
        let dispatch = UserDispatch::suspend(host)?;
        let mut visit = Visit::enter(&leader.tracee, stay_on_this_cpu()?)?;
        let mut program = Program::new();
        let ask = |&fd: &RawFd| {
            let what = format!("read the flag of descriptor {fd}");
            (fd, program.attempt(what, libc::SYS_fcntl, &[fd.into(), libc::F_GETFD.into()]))
        };
        let asked: Vec<_> = doubtful.iter().map(ask).collect();
        let answers = visit.run(&leader.tracee, &program)?;
        visit.leave()?;
        dispatch.restore(host)?;
        for (fd, call) in asked {
            let flags =
                answers.of(call).doing(|| format!("read the flag of descriptor {fd} of process {host}"))?;
            if let Some(edge) = graph.edges[member].iter_mut().find(|edge| edge.fd == fd) {
                edge.cloexec = flags & i64::from(libc::FD_CLOEXEC) != 0;
            }
        }
    }
    Ok(())
}

/// Descriptors of a member that only it can tell about.
fn doubtful(graph: &Graph, member: usize) -> Result<Vec<RawFd>, Failure> {
    let mut found = Vec::new();
    for edge in graph.edges[member].iter().filter(|edge| edge.cloexec) {
        let seen = &graph.nodes[edge.node].seen;
        let may_keep = seen.link.starts_with(b"/")
            && (seen.type_() == rustix::fs::FileType::CharacterDevice
                || graph.container.mount(seen.info.mount).is_none_or(|mount| mount.kind == b"mqueue"));
        if !may_keep || seen.path_only() {
            continue;
        }
        let own = graph.take(edge.node)?;
        // SAFETY: no argument is a pointer.
        let flags = Errno::result(unsafe { libc::fcntl(own.as_raw_fd(), libc::F_GETFL) });
        if flags.doing(|| format!("read the flags of {}", seen.name()))? & libc::O_CLOEXEC != 0 {
            found.push(edge.fd);
        }
    }
    Ok(found)
}
