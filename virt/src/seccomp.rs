//! Seccomp filters.
//!
//! Per thread; kept once for the whole job, because threads and children have those of whoever made them. They are read
//! by the tracer. Restored in each thread just before its credentials (a filter without no_new_privs takes
//! CAP_SYS_ADMIN) and with `PTRACE_O_SUSPEND_SECCOMP`: so no later call of ckrun's meets the filters. A process all of
//! whose threads have the same list gets it in its leader for all of them at once: then the kernel's objects are
//! shared again.

use crate::program::{Arg, Program};
use crate::resource::{Blocker, Stopped};
use crate::sys::peek::{self, Instruction, MAX_INSTRUCTIONS};
use crate::{Doing, Error, Failure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// `linux/seccomp.h`.
const MODE_STRICT: u32 = 1;
const SET_MODE_STRICT: u64 = 0;
const SET_MODE_FILTER: u64 = 1;
const FLAG_TSYNC: u64 = 1;
const FLAG_LOG: u64 = 2;
const FLAG_SPEC_ALLOW: u64 = 4;
const FLAG_TSYNC_ESRCH: u64 = 16;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_ACTION_FULL: u32 = 0xffff_0000;
/// `linux/bpf_common.h`: a return of a constant, and of the accumulator.
const RETURN_K: u16 = 0x06;
const RETURN_A: u16 = 0x16;

/// The filters of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Filters {
    /// Every filter once; threads name them by their number in this list.
    pub filters: Vec<Filter>,
    /// By the job's thread id: the thread's filters in the order in which they were installed.
    pub threads: BTreeMap<i32, Vec<usize>>,
    /// One that is none of the job's: its first process had it from whoever made it.
    #[serde(skip)]
    pub foreign: Option<Vec<(u16, u8, u8, u32)>>,
    /// Threads in strict mode, which may only read, write and end.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub strict: BTreeSet<i32>,
}

/// One filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Filter {
    /// Its refusals are logged.
    pub log: bool,
    /// Classic BPF: code, skip if true, skip if false, operand.
    pub code: Vec<(u16, u8, u8, u32)>,
}

impl Filters {
    /// Reads the filters of a stopped thread, which this thread traces.
    ///
    /// # Errors
    /// `EACCES` when ckrun itself has a filter or lacks CAP_SYS_ADMIN; `EMEDIUMTYPE` for a filter that the kernel did not
    /// get as classic BPF.
    pub fn capture(&mut self, task: &Stopped) -> Result<(), Failure> {
        match task.status.seccomp {
            0 => return Ok(()),
            MODE_STRICT => {
                self.strict.insert(task.tid);
                return Ok(());
            }
            _ => {}
        }
        let mut list = Vec::new();
        let mut index = 0;
        while let Some(filter) = Filter::read(task, index)? {
            index += 1;
            if self.foreign.as_ref() != Some(&filter.code) {
                list.push(self.number(filter));
            }
        }
        if !list.is_empty() {
            self.threads.insert(task.tid, list);
        }
        Ok(())
    }

    /// Names what can't be carried of a thread that has been captured: a filter that asks another process.
    pub fn blocker(&self, task: &Stopped) -> Option<Blocker> {
        let list = self.threads.get(&task.tid)?;
        let asks = list.iter().filter_map(|&number| self.filters.get(number)).any(Filter::may_notify);
        asks.then(|| listened(task))
    }

    /// Checks the table: an image is not to be trusted.
    ///
    /// # Errors
    /// [`Error::Damaged`]: a list names a filter that is not there, or a filter is longer than the kernel allows.
    pub fn check(&self) -> Result<(), Error> {
        let damaged = |why: String| Err(Error::Damaged(format!("seccomp: {why}")));
        if let Some(k) =
            self.filters.iter().position(|f| f.code.is_empty() || f.code.len() > MAX_INSTRUCTIONS)
        {
            return damaged(format!("filter {k} does not have 1 to {MAX_INSTRUCTIONS} instructions"));
        }
        for (tid, list) in &self.threads {
            if let Some(number) = list.iter().find(|&&number| number >= self.filters.len()) {
                return damaged(format!("thread {tid} has filter {number}, which is not there"));
            }
        }
        Ok(())
    }

