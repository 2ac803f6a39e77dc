//! Every process takes its descriptors from what it has inherited.

use super::Files;
use super::make::Made;
use crate::program::Program;
use std::os::fd::RawFd;

impl Files {
    /// Lets process `pid` go to its mount namespace, and to its directory if that was deleted: there is only a descriptor of
    /// it, which [`Files::place`] closes, in this process or in another one with the same table. Usually there is nothing to
    /// do.
    pub fn enter(&self, made: &Made, pid: i32, program: &mut Program) {
        if let Some(holdings) = self.processes.get(&pid).filter(|holdings| holdings.directories.is_none()) {
            holdings.fs.place(made, program);
        }
    }

    /// Puts the descriptors of process `pid` at their numbers and closes all others but [`Made::kept`]. It must have
    /// inherited those of the first process, and all its children must have been made, for they inherit too. A process that
    /// has another one's table has nothing to do.
    pub fn place(&self, made: &Made, pid: i32, program: &mut Program) {
        let Some(holdings) = self.processes.get(&pid).filter(|holdings| holdings.table.is_none()) else {
            return;
        };
        let mut open: Vec<RawFd> = made.kept().to_vec();
        for held in holdings.descriptors.iter().filter(|held| !self.is_late(held.description)) {
            let flags = if held.cloexec { libc::O_CLOEXEC } else { 0 };
            let args = [made.at(held.description).into(), held.fd.into(), flags.into()];
            program.call(format!("place descriptor {}", held.fd), libc::SYS_dup3, &args);
            open.push(held.fd);
        }
        open.sort_unstable();
        let mut close = |from: i64, to: i64| {
            if from <= to {
                let args = [from.into(), to.into(), 0.into()];
                program.call("close descriptors", libc::SYS_close_range, &args);
            }
        };
        let mut next = 0;
        for fd in open.into_iter().map(i64::from) {
            close(next, fd - 1);
            next = fd + 1;
        }
        close(next, u32::MAX.into());
    }
}
