//! The agent's threads: each repeats one round, and all are watched for progress.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::finding::Finding;
use crate::mailbox::Mailbox;
use crate::{page, reporting};

/// How long a thread may make no progress: longer than the slowest host needs for a round.
const STUCK: Duration = Duration::from_secs(120);

/// A thread.
pub struct Part {
    /// What it does.
    pub name: String,
    /// The vCPU that it is pinned to.
    pub cpu: usize,
    /// How long it sleeps between two rounds.
    pub rest: Duration,
}

/// Starts a thread that repeats `round` until any thread has found damage.
pub fn start(
    page: &'static Mailbox,
    part: Part,
    round: impl FnMut() -> Result<(), Finding> + Send + 'static,
) -> io::Result<Watched> {
    begin(page, part, move || Ok(round))
}

/// Starts a thread that repeats the round that `begin` returns, called in that thread.
pub fn begin<Round: FnMut() -> Result<(), Finding>>(
    page: &'static Mailbox,
    part: Part,
    begin: impl FnOnce() -> Result<Round, Finding> + Send + 'static,
) -> io::Result<Watched> {
    let rounds = Arc::new(AtomicU64::new(0));
    let watched = Watched::new(part.name.clone(), rounds.clone(), Instant::now());
    let body = move || {
        if let Err(error) = pin(part.cpu) {
            let what = format!("pin the thread `{}` to CPU {}", part.name, part.cpu);
            page::report(page, part.cpu, &Finding::call(&what, error));
        }
        let begun = begin();
        let mut round = begun.unwrap_or_else(|finding| page::report(page, part.cpu, &finding));
        while !reporting::is_damaged(page) {
            if let Err(finding) = round() {
                page::report(page, part.cpu, &finding);
            }
            rounds.fetch_add(1, Relaxed);
            thread::sleep(part.rest);
        }
        page::stop();
    };
    thread::Builder::new().spawn(body)?;
    Ok(watched)
}

/// Pins the calling thread to a vCPU.
pub fn pin(cpu: usize) -> nix::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only)
}

/// The progress of one thread.
pub struct Watched {
    name: String,
    rounds: Arc<AtomicU64>,
    seen: u64,
    since: Instant,
}

impl Watched {
    fn new(name: String, rounds: Arc<AtomicU64>, now: Instant) -> Self {
        Self { name, rounds, seen: 0, since: now }
    }

    /// Checks that the thread has finished a round not long before `now`.
    pub fn judge(&mut self, now: Instant) -> Result<(), Finding> {
        let rounds = self.rounds.load(Relaxed);
        if rounds != self.seen {
            (self.seen, self.since) = (rounds, now);
            return Ok(());
        }
        let idle = now.saturating_duration_since(self.since);
        if idle < STUCK {
            return Ok(());
        }
        let (name, seconds) = (&self.name, idle.as_secs());
        Err(Finding::text(format!("no progress of `{name}` for {seconds} s after {rounds} rounds")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_without_progress_is_named() {
        let (rounds, start) = (Arc::new(AtomicU64::new(0)), Instant::now());
        let mut watched = Watched::new("pipe".into(), rounds.clone(), start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watched.judge(at(119)), Ok(()));
        rounds.store(7, Relaxed);
        assert_eq!(watched.judge(at(150)), Ok(()));
        assert_eq!(watched.judge(at(269)), Ok(()));
        let text = watched.judge(at(270)).unwrap_err().text;
        assert_eq!(text, "no progress of `pipe` for 120 s after 7 rounds");
    }
}
