//! The vDSO of another kernel.
//!
//! Programs keep addresses into the vDSO, and another kernel's has its functions at other places. So the code that they know
//! comes back where it was, as ordinary memory, but each of its functions begins with a jump to that of the same name in
//! this kernel's vDSO, which is mapped nearby; one that this kernel's lacks makes the system call. The data of the old code
//! become zeroes, among which it finds no clock that it could read by itself.
//!
//! To a later checkpoint the old code is memory like any other.

use super::layout::Layout;
use super::vma::{Backing, Flags, Prot, Span, Vma};
use crate::cpu::vdso::{Agreement, Identity, functions};
use crate::image::Image;
use crate::worker::Worker;
use crate::{Doing, Error, Failure, vdso};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The code of the vDSO, in an image.
pub const FILE: &str = "vdso";
/// More than any kernel's has.
const MOST: u64 = 1 << 20;
/// The end of what mmap(2) gives without being asked for more: 47 bits.
const END: u64 = 0x7fff_ffff_f000;
/// What a mapping that grows down may need below it.
const GAP: u64 = 1 << 20;

/// The vDSO of this host.
#[derive(Debug)]
struct Here {
    /// Length of the data in front of the code.
    data: u64,
    code: Vec<u8>,
    identity: Identity,
}

impl Here {
    fn look() -> Result<Here, Failure> {
        let memory = File::open("/proc/self/mem").doing(|| "open /proc/self/mem")?;
        let vdso = vdso::find(Pid::this(), &memory)?;
        let mut code = vec![0; (vdso.range.end - vdso.range.start) as usize];
        memory.read_exact_at(&mut code, vdso.range.start).doing(|| "read the vDSO")?;
        let identity = Identity::of(&memory, &vdso.range)?;
        Ok(Here { data: vdso.data.end - vdso.data.start, code, identity })
    }
}

/// The code of this host's vDSO, to be kept in an image.
///
/// # Errors
/// The kernel's.
pub fn code() -> Result<Vec<u8>, Failure> {
    Here::look().map(|here| here.code)
}

/// From the vDSO that a job knows to that of this host.
#[derive(Debug)]
pub struct Bridge {
    old: Vec<u8>,
    jumps: Vec<Jump>,
    /// For each process, where the old code is, and the new.
    places: BTreeMap<i32, (Span, u64)>,
}

impl Bridge {
    /// Makes room for one in `layouts`. None where this host's vDSO can take the place of the old one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is no way; the kernel's, the image's.
    pub fn over(image: &Image, layouts: &mut BTreeMap<i32, Layout>) -> Result<Option<Bridge>, Error> {
        let (here, there) = (Here::look()?, &image.manifest().host.vdso);
        let fits = |layout: &Layout| layout.vdso_parts().is_none_or(|(data, _)| data.len() == here.data);
        if there.agreement(&here.identity) != Agreement::None && layouts.values().all(fits) {
            return Ok(None);
        }
        let no_way = |why: &str| {
            let kernels = format!("the job is from {}, this host has {}", there.kernel, here.identity.kernel);
            Error::Unsupported(format!("vDSO: {kernels}, whose functions are at other places, and {why}"))
        };
        if !image.has(FILE) {
            return Err(no_way("the image is of a ckrun that did not keep the old ones"));
        }
        let old = image.bytes(FILE, MOST)?;
        let jumps = jumps(&old, &here.code).map_err(|why| no_way(&why))?;
        let places = make_room(layouts, &here, old.len() as u64).map_err(|why| no_way(&why))?;
        Ok(Some(Bridge { old, jumps, places }))
    }

    /// Puts the old code, with its jumps, into process `pid`, whose memory is built.
    ///
    /// # Errors
    /// The kernel's.
    pub fn lay(&self, worker: &mut Worker, pid: i32) -> Result<(), Failure> {
        let Some((code, new)) = self.places.get(&pid) else { return Ok(()) };
        let mapped = vdso::find(worker.host(), worker.memory())?.range.start;
        if mapped != *new {
            return Err(Failure::new(
                format!("map the vDSO at {new:#x}: it came to {mapped:#x}"),
                Errno::EEXIST,
            ));
        }
        let mut wanted = self.old.clone();
        for jump in &self.jumps {
            jump.write(&mut wanted, *new);
        }
        // A child has it from its parent.
        let mut found = vec![0; wanted.len()];
        worker.read(code.start, &mut found)?;
        if found == wanted { Ok(()) } else { worker.write(code.start, &wanted) }
    }
}

