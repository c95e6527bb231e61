//! How long threads have run on a CPU, as the kernel counts it.
//!
//! A stopped vCPU does not run at all, however busy the host is.

use std::fs;
use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use super::*;

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
}
