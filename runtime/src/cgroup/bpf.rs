//! Device rules on cgroup2: a small program of type `BPF_PROG_TYPE_CGROUP_DEVICE` per container.
//!
//! The kernel calls the program for each open and mknod of a device node with a pointer to this in register 1
//! (`linux/bpf.h`), and refuses with `EPERM` when it returns 0:
//!
//! ```c
//! struct bpf_cgroup_dev_ctx {
//!     __u32 access_type;  /* (BPF_DEVCG_ACC_* << 16) | BPF_DEVCG_DEV_* */
//!     __u32 major;
//!     __u32 minor;
//! };
//! ```
//!
//! For each kind of access the last rule that matches decides. So the program goes through the rules from the last to
//! the first with the accesses that are not yet decided in a register: a rule that allows takes its accesses away, and
//! when none is left the answer is yes; a rule that denies one that is left is the answer no; and so is the end.

use super::devices::{Devices, Kind, Rule};
use super::refuse;
use crate::error::Result;
use ckrun_virt::Doing;
use nix::errno::Errno;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// The name by which ckrun knows its own programs among those that others (systemd) attached.
const NAME: [u8; 16] = *b"ckrun_devices\0\0\0";

/// Makes `rules` the device rules of a cgroup: attaches the new program, then detaches those of before, so that there
/// is no moment without rules.
///
/// # Errors
/// The kernel's: `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN` or `CAP_SYS_ADMIN`, `EINVAL` on a kernel without cgroup
/// programs.
pub(super) fn apply(directory: &Path, rules: &[Rule]) -> Result<()> {
    let path = || directory.display();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::open(directory, flags, Mode::empty()).doing(|| format!("open {}", path()))?;
    let before = attached(&cgroup).doing(|| format!("list the bpf programs of {}", path()))?;
    if let Some(program) = compile(rules) {
        let program = load(&program).map_err(|errno| {
            let text = ckrun_virt::error::text(errno);
            refuse(
                "devices",
                format!("the kernel doesn't take the bpf program that would guard them: {text}"),
            )
        })?;
        attach(&cgroup, &program).doing(|| format!("attach device rules to {}", path()))?;
    }
    for program in before {
        detach(&cgroup, &program).doing(|| format!("detach the former device rules from {}", path()))?;
    }
    Ok(())
}

/// One instruction, `struct bpf_insn`: an opcode, the destination register in the low and the source in the high half
/// of a byte, a jump's distance in instructions, and a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    constant: i32,
}

/// Register 0 is the answer.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
/// The kind of node, `BPF_DEVCG_DEV_*`.
const KIND: u8 = 2;
/// The accesses that are not decided yet.
const OPEN: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// Opcodes: class, size or operation, and source (`linux/bpf_common.h`, `linux/bpf.h`). Arithmetic is on 32 bits.
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE_CONST: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
const MOVE: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP_IF_EQUAL: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_UNLESS_EQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const JUMP_UNLESS_EQUAL_32: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

/// An instruction with a constant.
fn with_constant(code: u8, register: u8, offset: i16, constant: u32) -> Instruction {
    Instruction { code, registers: register, offset, constant: constant.cast_signed() }
}

/// An instruction with two registers.
fn with_register(code: u8, to: u8, from: u8, offset: i16) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, constant: 0 }
}

/// Sets the answer and returns.
fn answer(allow: bool) -> [Instruction; 2] {
    [with_constant(MOVE_CONST, ANSWER, 0, allow.into()), with_constant(EXIT, 0, 0, 0)]
}

/// The program for `rules`; None when they allow everything, for which no program is needed.
fn compile(rules: &[Rule]) -> Option<Vec<Instruction>> {
    // What comes before a rule about everything has no effect.
    let last = rules.iter().rposition(|rule| matches!(rule, Rule::Everything { .. }));
    let default = matches!(last.map(|n| rules[n]), Some(Rule::Everything { allow: true }));
    let rules = &rules[last.map_or(0, |n| n + 1)..];
    if default && rules.iter().all(|rule| matches!(rule, Rule::Some { allow: true, .. })) {
        return None;
    }
    let mut code = vec![
        with_register(LOAD_WORD, KIND, CONTEXT, 0),
        with_register(MOVE, OPEN, KIND, 0),
        with_constant(AND, KIND, 0, 0xffff),
        with_constant(SHIFT_RIGHT, OPEN, 0, 16),
        with_register(LOAD_WORD, MAJOR, CONTEXT, 4),
        with_register(LOAD_WORD, MINOR, CONTEXT, 8),
    ];
    for rule in rules.iter().rev() {
        if let Rule::Some { allow, devices } = *rule {
            code.extend(one(allow, &devices));
        }
    }
    code.extend(answer(default));
    Some(code)
}

