//! How fast memory goes into an image and comes back: `memory [MIB] [4k|huge] [full|half] [DIR] [shared]`.
//!
//! A child fills its memory and is stopped; its pages are stored in DIR by one and by two threads, and put into new
//! processes. With `shared`, the parent has the same pages, as after fork(2).

use ckrun_virt::image::Writer;
use ckrun_virt::memory::{self, Blueprint, Census, Handles, Layout, MmState, PageFiles, Plan};
use ckrun_virt::nursery::{AREA, take_over};
use ckrun_virt::tracee::Tracee;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pause, pipe, read, write};
use std::error::Error;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

const HATCH: i32 = 150;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mib: usize = args.next().map_or(Ok(1024), |text| text.parse())?;
    let huge = args.next().as_deref() == Some("huge");
    let half = args.next().as_deref() == Some("half");
    let dir = args.next().unwrap_or_else(|| "/dev/shm".into());
    let shared = args.next().is_some();
    let size = mib << 20;
    let child = filled(size, huge, half, shared)?;
    let memory = File::open(format!("/proc/{child}/mem"))?;
    Tracee::catch(child, 0)?;
    let _stopped = Tracee::arrive(child)?;
    for threads in [1, 2] {
        // The first time the kernel has to find memory for the files; the second shows what copying costs.
        for time in ["first", "again"] {
            one(child, &memory, threads, Path::new(&dir), &format!("{threads} thread(s), {time}"))?;
        }
    }
    kill(child, Signal::SIGKILL)?;
    waitpid(child, None)?;
    println!("most memory used: {}", peak()?);
    Ok(())
}

fn one(child: Pid, memory: &File, threads: usize, dir: &Path, title: &str) -> Result<(), Box<dyn Error>> {
    let mut census = Census::of(child, 0)?;
    let start = Clock::start();
    let (mut layout, obstacles) = Layout::read(child, &mut census, &[])?;
    assert!(obstacles.is_empty(), "{obstacles:?}");
    let read = start.took();
    let mut writer = Writer::create(&dir.join("ckrun-memory-example"))?;
    let mut sinks = (0..threads).map(|n| writer.pages(n)).collect::<Result<Vec<_>, _>>()?;
    let start = Clock::start();
    let dumped = memory::dump(child, memory, &layout, |_| true, None, &mut sinks)?;
    let stored = start.took();
    layout.guards.clone_from(&dumped.guards);
    let pages = PageFiles::new(
        sinks
            .iter()
            .map(|sink| Ok((sink.number(), sink.file().try_clone()?)))
            .collect::<Result<Vec<_>, std::io::Error>>()?,
    );
    let (there, pid, here) = newborn()?;
    let base = 0x1000_0000_0000;
    let mut worker = take_over(pid, here, HATCH, base..base + AREA)?;
    drop(there);
    let plan = Plan::fresh(&dumped.runs);
    let exe = std::fs::read_link("/proc/self/exe")?;
    let id = census
        .objects()
        .iter()
        .position(|o| matches!(&o.kind, memory::Kind::File { path, .. } if path.as_path() == exe));
    let text = (0x1_0000, 0x2_0000);
    let state = MmState {
        code: text,
        data: text,
        heap: text,
        stack: text.0,
        args: text,
        env: text,
        auxv: vec![(0, 0)],
        exe: id.ok_or("no executable")? as u32,
    };
    let handles = Handles::new();
    let blueprint = Blueprint {
        layout: &layout,
        state: &state,
        objects: census.objects(),
        handles: &handles,
        plan: &plan,
        inherited: None,
    };
    let start = Clock::start();
    memory::build(&mut worker, &blueprint)?;
    let built = start.took();
    let start = Clock::start();
    memory::fill(&mut worker, &layout, &plan, &pages)?;
    let filled = start.took();
    memory::finish(&mut worker, &layout, &plan)?;
    println!(
        "{title}: map {read}, dump {stored} ({} MiB, {} MiB of zeroes, {} runs), build {built}, fill {filled}",
        dumped.written >> 20,
        dumped.dropped >> 20,
        dumped.runs.len()
    );
    kill(pid, Signal::SIGKILL)?;
    waitpid(pid, None)?;
    Ok(())
}

/// A process with `size` bytes that no compression would make smaller; every second page zero if `half`.
fn filled(size: usize, huge: bool, half: bool, shared: bool) -> Result<Pid, Box<dyn Error>> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), size, prot, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    // SAFETY: the mapping above.
    unsafe { libc::madvise(at, size, if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE }) };
    let fill = || {
        // SAFETY: the mapping above, which nobody else uses.
        let words = unsafe { std::slice::from_raw_parts_mut(at.cast::<u64>(), size / 8) };
        let mut random = 88_172_645_463_325_252_u64;
        for (n, word) in words.iter_mut().enumerate() {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            *word = if half && n / 512 % 2 == 1 { 0 } else { random };
        }
    };
    if shared {
        fill();
    }
    let (ready, tell) = pipe()?;
    // SAFETY: one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            if !shared {
                fill();
            }
            write(&tell, &[1])?;
            loop {
                pause();
            }
        }
        ForkResult::Parent { child } => {
            read(&ready, &mut [0])?;
            if !shared {
                // SAFETY: the mapping above, of which this process needs nothing.
                unsafe { libc::munmap(at, size) };
            }
            Ok(child)
        }
    }
}

fn newborn() -> Result<(std::os::fd::OwnedFd, Pid, std::os::fd::OwnedFd), Box<dyn Error>> {
    let (here, there) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let (ready, tell) = pipe()?;
    // SAFETY: one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            // SAFETY: a number that nothing else has.
            unsafe { libc::dup2(there.as_raw_fd(), HATCH) };
            write(&tell, &[1])?;
            loop {
                pause();
            }
        }
        ForkResult::Parent { child } => {
            read(&ready, &mut [0])?;
            Ok((there, child, here))
        }
    }
}

/// Time on the wall, and time of all of ckrun's threads on CPUs: on a busy machine only the latter says much.
struct Clock(Instant, TimeVal);

impl Clock {
    fn start() -> Self {
        Clock(Instant::now(), cpu())
    }

    fn took(&self) -> String {
        let cpu = cpu() - self.1;
        format!(
            "{:.1} ms ({:.1} of CPU)",
            self.0.elapsed().as_secs_f64() * 1e3,
            cpu.num_microseconds() as f64 / 1e3
        )
    }
}

fn cpu() -> TimeVal {
    getrusage(UsageWho::RUSAGE_SELF).map_or(TimeVal::zero(), |usage| usage.user_time() + usage.system_time())
}

fn peak() -> Result<String, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    Ok(status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("?").trim().to_owned())
}
