//! Syscall user dispatch: calls from outside a range of code raise SIGSYS (prctl(2), `PR_SET_SYSCALL_USER_DISPATCH`; Wine
//! and emulators use it).
//!
//! Per thread, and from outside, by its tracer. It concerns ckrun's own stub too, whose calls come from outside every such
//! range: before the stub runs in a thread, [`UserDispatch::suspend`] switches it off. So it is restored when no call
//! follows any more, and is the one change that a running job would keep if ckrun died in between.

use crate::hex::Hex;
use crate::outside::Outside;
use crate::resource::Stopped;
use crate::sys::{self, peek};
use crate::{Doing, Failure};
use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The setting of a thread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UserDispatch {
    /// `PR_SYS_DISPATCH_*`; 0 for off.
    pub mode: u64,
    /// The address of the byte that switches it for the moment.
    pub selector: Hex,
    /// The start of the range.
    pub offset: Hex,
    /// The length of the range.
    pub len: Hex,
}

impl UserDispatch {
    /// It is off.
    pub fn is_off(&self) -> bool {
        self.mode == 0
    }

    /// Reads the setting of stopped thread `host` and switches it off. [`Outside::restore`] switches it on again.
    ///
    /// # Errors
    /// `ESRCH` when it is not stopped.
    pub fn suspend(host: Pid) -> Result<Self, Failure> {
        let found = Self::of(host)?;
        if !found.is_off() {
            peek::set_user_dispatch(host, &peek::UserDispatch::default())
                .doing(|| format!("suspend the syscall dispatch of thread {host}"))?;
        }
        Ok(found)
    }

    fn of(host: Pid) -> Result<Self, Failure> {
        let config = match peek::user_dispatch(host) {
            // The kernel has no syscall user dispatch, or is older than this way to ask.
            Err(Errno::EIO) => return Ok(Self::default()),
            other => other.doing(|| format!("read the syscall dispatch of thread {host}"))?,
        };
        let peek::UserDispatch { mode, selector, offset, len } = config;
        Ok(UserDispatch { mode, selector: Hex(selector), offset: Hex(offset), len: Hex(len) })
    }
}

impl Outside for UserDispatch {
    fn capture(task: &Stopped) -> Result<Self, Failure> {
        Self::of(task.host)
    }

    fn restore(&self, host: Pid) -> Result<(), Failure> {
        if self.is_off() {
            return Ok(());
        }
        let config = sys::peek::UserDispatch {
            mode: self.mode,
            selector: self.selector.0,
            offset: self.offset.0,
            len: self.len.0,
        };
        peek::set_user_dispatch(host, &config).doing(|| format!("set the syscall dispatch of thread {host}"))
    }
}
