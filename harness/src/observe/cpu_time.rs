//! How long threads have run on a CPU, as the kernel counts it.
//!
//! A stopped vCPU does not run at all, however busy the host is.

use std::fs;
use std::time::Duration;

use super::process::Stat;

/// Returns how long the threads `tids` of process `pid` have run since they were started
/// (`/proc/PID/task/TID/schedstat`, sched-stats.rst of the kernel); `None` if one is gone or the
/// kernel does not count it.
pub fn spent(pid: i32, tids: impl IntoIterator<Item = i64>) -> Option<Duration> {
    let of_thread = |tid| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    };
    tids.into_iter().map(of_thread).sum()
}

/// Whether all of the threads `tids` sleep or are gone. One that waits for a CPU does not sleep.
pub fn asleep(tids: impl IntoIterator<Item = i64>) -> bool {
    let sleeps = |tid: i64| {
        let stat = i32::try_from(tid).ok().and_then(|tid| Stat::read(tid).ok());
        stat.is_none_or(|stat| stat.state != 'R')
    };
    tids.into_iter().all(sleeps)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use super::*;
    use crate::observe::poll::{self, Deadline};

    #[test]
    fn work_is_counted() {
        let (pid, tid) = (std::process::id() as i32, nix::unistd::gettid().as_raw().into());
        let before = spent(pid, [tid]).unwrap();
        let until = Instant::now() + Duration::from_millis(20);
        while black_box(Instant::now()) < until {}
        // The kernel updates it at the latest when the thread leaves the CPU.
        std::thread::sleep(Duration::from_millis(1));
        assert!(spent(pid, [tid]).unwrap() > before);
        assert_eq!(spent(pid, [tid, 0]), None);
    }

    #[test]
    fn a_thread_that_runs_is_not_asleep() {
        let own = nix::unistd::gettid().as_raw().into();
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            tell.send(i64::from(nix::unistd::gettid().as_raw())).unwrap();
            let _ = ended.recv();
        });
        let tid = told.recv().unwrap();
        let deadline = Deadline::after(Duration::from_secs(10));
        poll::until(deadline, || asleep([tid]).then_some(())).expect("the thread never slept");
        assert!(!asleep([tid, own]));
        drop(end);
        other.join().unwrap();
    }
}