/// In every layout the old vDSO becomes ordinary memory, and the new one gets a place.
fn make_room(
    layouts: &mut BTreeMap<i32, Layout>,
    here: &Here,
    old: u64,
) -> Result<BTreeMap<i32, (Span, u64)>, String> {
    let len = here.data + here.code.len() as u64;
    // Who knows the same place gets the same place, so that a child has it from its parent.
    let mut chosen: BTreeMap<Span, u64> = BTreeMap::new();
    let mut places = BTreeMap::new();
    let parts: Vec<_> = layouts.iter().filter_map(|(pid, l)| Some((*pid, l.vdso_parts()?))).collect();
    for (_, (data, code)) in &parts {
        if code.len() != old {
            return Err(format!("the image has {old} bytes of it, and {code} was mapped"));
        }
        let near = Span::new(data.start, code.end);
        if let Entry::Vacant(choice) = chosen.entry(near) {
            let of_it = layouts.values().filter(|layout| layout.vdso() == Some(near));
            let taken = of_it.flat_map(|layout| &layout.vmas).map(|vma| vma.range);
            choice.insert(free(taken.collect(), near, len).ok_or("there is no room for both")?);
        }
    }
    for (pid, (data, code)) in parts {
        let (Some(layout), Some(start)) =
            (layouts.get_mut(&pid), chosen.get(&Span::new(data.start, code.end)))
        else {
            continue;
        };
        for vma in layout.vmas.iter_mut().filter(|vma| matches!(vma.backing, Backing::Vdso | Backing::Vvar)) {
            vma.backing = Backing::Anonymous;
        }
        let new = start + here.data;
        let vma = |start, end, prot, backing| Vma {
            range: Span::new(start, end),
            prot,
            backing,
            flags: Flags::default(),
            name: None,
            policy: None,
        };
        layout.vmas.push(vma(*start, new, Prot::READ, Backing::Vvar));
        layout.vmas.push(vma(new, start + len, Prot::READ.and(Prot::EXEC), Backing::Vdso));
        layout.vmas.sort_unstable_by_key(|vma| vma.range.start);
        places.insert(pid, (code, new));
    }
    Ok(places)
}

/// A free place of `len` bytes, above `near` if there is one.
fn free(mut taken: Vec<Span>, near: Span, len: u64) -> Option<u64> {
    taken.sort_unstable();
    let mut gaps = Vec::new();
    let mut at = 1 << 16;
    for range in taken.into_iter().chain([Span::new(END, END)]) {
        if range.start >= at + len + GAP {
            gaps.push((at, range.start - GAP));
        }
        at = at.max(range.end);
    }
    let above = gaps.iter().find(|(start, _)| *start >= near.end).map(|(start, _)| *start);
    above.or_else(|| gaps.last().map(|(_, end)| end - len))
}

/// How a function of the old code begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Jump {
    /// Where it is in the old code.
    at: usize,
    to: To,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    /// A place in this host's vDSO.
    Function(u64),
    /// A system call with the same arguments.
    Call(libc::c_long),
    /// Nothing does what it did.
    Nowhere,
}

impl Jump {
    /// Bytes of the longest.
    const LONGEST: usize = 12;

    fn write(self, code: &mut [u8], vdso: u64) {
        let mut bytes = Vec::with_capacity(Self::LONGEST);
        match self.to {
            // movabs rax, address; jmp rax. A function may change rax.
            To::Function(at) => {
                bytes.extend(b"\x48\xb8");
                bytes.extend((vdso + at).to_le_bytes());
                bytes.extend(b"\xff\xe0");
            }
            // mov eax, number; syscall; ret
            To::Call(number) => {
                bytes.push(0xb8);
                bytes.extend((number as u32).to_le_bytes());
                bytes.extend(b"\x0f\x05\xc3");
            }
            // ud2
            To::Nowhere => bytes.extend(b"\x0f\x0b"),
        }
        if let Some(place) = code.get_mut(self.at..self.at + bytes.len()) {
            place.copy_from_slice(&bytes);
        }
    }
}

/// What a function does, as a system call.
fn call(name: &[u8]) -> Option<libc::c_long> {
    Some(match name.strip_prefix(b"__vdso_").unwrap_or(name) {
        b"clock_gettime" => libc::SYS_clock_gettime,
        b"clock_getres" => libc::SYS_clock_getres,
        b"gettimeofday" => libc::SYS_gettimeofday,
        b"time" => libc::SYS_time,
        b"getcpu" => libc::SYS_getcpu,
        b"getrandom" => libc::SYS_getrandom,
        _ => return None,
    })
}

