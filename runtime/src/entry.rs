//! The first instructions of ckrun.
//!
//! A verb that enters a container runs from a read-only view of the binary ([`ckrun::sandbox::shield`]), which takes
//! an exec. Before main the C library asks for the CPU's caches and extensions by some seventy CPUIDs, each of which is
//! an exit to the hypervisor in a virtual machine: more than half a millisecond, for nothing but that exec. So it is done
//! here, before the C library begins. Where this can't be done, the shield does it its own way, and says what is wrong.
//!
//! Nothing has been relocated yet, so this is assembly: a compiler may call what is not there.

use std::arch::global_asm;

/// Where statfs(2) writes the flags of a mount, `f_flags` of struct statfs in asm-generic/statfs.h.
const FLAGS: usize = 80;
/// Its size, and what the ABI wants the stack to be a multiple of.
const STATFS: usize = size_of::<libc::statfs>().next_multiple_of(16);

global_asm!(
    ".section .rodata.ckrun_entry, \"a\"",
    "901: .asciz \"/proc/self/exe\"",
    "902: .byte 0",
    // struct mount_attr of linux/mount.h: set, clear, propagation, user namespace.
    ".balign 8",
    "903: .quad {read_only}, 0, 0, 0",
    ".section .text.ckrun_entry, \"ax\"",
    ".globl ckrun_entry",
    ".type ckrun_entry, @function",
    "ckrun_entry:",
    "endbr64",
    // The stack of a new program (x86-64 ABI, 3.4.1): argc, argv, null, envp. _start also wants rdx.
    "mov r12, rdx",
    "mov r13, rsp",
    "mov rbx, [rsp]",
    "lea r14, [rsp + 8]",
    "lea r15, [r14 + 8 * rbx + 8]",
    "test rbx, rbx",
    "jz 9f",
    // Is one of the words the name of such a verb, with its end? Behind the words is the environment, and behind that the
    // kernel puts the program's name and a null pointer (linux_binprm), so there are always eight bytes.
    "mov r8, r14",
    "2: add r8, 8",
    "mov rdi, [r8]",
    "test rdi, rdi",
    "jz 9f",
    "mov rax, [rdi]",
    "cmp eax, {run}",
    "je 4f",
    "movabs rcx, {restore}",
    "cmp rax, rcx",
    "je 4f",
    "shl rax, 8",
    "movabs rcx, {create}",
    "cmp rax, rcx",
    "je 4f",
    "shl rax, 16",
    "movabs rcx, {exec}",
    "cmp rax, rcx",
    "jne 2b",
    // From here on a failure leads to _start.
    "4: sub rsp, {statfs_size}",
    "mov eax, {statfs}",
    "lea rdi, [rip + 901b]",
    "mov rsi, rsp",
    "syscall",
    "test rax, rax",
    "jnz 8f",
    "test byte ptr [rsp + {flags}], {st_rdonly}",
    "jnz 8f",
    "mov eax, {open_tree}",
    "mov edi, {at_fdcwd}",
    "lea rsi, [rip + 901b]",
    "mov edx, {open_tree_flags}",
    "syscall",
    "test rax, rax",
    "js 8f",
    "mov ebx, eax",
    "mov eax, {mount_setattr}",
    "mov edi, ebx",
    "lea rsi, [rip + 902b]",
    "mov edx, {at_empty_path}",
    "lea r10, [rip + 903b]",
    "mov r8d, {attr_size}",
    "syscall",
    "test rax, rax",
    "jnz 8f",
    "mov eax, {execveat}",
    "mov edi, ebx",
    "lea rsi, [rip + 902b]",
    "mov rdx, r14",
    "mov r10, r15",
    "mov r8d, {at_empty_path}",
    "syscall",
    "8: mov rsp, r13",
    "9: mov rdx, r12",
    "jmp _start",
    ".size ckrun_entry, . - ckrun_entry",
    run = const u32::from_le_bytes(*b"run\0"),
    restore = const u64::from_le_bytes(*b"restore\0"),
    create = const u64::from_le_bytes(*b"\0create\0"),
    exec = const u64::from_le_bytes(*b"\0\0\0exec\0"),
    read_only = const libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
    attr_size = const size_of::<libc::mount_attr>(),
    statfs_size = const STATFS,
    flags = const FLAGS,
    st_rdonly = const libc::ST_RDONLY,
    at_fdcwd = const libc::AT_FDCWD,
    at_empty_path = const libc::AT_EMPTY_PATH,
    open_tree_flags = const libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC,
    statfs = const libc::SYS_statfs,
    open_tree = const libc::SYS_open_tree,
    mount_setattr = const libc::SYS_mount_setattr,
    execveat = const libc::SYS_execveat,
);
