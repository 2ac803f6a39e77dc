//! What a verb that holds a job which stands still answers to the calls of plugins.

use ckrun_plugin::call::{Answer, Call, Registers, RegistersOf, Task};
use ckrun_plugin::number::{Bytes, Hex};
use ckrun_plugin::{Code, Fault};
use ckrun_virt::Failure;
use ckrun_virt::cpu::registers::General;
use ckrun_virt::still::Still;
use nix::errno::Errno;
use serde_json::{Map, Value};

/// Answers a call; `job` is there as long as it stands still.
///
/// # Errors
/// What the plugin is answered.
pub fn answer(job: Option<&mut dyn Still>, call: Call) -> Result<Answer, Fault> {
    let job = job.ok_or_else(|| Fault::new(Code::State, format!("{}: the job runs", call.name())))?;
    match call {
        Call::Tasks {} => {
            let task = |task: ckrun_virt::still::Task| {
                Some(Task {
                    pid: task.pid.try_into().ok()?,
                    tid: task.tid.try_into().ok()?,
                    command: task.comm,
                })
            };
            Ok(Answer::Tasks { tasks: job.tasks().into_iter().filter_map(task).collect() })
        }
        Call::Read(read) => {
            // Not more than the protocol allows, which has been looked at.
            let mut bytes = vec![0; usize::try_from(read.length).unwrap_or(0)];
            job.read(id(read.pid)?, read.address.0, &mut bytes).map_err(|e| fault(&e))?;
            Ok(Answer::Data { data: Bytes(bytes) })
        }
        Call::Write(write) => {
            job.write(id(write.pid)?, write.address.0, &write.data.0).map_err(|e| fault(&e))?;
            Ok(Answer::Nothing {})
        }
        Call::Registers(of) => registers(job, &of),
        other => {
            Err(Fault::new(Code::Internal, format!("{}: is not for the holder of the job", other.name())))
        }
    }
}

fn registers(job: &mut dyn Still, of: &RegistersOf) -> Result<Answer, Fault> {
    let tid = id(of.tid)?;
    let mut all = named(&job.registers(tid).map_err(|e| fault(&e))?)?;
    if !of.set.is_empty() {
        for (name, value) in &of.set {
            let unknown =
                || Fault::new(Code::InvalidParams, format!("registers: there is no register {name:?}"));
            *all.get_mut(name).ok_or_else(unknown)? = *value;
        }
        job.set_registers(tid, &general(&all)?).map_err(|e| fault(&e))?;
        all = named(&job.registers(tid).map_err(|e| fault(&e))?)?;
    }
    Ok(Answer::Registers { registers: all })
}

/// The names are those of `struct user_regs_struct`; in an image they have dashes.
fn named(general: &General) -> Result<Registers, Fault> {
    let Value::Object(members) = serde_json::to_value(general)? else { return Ok(Registers::new()) };
    let register =
        |(name, value): (String, Value)| Ok((name.replace('-', "_"), serde_json::from_value::<Hex>(value)?));
    members.into_iter().map(register).collect()
}

fn general(registers: &Registers) -> Result<General, Fault> {
    let member = |(name, value): (&String, &Hex)| (name.replace('_', "-"), Value::String(value.to_string()));
    Ok(serde_json::from_value(Value::Object(registers.iter().map(member).collect::<Map<_, _>>()))?)
}

fn id(number: u64) -> Result<i32, Fault> {
    i32::try_from(number).map_err(|_| Fault::new(Code::Unknown, format!("there is no task {number}")))
}

fn fault(failure: &Failure) -> Fault {
    let code = match failure.errno {
        Errno::ESRCH => Code::Unknown,
        _ => Code::InvalidParams,
    };
    Fault::new(code, failure.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckrun_plugin::call::{Read, Write};

    /// One thread.
    struct One(General, Vec<u8>);

    impl Still for One {
        fn tasks(&self) -> Vec<ckrun_virt::still::Task> {
            vec![ckrun_virt::still::Task { pid: 1, tid: 1, comm: "one".into() }]
        }

        fn read(&self, pid: i32, _: u64, bytes: &mut [u8]) -> Result<(), Failure> {
            if pid != 1 {
                return Err(Failure::new("find process", Errno::ESRCH));
            }
            bytes.copy_from_slice(&self.1[..bytes.len()]);
            Ok(())
        }

        fn write(&mut self, _: i32, _: u64, bytes: &[u8]) -> Result<(), Failure> {
            self.1[..bytes.len()].copy_from_slice(bytes);
            Ok(())
        }

        fn registers(&self, _: i32) -> Result<General, Failure> {
            Ok(self.0.clone())
        }

        fn set_registers(&mut self, _: i32, registers: &General) -> Result<(), Failure> {
            self.0 = registers.clone();
            Ok(())
        }
    }

    #[test]
    fn a_plugin_sees_and_changes_a_job() {
        // SAFETY: registers are numbers.
        let regs: ckrun_virt::cpu::registers::Raw = unsafe { std::mem::zeroed() };
        let mut job = One(General::from(&regs), vec![7; 8]);
        let mut ask = |call| answer(Some(&mut job), call);
        let read = |pid| Call::Read(Read { pid, address: Hex(0), length: 4 });
        assert_eq!(ask(read(1)).unwrap(), Answer::Data { data: Bytes(vec![7; 4]) });
        assert_eq!(ask(read(2)).unwrap_err().kind(), Some(Code::Unknown));
        ask(Call::Write(Write { pid: 1, address: Hex(0), data: Bytes(vec![9; 4]) })).unwrap();
        assert_eq!(ask(read(1)).unwrap(), Answer::Data { data: Bytes(vec![9; 4]) });
        let set = [("orig_rax".to_owned(), Hex(3)), ("rip".to_owned(), Hex(0x1000))].into();
        let Answer::Registers { registers } = ask(Call::Registers(RegistersOf { tid: 1, set })).unwrap()
        else {
            panic!()
        };
        assert_eq!(
            (registers["orig_rax"], registers["rip"], registers["rax"]),
            (Hex(3), Hex(0x1000), Hex(0))
        );
        let set = [("xmm0".to_owned(), Hex(3))].into();
        let refused = ask(Call::Registers(RegistersOf { tid: 1, set })).unwrap_err();
        assert_eq!(refused.kind(), Some(Code::InvalidParams));
        assert_eq!(answer(None, Call::Tasks {}).unwrap_err().kind(), Some(Code::State));
    }
}