/// The jumps from one vDSO to another.
fn jumps(old: &[u8], new: &[u8]) -> Result<Vec<Jump>, String> {
    let (Some(old_ones), Some(new_ones)) = (functions(old), functions(new)) else {
        return Err("their names can't be read".into());
    };
    let mut jumps: BTreeMap<usize, To> = BTreeMap::new();
    for (name, at) in old_ones {
        let to = match new_ones.iter().find(|(theirs, _)| *theirs == name) {
            Some((_, at)) => To::Function(*at),
            None => call(&name).map_or(To::Nowhere, To::Call),
        };
        // A function has two names, and one of them may be unknown here.
        let known = jumps.entry(at as usize).or_insert(to);
        if *known == To::Nowhere {
            *known = to;
        }
    }
    let places: Vec<usize> = jumps.keys().copied().chain([old.len()]).collect();
    if places.windows(2).any(|pair| pair[1].saturating_sub(pair[0]) < Jump::LONGEST) {
        return Err("the old ones have no room for jumps".into());
    }
    Ok(jumps.into_iter().map(|(at, to)| Jump { at, to }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn own() -> (u64, Vec<u8>) {
        let memory = File::open("/proc/self/mem").unwrap();
        (vdso::find(Pid::this(), &memory).unwrap().range.start, code().unwrap())
    }

    /// Executable memory with these bytes; it stays.
    fn executable(bytes: &[u8]) -> u64 {
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice, then filled.
        unsafe {
            let at = libc::mmap(std::ptr::null_mut(), bytes.len(), prot, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.cast(), bytes.len());
            at as u64
        }
    }

    fn seconds(base: u64, code: &[u8]) -> i64 {
        let (_, at) =
            functions(code).unwrap().into_iter().find(|(n, _)| n == b"__vdso_clock_gettime").unwrap();
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the address is that of a function of this signature.
        let answer = unsafe {
            let function: extern "C" fn(libc::clockid_t, *mut libc::timespec) -> i32 =
                std::mem::transmute((base + at) as *const u8);
            function(libc::CLOCK_REALTIME, &raw mut time)
        };
        assert_eq!(answer, 0);
        time.tv_sec
    }

    #[test]
    fn the_old_functions_lead_to_the_new_ones() {
        let (base, code) = own();
        let now = seconds(base, &code);
        let mut old = code.clone();
        jumps(&code, &code).unwrap().iter().for_each(|jump| jump.write(&mut old, base));
        assert_ne!(old, code);
        assert!((now..now + 60).contains(&seconds(executable(&old), &code)));
        // Whatever this kernel has no function for is a call.
        let mut old = code.clone();
        for jump in jumps(&code, &code).unwrap() {
            let name = functions(&code).unwrap().into_iter().find(|(_, at)| *at == jump.at as u64).unwrap().0;
            let to = call(&name).map_or(To::Nowhere, To::Call);
            Jump { to, ..jump }.write(&mut old, 0);
        }
        assert!((now..now + 60).contains(&seconds(executable(&old), &code)));
    }

    #[test]
    fn the_new_one_gets_a_free_place_near_the_old_one() {
        let page = |start: u64, end: u64| Span::new(start << 12, end << 12);
        let near = page(0x7000_0000, 0x7000_0006);
        assert_eq!(free(vec![page(0x400, 0x500), near], near, 0x8000), Some(near.end));
        // Something that may grow down follows.
        let stack = page(0x7000_0010, 0x7000_0020);
        assert_eq!(free(vec![near, stack], near, 0x8000), Some(stack.end));
        let last = Span::new(0x7fff_ffff_0000, END);
        assert_eq!(free(vec![last], last, 0x8000), Some(last.start - GAP - 0x8000));
        assert_eq!(free(vec![Span::new(0, END)], last, 0x8000), None);
    }

    proptest! {
        #[test]
        fn a_damaged_one_is_refused_or_patched(at: usize, byte: u8, cut: usize) {
            let (_, code) = own();
            let mut old = code.clone();
            let at = at % old.len();
            old[at] = byte;
            old.truncate(cut % (2 * code.len()));
            for jump in jumps(&old, &code).unwrap_or_default() {
                jump.write(&mut old, 0x7000_0000);
            }
        }
    }
}