    /// The threads `tids` of one process have the same filters, at least one.
    pub fn same(&self, tids: &[i32]) -> bool {
        let mut lists = tids.iter().map(|tid| self.threads.get(tid));
        matches!(lists.next(), Some(Some(first)) if !first.is_empty() && lists.all(|list| list == Some(first)))
    }

    /// Adds the calls that install a thread's filters, or strict mode. With `for_all` the other threads of the process, which have none
    /// yet, get them too, together with no_new_privs if this thread has it.
    pub fn restore(&self, tid: i32, for_all: bool, program: &mut Program) {
        let list = self.threads.get(&tid).map_or(&[][..], Vec::as_slice);
        for filter in list.iter().filter_map(|&number| self.filters.get(number)) {
            filter.restore(for_all, program);
        }
        if self.strict.contains(&tid) {
            let args = [SET_MODE_STRICT.into(), 0.into(), 0.into()];
            program.call("enter seccomp strict mode", libc::SYS_seccomp, &args);
        }
    }

    fn number(&mut self, filter: Filter) -> usize {
        self.filters.iter().position(|known| *known == filter).unwrap_or_else(|| {
            self.filters.push(filter);
            self.filters.len() - 1
        })
    }
}

/// The refusal of a filter that has a listener, or had one.
pub fn listened(task: &Stopped) -> Blocker {
    Blocker {
        pid: task.pid,
        comm: task.comm(),
        what: format!("thread {}: seccomp filter with a listener", task.tid),
        why: "the process that decides about its system calls can't be found again".to_owned(),
        remedy: None,
    }
}

impl Filter {
    fn read(task: &Stopped, index: usize) -> Result<Option<Filter>, Failure> {
        let what = || format!("read seccomp filter {index} of task {}", task.tid);
        let Some(code) = peek::seccomp_filter(task.host, index).doing(what)? else { return Ok(None) };
        let flags = peek::seccomp_flags(task.host, index).doing(what)?;
        let code = code.iter().map(|i| (i.code, i.if_true, i.if_false, i.k)).collect();
        Ok(Some(Filter { log: flags & FLAG_LOG != 0, code }))
    }

    /// It can return `SECCOMP_RET_USER_NOTIF`; without a listener no filter has a use for that. What a filter returns from
    /// its accumulator is not followed up.
    fn may_notify(&self) -> bool {
        self.code.iter().any(|&(code, _, _, k)| match code {
            RETURN_K => k & RET_ACTION_FULL == RET_USER_NOTIF,
            RETURN_A => true,
            _ => false,
        })
    }

    fn restore(&self, for_all: bool, program: &mut Program) {
        let code: Vec<u8> = self
            .code
            .iter()
            .map(|&(code, if_true, if_false, k)| Instruction { code, if_true, if_false, k })
            .flat_map(Instruction::to_bytes)
            .collect();
        let code = program.put(&code);
        // `struct sock_fprog`: a length and, aligned, a pointer.
        let fprog = program.put(&[0; 16]);
        program.fill(fprog, 0, &(self.code.len() as u16).to_ne_bytes());
        program.link(fprog, 8, code);
        // The kernel does not say whether a filter left speculation alone. The thread's speculation control, which has
        // been restored by now, does.
        let mut flags = FLAG_SPEC_ALLOW;
        flags |= if self.log { FLAG_LOG } else { 0 };
        // Otherwise the answer would be the id of a thread that could not follow, and no error.
        flags |= if for_all { FLAG_TSYNC | FLAG_TSYNC_ESRCH } else { 0 };
        let args: [Arg; 3] = [SET_MODE_FILTER.into(), flags.into(), fprog.into()];
        program.call("install a seccomp filter", libc::SYS_seccomp, &args);
    }
}
