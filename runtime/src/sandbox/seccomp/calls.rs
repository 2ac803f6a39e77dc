//! The numbers of system calls, by name and calling convention.

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::Arch;

/// One way to make system calls on this kind of machine. Code for any other machine can't run here, so its calls need
/// no rules.
#[derive(Debug, Clone, Copy)]
pub(super) struct Abi {
    /// Its name in a profile; the number behind it is its `AUDIT_ARCH_*`, except for x32.
    pub(super) arch: Arch,
    scmp: ScmpArch,
    /// Whether an argument has 64 bits.
    pub(super) wide: bool,
}

/// The calling conventions of this machine, its native one first.
#[cfg(target_arch = "x86_64")]
pub(super) const FAMILY: &[Abi] = &[
    Abi { arch: Arch::ScmpArchX86_64, scmp: ScmpArch::X8664, wide: true },
    Abi { arch: Arch::ScmpArchX32, scmp: ScmpArch::X32, wide: false },
    Abi { arch: Arch::ScmpArchX86, scmp: ScmpArch::X86, wide: false },
];
#[cfg(target_arch = "aarch64")]
pub(super) const FAMILY: &[Abi] = &[
    Abi { arch: Arch::ScmpArchAarch64, scmp: ScmpArch::Aarch64, wide: true },
    Abi { arch: Arch::ScmpArchArm, scmp: ScmpArch::Arm, wide: false },
];
#[cfg(target_arch = "riscv64")]
pub(super) const FAMILY: &[Abi] = &[Abi { arch: Arch::ScmpArchRiscv64, scmp: ScmpArch::Riscv64, wide: true }];

/// x32 calls carry x86_64's architecture and this bit in their number (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Where a call can be made: by a number of its own, or on 32-bit x86 also (or only) as the n-th call behind
/// `socketcall` or `ipc`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entries {
    pub(super) own: Option<u32>,
    /// The number of the shared call, and the value of its first argument.
    pub(super) shared: Option<(u32, u64)>,
}

/// The entries of `name`; None when the name is unknown everywhere, no entry when only other machines know it.
pub(super) fn find(abi: Abi, name: &str) -> Option<Entries> {
    let own = |number| Some(Entries { own: Some(number), shared: None });
    match ScmpSyscall::from_name_by_arch(name, abi.scmp).map(i32::from) {
        // libseccomp's pseudo numbers: -100-n is socketcall(n), -200-n is ipc(n), others don't exist here.
        Ok(pseudo @ -120..=-101) if abi.scmp == ScmpArch::X86 => {
            Some(shared(SOCKETCALL, -100 - pseudo, pseudo))
        }
        Ok(pseudo @ -224..=-201) if abi.scmp == ScmpArch::X86 => Some(shared(IPC, -200 - pseudo, pseudo)),
        Ok(number) => u32::try_from(number).map_or(Some(Entries::default()), own),
        Err(_) => {
            let (_, number) = RECENT.iter().find(|(recent, _)| *recent == name)?;
            own(if abi.scmp == ScmpArch::X32 { number | X32_BIT } else { *number })
        }
    }
}

/// Calls since Linux 5.17, which have one number on all architectures; the libseccomp that ckrun is built with may be
/// older.
const RECENT: &[(&str, u32)] = &[
    ("process_mrelease", 448),
    ("futex_waitv", 449),
    ("set_mempolicy_home_node", 450),
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
];

/// `socketcall` and `ipc` on 32-bit x86, the only machine in a [`FAMILY`] that has them.
const SOCKETCALL: u32 = 102;
const IPC: u32 = 117;

fn shared(call: u32, n: i32, pseudo: i32) -> Entries {
    let own = I386_OWN.iter().find(|(known, _)| *known == pseudo).map(|(_, number)| *number);
    Entries { own, shared: Some((call, n as u64)) }
}

/// The numbers of their own that 32-bit x86 gave to calls behind `socketcall` and `ipc`, mostly in Linux 4.3 and 5.1.
/// libseccomp knows them but does not tell when asked for the name.
const I386_OWN: &[(i32, u32)] = &[
    (-119, 337), // recvmmsg
    (-120, 345), // sendmmsg
    (-101, 359), // socket
    (-108, 360), // socketpair
    (-102, 361), // bind
    (-103, 362), // connect
    (-104, 363), // listen
    (-118, 364), // accept4
    (-115, 365), // getsockopt
    (-114, 366), // setsockopt
    (-106, 367), // getsockname
    (-107, 368), // getpeername
    (-111, 369), // sendto
    (-116, 370), // sendmsg
    (-112, 371), // recvfrom
    (-117, 372), // recvmsg
    (-113, 373), // shutdown
    (-202, 393), // semget
    (-203, 394), // semctl
    (-223, 395), // shmget
    (-224, 396), // shmctl
    (-221, 397), // shmat
    (-222, 398), // shmdt
    (-213, 399), // msgget
    (-211, 400), // msgsnd
    (-212, 401), // msgrcv
    (-214, 402), // msgctl
];

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// libseccomp's own table, turned around: every number that it knows is found by its name.
    #[test]
    fn every_number_is_found_by_its_name() {
        let mut known = 0;
        for abi in FAMILY {
            let base = if abi.scmp == ScmpArch::X32 { X32_BIT } else { 0 };
            for number in (0..600).map(|n| base | n) {
                let Ok(name) = ScmpSyscall::from(number as i32).get_name_by_arch(abi.scmp) else { continue };
                let found = find(*abi, &name);
                assert_eq!(found.and_then(|e| e.own), Some(number), "{name} on {:?}", abi.arch);
                known += 1;
            }
        }
        assert!(known > 1000, "{known}");
    }

    #[test]
    fn recent_names_have_their_number_and_unknown_names_none() {
        for (name, number) in RECENT {
            assert_eq!(find(FAMILY[0], name).unwrap().own, Some(*number), "{name}");
            assert_eq!(find(FAMILY[1], name).unwrap().own, Some(*number | X32_BIT), "{name}");
            assert_eq!(find(FAMILY[2], name).unwrap().own, Some(*number), "{name}");
        }
        assert_eq!(find(FAMILY[0], "no_such_call"), None);
        assert_eq!(find(FAMILY[0], "breakpoint"), Some(Entries::default()), "a call of ARM");
    }

    #[test]
    fn a_socket_call_of_32_bit_x86_has_two_entries() {
        let entries = find(FAMILY[2], "connect").unwrap();
        assert_eq!(entries, Entries { own: Some(362), shared: Some((SOCKETCALL, 3)) });
        assert_eq!(find(FAMILY[2], "semtimedop").unwrap(), Entries { own: None, shared: Some((IPC, 4)) });
    }
}
