//! What the kernel notes of an address space besides its mappings: where code, data, heap, arguments and environment
//! are, the auxiliary vector, the executable. `ps`, `/proc/PID/exe` and brk(2) live on it.

use super::object::{Census, Obstacle};
use crate::proc::Stat;
use crate::program::{Answers, Call, Program};
use crate::resource::Stopped;
use crate::{Doing, Failure};
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// `struct mm_struct`'s own notes, see proc_pid_stat(5). Addresses in hexadecimal; they need not be of pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MmState {
    /// Start and end of the program's code.
    pub code: Bounds,
    /// Start and end of its initialised data.
    pub data: Bounds,
    /// Start and end of the heap of brk(2).
    pub heap: Bounds,
    /// The bottom of the first thread's stack.
    pub stack: u64,
    /// Start and end of the arguments.
    pub args: Bounds,
    /// Start and end of the environment.
    pub env: Bounds,
    /// The auxiliary vector: pairs of a type and a value (getauxval(3)).
    pub auxv: Vec<(u64, u64)>,
    /// The executable: its place in the list of objects.
    pub exe: u32,
}

/// Two addresses.
pub type Bounds = (u64, u64);

/// `linux/prctl.h`.
const PR_SET_MM: i32 = 35;
const PR_SET_MM_MAP: u64 = 14;
/// Bytes of `struct prctl_mm_map`: eleven addresses, the vector's address and size, the executable's descriptor.
const MAP_LEN: usize = 104;
/// The kernel keeps no longer a vector (AT_VECTOR_SIZE).
const MAX_AUXV: usize = 28;

impl MmState {
    /// Adds the question for what only the process itself can say: the end of its heap.
    pub fn ask(program: &mut Program) -> Call {
        program.call("ask for the end of the heap", libc::SYS_brk, &[0_u64.into()])
    }

    /// Reads the rest from outside. `stat` was read when the task had stopped. The executable is added to `census`; when it
    /// can't be carried, that is the answer.
    ///
    /// # Errors
    /// The kernel's.
    pub fn capture(
        task: &Stopped,
        stat: &Stat,
        asked: Call,
        answers: &Answers,
        census: &mut Census,
    ) -> Result<Result<Self, Obstacle>, Failure> {
        let what = || format!("read the memory map of process {}", task.pid);
        let heap_end = answers.of(asked).doing(what)?.cast_unsigned();
        let auxv = parse_auxv(&task.read("auxv")?);
        Ok(census.executable(task.host)?.map(|exe| {
            let [code, code_end, stack, data, data_end, heap, args, args_end, env, env_end] = stat.addresses;
            MmState {
                code: (code, code_end),
                data: (data, data_end),
                heap: (heap, heap_end),
                stack,
                args: (args, args_end),
                env: (env, env_end),
                auxv,
                exe,
            }
        }))
    }

    /// Adds the call that gives it to a process in which nothing of its old executable is mapped any more. `exe` is the
    /// new executable, open in the task; None keeps the executable.
    pub fn restore(&self, program: &mut Program, exe: Option<RawFd>) {
        let vector: Vec<u8> =
            self.auxv.iter().flat_map(|&(kind, value)| [kind, value]).flat_map(u64::to_ne_bytes).collect();
        let (map, auxv) = (program.room(MAP_LEN), program.put(&vector));
        let addresses = [self.code, self.data, self.heap].into_iter().flat_map(<[u64; 2]>::from);
        let rest = [self.stack, self.args.0, self.args.1, self.env.0, self.env.1];
        let bytes: Vec<u8> = addresses.chain(rest).flat_map(u64::to_ne_bytes).collect();
        program.fill(map, 0, &bytes);
        program.link(map, 88, auxv);
        program.fill(map, 96, &(vector.len() as u32).to_ne_bytes());
        program.fill(map, 100, &exe.unwrap_or(-1).to_ne_bytes());
        program.call(
            "set the map of code, data, heap and arguments",
            libc::SYS_prctl,
            &[PR_SET_MM.into(), PR_SET_MM_MAP.into(), map.into(), MAP_LEN.into(), 0_u64.into()],
        );
    }

    /// Checks what an image holds.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, objects: usize) -> Result<(), String> {
        let pairs = [
            ("code", self.code),
            ("data", self.data),
            ("heap", self.heap),
            ("args", self.args),
            ("env", self.env),
        ];
        if let Some((name, _)) = pairs.iter().find(|(_, (start, end))| start > end) {
            return Err(format!("{name}: it ends before it begins"));
        }
        if self.auxv.len() > MAX_AUXV {
            return Err(format!(
                "auxv: {} pairs, more than the {MAX_AUXV} that the kernel keeps",
                self.auxv.len()
            ));
        }
        if self.exe as usize >= objects {
            return Err(format!("exe: there is no object {}", self.exe));
        }
        Ok(())
    }
}

/// The pairs up to and with AT_NULL.
fn parse_auxv(bytes: &[u8]) -> Vec<(u64, u64)> {
    let (words, _) = bytes.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    let pairs = words.chunks_exact(2).map(|pair| (pair[0], pair[1]));
    let mut ended = false;
    pairs.take_while(|(kind, _)| !std::mem::replace(&mut ended, *kind == 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_auxiliary_vector_ends_at_its_end() {
        let auxv = parse_auxv(&std::fs::read("/proc/self/auxv").unwrap());
        assert_eq!(auxv.last(), Some(&(0, 0)));
        // AT_PAGESZ.
        assert!(auxv.contains(&(6, 4096)) && auxv.len() <= MAX_AUXV);
        let words: Vec<u8> = [1_u64, 2, 0, 0, 5, 6].into_iter().flat_map(u64::to_ne_bytes).collect();
        assert_eq!(parse_auxv(&words), [(1, 2), (0, 0)]);
    }
}
