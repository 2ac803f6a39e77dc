//! What a compiled program makes of a call, computed; [`loaded`] asks the kernel.

mod loaded;

use super::*;
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use serde_json::json;
use std::io::{Read, Seek};

fn profile(json: serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(json).unwrap()
}

/// In the shape of the default profiles of container engines.
fn engine_profile() -> LinuxSeccomp {
    serde_json::from_str(include_str!("engine-profile.json")).unwrap()
}

fn compile(json: serde_json::Value) -> Filter {
    Filter::compile(&profile(json)).unwrap()
}

fn refusal(json: serde_json::Value) -> String {
    Filter::compile(&profile(json)).unwrap_err().to_string()
}

/// What the kernel would make of a call: the classic BPF machine, as far as filters use it.
fn outcome(program: &[sock_filter], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
    let (mut at, mut a) = (0, 0u32);
    loop {
        let step = program[at];
        at += 1;
        let branch = |yes: bool| usize::from(if yes { step.jt } else { step.jf });
        match u32::from(step.code) {
            0x20 => a = u32::from_ne_bytes(data[step.k as usize..][..4].try_into().unwrap()),
            0x54 => a &= step.k,
            0x05 => at += step.k as usize,
            0x15 => at += branch(a == step.k),
            0x25 => at += branch(a > step.k),
            0x35 => at += branch(a >= step.k),
            0x06 => return step.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// The same profile, compiled by libseccomp.
fn by_libseccomp(profile: &LinuxSeccomp) -> Vec<sock_filter> {
    let scmp = |action: Action, errno: Option<u32>| match action {
        Action::ScmpActErrno => ScmpAction::Errno(errno.unwrap_or(1) as i32),
        Action::ScmpActTrace => ScmpAction::Trace(errno.unwrap_or(1) as u16),
        Action::ScmpActAllow => ScmpAction::Allow,
        Action::ScmpActLog => ScmpAction::Log,
        Action::ScmpActTrap => ScmpAction::Trap,
        Action::ScmpActNotify => ScmpAction::Notify,
        Action::ScmpActKillProcess => ScmpAction::KillProcess,
        Action::ScmpActKill | Action::ScmpActKillThread => ScmpAction::KillThread,
    };
    let default = scmp(profile.default_action(), profile.default_errno_ret());
    let mut context = ScmpFilterContext::new(default).unwrap();
    for arch in profile.architectures().iter().flatten() {
        context.add_arch(arch.to_string().parse().unwrap()).unwrap();
    }
    for entry in profile.syscalls().iter().flatten() {
        let action = scmp(entry.action(), entry.errno_ret());
        if action == default {
            continue;
        }
        let compare = |arg: &LinuxSeccompArg| {
            let (op, datum) = match arg.op() {
                Operator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
                Operator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
                Operator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
                Operator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
                Operator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
                Operator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
                Operator::ScmpCmpMaskedEq => {
                    (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
                }
            };
            ScmpArgCompare::new(arg.index() as u32, op, datum)
        };
        let args: Vec<_> = entry.args().iter().flatten().map(compare).collect();
        for name in entry.names() {
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            context.add_rule_conditional(action, call, &args).unwrap();
        }
    }
    let mut file = tempfile::tempfile().unwrap();
    context.export_bpf(&file).unwrap();
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    let word = |b: &[u8]| u32::from_ne_bytes(b.try_into().unwrap());
    let step = |b: &[u8]| sock_filter {
        code: u16::from_ne_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: word(&b[4..]),
    };
    bytes.chunks(8).map(step).collect()
}

/// Compares every call by every convention, with arguments around the constants of the profile.
#[cfg(target_arch = "x86_64")]
fn same_as_libseccomp(profile: &LinuxSeccomp) {
    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;
    let (ours, theirs) = (Filter::compile(profile).unwrap().program, by_libseccomp(profile));
    let constants = |arg: &LinuxSeccompArg| [arg.value(), arg.value_two().unwrap_or(0)];
    let args = profile.syscalls().iter().flatten().flat_map(|entry| entry.args().iter().flatten());
    let mut values: Vec<u64> = args
        .flat_map(constants)
        .chain([0, 1, 3, 1 << 32, u64::MAX])
        .flat_map(|v| [v.wrapping_sub(1), v, v.wrapping_add(1), v ^ (1 << 32), v ^ (1 << 63)])
        .collect();
    values.sort_unstable();
    values.dedup();
    let lets_through = [Action::ScmpActAllow, Action::ScmpActLog, Action::ScmpActTrace];
    let newest = |abi: &Abi| {
        let names = profile.syscalls().iter().flatten().flat_map(|entry| entry.names());
        names.filter_map(|name| calls::find(*abi, name)?.own).max()
    };
    let with_args = profile.syscalls().iter().flatten().filter(|entry| entry.args().is_some());
    let entries = with_args
        .flat_map(|entry| entry.names())
        .flat_map(|name| calls::FAMILY.iter().filter_map(|abi| calls::find(*abi, name)));
    let conditional: std::collections::HashSet<u32> =
        entries.flat_map(|e| [e.own, e.shared.map(|(call, _)| call)]).flatten().collect();
    let [x86_64, x32, i386] = [0, 1, 2].map(|i| newest(&calls::FAMILY[i]));
    let has_x32 = profile.architectures().iter().flatten().any(|a| *a == Arch::ScmpArchX32);

    for (arch, numbers, newest) in [
        (X86_64, 0..700, x86_64),
        (X86_64, 0x4000_0000..0x4000_0300, if has_x32 { x32 } else { None }),
        (X86_64, 0xffff_fff0..0xffff_ffff, if has_x32 { x32 } else { None }),
        (
            I386,
            0..700,
            i386.filter(|_| profile.architectures().iter().flatten().any(|a| *a == Arch::ScmpArchX86)),
        ),
        (0xc000_00b7, 0..3, None),
    ] {
        for number in numbers {
            let tested = if conditional.contains(&number) { values.len() } else { 1 };
            for (i, value) in values.iter().enumerate().take(tested) {
                let other = values[(i * 7 + 3) % values.len()];
                for args in [[*value; 6], [*value, other, *value, other, *value, other]] {
                    let expected = match newest {
                        Some(newest)
                            if number > newest && !lets_through.contains(&profile.default_action()) =>
                        {
                            libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32
                        }
                        _ => outcome(&theirs, arch, number, args),
                    };
                    let got = outcome(&ours, arch, number, args);
                    assert_eq!(got, expected, "{arch:#x}: call {number} {args:x?} {profile:?}");
                }
            }
        }
    }
    assert_eq!(
        outcome(&ours, X86_64, u32::MAX, [0; 6]),
        match has_x32 {
            true if !lets_through.contains(&profile.default_action()) =>
                libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
            _ => outcome(&theirs, X86_64, u32::MAX, [0; 6]),
        }
    );
}

#[test]
#[cfg(target_arch = "x86_64")]
fn an_engines_profile_has_libseccomps_outcomes() {
    same_as_libseccomp(&engine_profile());
}

#[test]
#[cfg(target_arch = "x86_64")]
fn every_operator_has_libseccomps_outcomes() {
    let operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"].map(|op| format!("SCMP_CMP_{op}"));
    let names = ["read", "write", "connect", "shmat", "openat2", "dup", "fchdir"];
    for value in [0u64, 5, 0xffff_ffff, 0x1_0000_0000, 0x1234_5678_9abc_def0, u64::MAX] {
        let one = |(op, name): (&String, &str)| {
            let args = json!([{"index": 1, "value": value, "valueTwo": value & 0xf0f0_f0f0_f0f0, "op": op}]);
            json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": args})
        };
        let and = |(op, name): (&String, &str)| {
            let first = json!({"index": 0, "value": value, "valueTwo": 0, "op": op});
            let second = json!({"index": 3, "value": 7, "op": "SCMP_CMP_LT"});
            json!({"names": [name], "action": "SCMP_ACT_TRAP", "args": [first, second]})
        };
        for archs in [json!([]), json!(["SCMP_ARCH_X86"]), json!(["SCMP_ARCH_X32", "SCMP_ARCH_X86"])] {
            for rules in [
                operators.iter().zip(names).map(one).collect::<Vec<_>>(),
                operators.iter().zip(names).map(and).collect(),
            ] {
                same_as_libseccomp(&profile(json!({
                    "defaultAction": "SCMP_ACT_KILL_PROCESS", "architectures": archs, "syscalls": rules,
                })));
            }
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn an_unconditional_rule_overrides_and_a_permissive_default_stays() {
    let on_one = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]);
    same_as_libseccomp(&profile(json!({
        "defaultAction": "SCMP_ACT_LOG",
        "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["dup", "close"], "action": "SCMP_ACT_ERRNO", "args": on_one},
            {"names": ["dup"], "action": "SCMP_ACT_TRACE", "errnoRet": 77},
            {"names": ["close"], "action": "SCMP_ACT_ERRNO", "errnoRet": 9, "args":
                [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
            {"names": ["dup2"], "action": "SCMP_ACT_LOG"},
        ],
    })));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn no_rules_and_an_arch_of_another_machine() {
    same_as_libseccomp(&profile(json!({"defaultAction": "SCMP_ACT_ALLOW"})));
    compile(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}));
}

/// Thousands of conditional rules make jumps longer than BPF's 255.
#[test]
#[cfg(target_arch = "x86_64")]
fn long_programs_jump_far() {
    let names: Vec<String> = (0..150)
        .filter_map(|n| ScmpSyscall::from(n).get_name().ok())
        .filter(|name| calls::find(calls::FAMILY[2], name).is_some_and(|e| e.shared.is_none()))
        .collect();
    let rules: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": i + 1, "args": [
                {"index": 1, "value": i, "op": "SCMP_CMP_GE"}, {"index": 2, "value": i << 30, "op": "SCMP_CMP_NE"},
            ]})
        })
        .collect();
    let profile = profile(json!({
        "defaultAction": "SCMP_ACT_KILL", "architectures": ["SCMP_ARCH_X86"], "syscalls": rules,
    }));
    assert!(Filter::compile(&profile).unwrap().program.len() > 2000);
    same_as_libseccomp(&profile);
}