/// One rule: what it does, behind jumps that leave it out where it doesn't match.
fn one(allow: bool, devices: &Devices) -> Vec<Instruction> {
    let mut body = Vec::with_capacity(4);
    if allow {
        body.push(with_constant(AND, OPEN, 0, !u32::from(devices.access)));
        body.push(with_constant(JUMP_UNLESS_EQUAL, OPEN, 2, 0));
    } else {
        body.push(with_register(MOVE, SCRATCH, OPEN, 0));
        body.push(with_constant(AND, SCRATCH, 0, devices.access.into()));
        body.push(with_constant(JUMP_IF_EQUAL, SCRATCH, 2, 0));
    }
    body.extend(answer(allow));
    let kind = match devices.kind {
        Kind::Block => 1, // BPF_DEVCG_DEV_BLOCK
        Kind::Char => 2,  // BPF_DEVCG_DEV_CHAR
    };
    let mut tests = vec![(KIND, kind)];
    tests.extend(devices.major.map(|major| (MAJOR, major)));
    tests.extend(devices.minor.map(|minor| (MINOR, minor)));
    let mut code = Vec::with_capacity(tests.len() + body.len());
    for (n, (register, value)) in tests.iter().enumerate() {
        // Numbers are unsigned words; a 64-bit comparison would extend the constant's sign.
        let over = (tests.len() - 1 - n + body.len()) as i16;
        code.push(with_constant(JUMP_UNLESS_EQUAL_32, *register, over, *value));
    }
    code.extend(body);
    code
}

/// `enum bpf_cmd`, and the attach type `BPF_CGROUP_DEVICE`.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Debug)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// For `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
#[derive(Debug)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// For `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Debug)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// For `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
#[derive(Debug)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// For `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
#[derive(Debug)]
struct GetInfo {
    program: u32,
    size: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`, up to the name.
#[repr(C)]
#[derive(Debug, Default)]
struct Info {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    loaded_at: u64,
    created_by: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
}

/// bpf(2).
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> Result<libc::c_long, Errno> {
    // SAFETY: attributes is a #[repr(C)] prefix of union bpf_attr without padding bytes (the structures above), and its
    // size is passed, beyond which the kernel takes zeroes. The pointers in it are those of buffers that the callers
    // keep alive through the call.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    Errno::result(ret)
}

/// Like [`bpf`], for commands that return a new descriptor.
fn bpf_fd<T>(command: libc::c_long, attributes: &mut T) -> Result<OwnedFd, Errno> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the kernel made the descriptor for this call, with close-on-exec, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

fn load(code: &[Instruction]) -> Result<OwnedFd, Errno> {
    let mut attributes = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: NAME,
    };
    bpf_fd(BPF_PROG_LOAD, &mut attributes)
}

fn attach(cgroup: &OwnedFd, program: &OwnedFd) -> Result<(), Errno> {
    let mut attributes = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        // All programs of the cgroup and of those above it must say yes.
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &mut attributes).map(drop)
}

fn detach(cgroup: &OwnedFd, program: &OwnedFd) -> Result<(), Errno> {
    let mut attributes = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: 0,
    };
    bpf(BPF_PROG_DETACH, &mut attributes).map(drop)
}

/// ckrun's own programs that are attached to `cgroup`.
fn attached(cgroup: &OwnedFd) -> Result<Vec<OwnedFd>, Errno> {
    // The kernel allows 64 programs per cgroup.
    let mut ids = [0u32; 64];
    let mut query = Query {
        target: cgroup.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        padding: 0,
    };
    bpf(BPF_PROG_QUERY, &mut query)?;
    let mut own = Vec::new();
    for &id in &ids[..(query.count as usize).min(ids.len())] {
        let program = match bpf_fd(BPF_PROG_GET_FD_BY_ID, &mut ById { id, next: 0, flags: 0 }) {
            // Detached by somebody else in the meantime.
            Err(Errno::ENOENT) => continue,
            program => program?,
        };
        if name(&program)? == NAME {
            own.push(program);
        }
    }
    Ok(own)
}

fn name(program: &OwnedFd) -> Result<[u8; 16], Errno> {
    let mut info = Info::default();
    let mut attributes = GetInfo {
        program: program.as_raw_fd() as u32,
        size: size_of::<Info>() as u32,
        info: &raw mut info as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info.name)
}
