//! Semaphore sets.

use super::{Access, Sort, all, create};
use crate::program::Program;
use crate::sys::check;
use crate::{Doing, Failure};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// `linux/sem.h`.
const SEM_INFO: libc::c_int = 19;
const SEM_STAT_ANY: libc::c_int = 20;

const SORT: Sort = Sort { name: "semaphore set", short: "sem", remove };

/// One set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Set {
    /// Its id in the namespace.
    pub id: i32,
    /// Who may do what with it.
    pub access: Access,
    /// semop(2) has been called on it. Programs wait for that, as it tells them that a new set has got its values.
    pub operated: bool,
    /// The values.
    pub values: Vec<u16>,
    /// By the numbers of semaphores: the process of the job that changed it last, as far as it is there still.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub last: BTreeMap<u16, i32>,
}

/// semctl(2) that fills a structure.
fn stat(id: i32, command: libc::c_int) -> Result<(i32, libc::semid_ds), Errno> {
    // SAFETY: a plain C structure of numbers.
    let mut set: libc::semid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the commands fill a semid_ds, or, SEM_INFO, the smaller seminfo.
    let answer = check(unsafe { libc::semctl(id, 0, command, &raw mut set) }.into())?;
    Ok((answer as i32, set))
}

fn remove(id: i32) {
    // SAFETY: numbers only.
    unsafe { libc::semctl(id, 0, libc::IPC_RMID) };
}

pub(super) fn capture(ids: &HashMap<i32, i32>) -> Result<Vec<Set>, Failure> {
    let (last, _) = stat(0, SEM_INFO).doing(|| "count semaphore sets")?;
    all(SORT, last, |index| {
        let (id, set) = stat(index, SEM_STAT_ANY)?;
        let mut values = vec![0_u16; set.sem_nsems as usize];
        // SAFETY: GETALL writes as many numbers as the set has semaphores, which never changes.
        check(unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) }.into())?;
        let mut last = BTreeMap::new();
        for number in 0..values.len() as u16 {
            // SAFETY: numbers only.
            let pid = check(unsafe { libc::semctl(id, number.into(), libc::GETPID) }.into())?;
            last.extend(ids.get(&(pid as i32)).map(|pid| (number, *pid)));
        }
        Ok(Set { id, access: Access::of(&set.sem_perm), operated: set.sem_otime != 0, values, last })
    })
}

impl Set {
    pub(super) fn make(&self) -> Result<(), Failure> {
        let Set { id, access, values, .. } = self;
        let what = || format!("set semaphore set {id}");
        let count = values.len() as libc::c_int;
        // SAFETY: numbers only.
        create(SORT, *id, access.creator, || unsafe { libc::semget(access.key, count, access.flags()) })?;
        if self.operated {
            // A new semaphore is 0, and to wait for that is an operation.
            let mut wait = libc::sembuf { sem_num: 0, sem_op: 0, sem_flg: libc::IPC_NOWAIT as i16 };
            // SAFETY: one operation, as said.
            check(unsafe { libc::semop(*id, &raw mut wait, 1) }.into()).doing(what)?;
        }
        // SAFETY: SETALL reads as many numbers as the set has semaphores.
        check(unsafe { libc::semctl(*id, 0, libc::SETALL, values.as_ptr()) }.into()).doing(what)?;
        if access.owner != access.creator {
            let (_, mut set) = stat(*id, libc::IPC_STAT).doing(what)?;
            access.apply(&mut set.sem_perm);
            // SAFETY: IPC_SET reads a semid_ds.
            check(unsafe { libc::semctl(*id, 0, libc::IPC_SET, &raw mut set) }.into()).doing(what)?;
        }
        Ok(())
    }

    /// To set a value, be it the one that is there, is to change it.
    pub(super) fn finish(&self, pid: i32, program: &mut Program) {
        for (&number, _) in self.last.iter().filter(|(_, last)| **last == pid) {
            let Some(&value) = self.values.get(usize::from(number)) else { continue };
            let args =
                [self.id.into(), i32::from(number).into(), libc::SETVAL.into(), i32::from(value).into()];
            program.call(format!("set semaphore {number} of set {}", self.id), libc::SYS_semctl, &args);
        }
    }
}