#[test]
fn a_program_that_the_kernel_would_not_take() {
    let args: Vec<_> = (0..6).map(|i| json!({"index": i, "value": 7, "op": "SCMP_CMP_GT"})).collect();
    let rule = |n| {
        let name = ScmpSyscall::from(n).get_name().unwrap();
        json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": n + 2, "args": args})
    };
    let rules: Vec<_> = (0..200).map(rule).collect();
    let said = refusal(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}));
    assert!(said.starts_with("linux.seccomp.syscalls: needs "), "{said}");
}

#[test]
fn what_cant_be_carried_out_is_refused_with_its_field() {
    let call = |entry: serde_json::Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [entry]});
    for (json, field) in [
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp.defaultAction: "),
        (json!({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}), "linux.seccomp.defaultErrnoRet: "),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}),
            "linux.seccomp.defaultErrnoRet: ",
        ),
        (
            call(json!({"names": ["dup"], "action": "SCMP_ACT_LOG", "errnoRet": 1})),
            "linux.seccomp.syscalls[0].errnoRet: ",
        ),
        (call(json!({"names": ["dup"], "action": "SCMP_ACT_NOTIFY"})), "linux.seccomp.listenerPath: "),
        (
            call(json!({"names": ["dup"], "action": "SCMP_ACT_ERRNO", "args":
                [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]})),
            "linux.seccomp.syscalls[0].args[0].index: ",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent", "syscalls":
                [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]}),
            "linux.seccomp.syscalls[0].action: ",
        ),
    ] {
        let said = refusal(json.clone());
        assert!(said.starts_with(field), "{json}: {said}");
    }
}
