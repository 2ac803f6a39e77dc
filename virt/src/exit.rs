//! What the kernel does in a thread's memory when the thread ends: set_tid_address(2), set_robust_list(2).
//!
//! Per thread. Restored in each thread at any time: these are addresses that nothing is read from before the end.

use crate::Failure;
use crate::hex::Hex;
use crate::program::{Answers, Place, Program};
use crate::resource::{Resource, Stopped};
use serde::{Deserialize, Serialize};

/// `sizeof(struct robust_list_head)`, the only length that the kernel takes.
const ROBUST_LIST_HEAD: u64 = 24;

/// Two addresses in the thread's process; 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AtExit {
    /// A word that becomes 0, and is a futex of which one waiter is woken: pthread_join waits for it.
    pub clear_tid: Hex,
    /// The list of locks that the thread may hold.
    pub robust_list: Hex,
}

/// Where the answers are.
#[derive(Debug)]
pub struct Asked {
    clear_tid: Place,
    robust_list: Place,
}

impl Resource for AtExit {
    type Asked = Asked;

    fn ask(program: &mut Program) -> Asked {
        let clear_tid = program.room(8);
        let args = [libc::PR_GET_TID_ADDRESS.into(), clear_tid.into()];
        program.call("get the address of the thread id", libc::SYS_prctl, &args);
        let robust_list = program.room(16);
        let args = [0.into(), robust_list.at(0), robust_list.at(8)];
        program.call("get the robust list", libc::SYS_get_robust_list, &args);
        Asked { clear_tid, robust_list }
    }

    fn capture(_: &Stopped, asked: &Asked, answers: &Answers) -> Result<Self, Failure> {
        let address = |place| Hex(answers.u64(place, 0));
        Ok(AtExit { clear_tid: address(asked.clear_tid), robust_list: address(asked.robust_list) })
    }

    fn restore(&self, program: &mut Program) {
        program.call(
            "set the address of the thread id",
            libc::SYS_set_tid_address,
            &[self.clear_tid.0.into()],
        );
        let args = [self.robust_list.0.into(), ROBUST_LIST_HEAD.into()];
        program.call("set the robust list", libc::SYS_set_robust_list, &args);
    }
}
