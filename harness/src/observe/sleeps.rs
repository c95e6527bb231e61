//! Counts how often threads went to sleep, as the kernel counts it.
//!
//! A vCPU that executes its guest without a halt never sleeps; one that is paused does. Unlike a
//! gap between heartbeats, the count does not grow with the load of the host.

use procfs::FromRead;
use procfs::process::Status;

/// Returns how often the threads `tids` of process `pid` have gone to sleep by themselves since
/// they were started (`voluntary_ctxt_switches`, proc_pid_status(5)); `None` if one is gone.
pub fn count(pid: i32, tids: impl IntoIterator<Item = i64>) -> Option<u64> {
    let of_thread = |tid| {
        let status = Status::from_file(format!("/proc/{pid}/task/{tid}/status")).ok()?;
        status.voluntary_ctxt_switches
    };
    tids.into_iter().map(of_thread).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_sleep_is_counted() {
        let (pid, tid) = (std::process::id() as i32, nix::unistd::gettid().as_raw().into());
        let before = count(pid, [tid]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        assert!(count(pid, [tid]).unwrap() > before);
        assert_eq!(count(pid, [tid, 0]), None);
    }
}
