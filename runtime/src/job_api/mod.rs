//! The job API: a socket in the container, over which a job asks for checkpoints, forbids them for a while, and is called
//! before and after. plugins/job/README.md has the protocol; the supervisor has this.

mod client;

use crate::error::Result;
use ckrun_virt::Doing;
use client::{Client, Line};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::Mode;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the container has the socket.
pub const PLACE: &str = "/run/ckrun.sock";

/// The variable of the job's environment that says so.
pub const VARIABLE: &str = "CKRUN_JOB_SOCKET";

/// How long the job has for what it does before a checkpoint.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The most connections; one more is closed.
const MOST: usize = 64;

/// The socket and those who are connected.
#[derive(Debug)]
pub struct JobApi {
    listener: UnixListener,
    clients: Vec<Client>,
    id: String,
    generation: u64,
    /// Who is to be told how the checkpoint ends that was asked for.
    asker: Option<u64>,
    /// The number of the next connection.
    next: u64,
}

/// A checkpoint that the job asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The image's name, a file name.
    pub name: String,
    /// The job is to go on.
    pub leave_running: bool,
}

impl JobApi {
    /// Makes the socket `file` in `dir`, on the host, for container `id`. The answer has the name that the kernel has for it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bind(dir: &Path, file: &str, id: &str, generation: u64) -> Result<(JobApi, String)> {
        let path = dir.join(file);
        let doing = || format!("make the socket {}", path.display());
        // One that a supervisor has left that was killed.
        let _ = std::fs::remove_file(&path);
        // A socket's address holds 108 bytes (unix(7)); the path may be longer.
        let here = File::open(dir).doing(doing)?;
        let name = format!("/proc/self/fd/{}/{file}", here.as_raw_fd());
        let listener = UnixListener::bind(&name).doing(doing)?;
        listener.set_nonblocking(true).doing(doing)?;
        // Whoever is in the container may speak for the job.
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o666)).doing(doing)?;
        let id = id.to_owned();
        Ok((JobApi { listener, clients: Vec::new(), id, generation, asker: None, next: 0 }, name))
    }

    /// Over a socket that was made by [`JobApi::bind`].
    pub fn over(listener: OwnedFd, id: &str, generation: u64) -> JobApi {
        let (listener, id) = (listener.into(), id.to_owned());
        JobApi { listener, clients: Vec::new(), id, generation, asker: None, next: 0 }
    }

    /// The socket to which the job connects.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// What to wait for; then [`JobApi::attend`].
    pub fn polled(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd()).chain(self.clients.iter().filter_map(Client::fd))
    }

    /// Does what has come in, without waiting. The answer is a checkpoint that is to be begun: [`JobApi::begun`], and at its
    /// end, if the job goes on here, [`JobApi::ended`].
    pub fn attend(&mut self) -> Option<Wish> {
        self.welcome();
        let mut wish = None;
        for client in &mut self.clients {
            while let Some(line) = client.hear() {
                match line {
                    Line::Wish(_) if self.asker.is_some() || wish.is_some() => {
                        client.say("error a checkpoint is being taken already");
                    }
                    Line::Wish(asked) => {
                        self.asker = Some(client.number);
                        wish = Some(asked);
                    }
                    // Too late, or nobody asked.
                    Line::Ready | Line::Veto(_) => {}
                }
            }
        }
        self.clients.retain(Client::is_there);
        wish
    }

    /// Whether what the job has asked for is under way; if not, why.
    pub fn begun(&mut self, begun: Result<(), String>) {
        let line = begun.as_ref().map_or_else(|why| format!("error {why}"), |()| "ok".into());
        self.tell_asker(&line);
        if begun.is_err() {
            self.asker = None;
        }
    }

    /// The checkpoint that the job has asked for is over, and the job goes on here.
    pub fn ended(&mut self, how: Result<(), String>) {
        let line = how.map_or_else(|why| format!("failed {why}"), |()| "done".into());
        self.tell_asker(&line);
        self.asker = None;
    }

    /// A checkpoint is about to be taken: every connection that wants to be called is, and their answers are awaited.
    ///
    /// # Errors
    /// Why not: the job has forbidden it, one says no, or does not answer within `limit`.
    pub fn before(&mut self, limit: Duration) -> Result<(), String> {
        let until = Instant::now() + limit;
        self.attend_nothing_new();
        if let Some(why) = self.clients.iter().find_map(|client| client.forbids.as_ref()) {
            return Err(format!("the job has forbidden checkpoints: {why}"));
        }
        for client in self.clients.iter_mut().filter(|client| client.wants_calls) {
            client.say("before");
            client.answered = false;
            client.called = true;
        }
        loop {
            let mut veto = None;
            for client in self.clients.iter_mut().filter(|client| !client.answered) {
                while let Some(line) = client.hear() {
                    match line {
                        Line::Ready => client.answered = true,
                        Line::Veto(why) => {
                            client.answered = true;
                            veto = Some(why);
                        }
                        Line::Wish(_) => client.say("error a checkpoint is being taken already"),
                    }
                }
            }
            self.clients.retain(Client::is_there);
            if let Some(why) = veto {
                return Err(format!("the job says no: {why}"));
            }
            let waiting: Vec<_> = self.clients.iter().filter(|client| !client.answered).collect();
            if waiting.is_empty() {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("the job has not answered within {} s", limit.as_secs_f32()));
            }
            let mut polled: Vec<_> = waiting
                .iter()
                .filter_map(|client| client.fd())
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut polled, timeout);
        }
    }

    /// The job goes on here, after what [`JobApi::before`] has announced.
    pub fn after(&mut self) {
        let line = format!("after generation={}", self.generation);
        for client in self.clients.iter_mut().filter(|client| client.called) {
            (client.called, client.answered) = (false, true);
            client.say(&line);
        }
    }

    fn welcome(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            // The end of the connection says it all.
            if self.clients.len() >= MOST {
                continue;
            }
            let hello = format!("hello protocol=1 generation={} id={}", self.generation, self.id);
            self.clients.extend(Client::new(stream, self.next, &hello));
            self.next += 1;
        }
    }

    /// What was said before the checkpoint counts: one who has forbidden it has been answered.
    fn attend_nothing_new(&mut self) {
        self.welcome();
        for client in &mut self.clients {
            while let Some(line) = client.hear() {
                if let Line::Wish(_) = line {
                    client.say("error a checkpoint is being taken already");
                }
            }
        }
    }

    fn tell_asker(&mut self, line: &str) {
        if let Some(client) = self.clients.iter_mut().find(|client| Some(client.number) == self.asker) {
            client.say(line);
        }
    }
}

/// Shows a job the socket at `path`, and says in its environment where.
pub fn show(spec: &mut Spec, path: &Path) {
    let mut mount = Mount::default();
    mount
        .set_destination(PLACE.into())
        .set_source(Some(path.into()))
        .set_typ(Some("bind".into()))
        .set_options(Some(["rbind", "rprivate"].map(str::to_owned).to_vec()));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.push(mount);
    spec.set_mounts(Some(mounts));
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        env.retain(|old| !old.starts_with(&format!("{VARIABLE}=")));
        env.push(format!("{VARIABLE}={PLACE}"));
        process.set_env(Some(env));
    }
}

#[cfg(test)]
mod tests;
