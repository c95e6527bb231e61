//! Counts how often threads went to sleep, as the kernel tells.
//!
//! A vCPU that executes its guest without a halt never sleeps; one that is paused does. Unlike a
//! gap between heartbeats, the count does not grow with the load of the host.

use std::fs;

/// Returns how often the threads `tids` of process `pid` have gone to sleep by themselves since
/// they were started (`voluntary_ctxt_switches`, proc_pid_status(5)); `None` if one is gone.
pub fn count(pid: i32, tids: impl IntoIterator<Item = i64>) -> Option<u64> {
    tids.into_iter()
        .map(|tid| of_status(&fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?))
        .sum()
}

fn of_status(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
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

    #[test]
    fn preemption_is_not_a_sleep() {
        let status = "Name:\tvcpu0\nvoluntary_ctxt_switches:\t3\nnonvoluntary_ctxt_switches:\t70\n";
        assert_eq!(of_status(status), Some(3));
        assert_eq!(of_status("Name:\tvcpu0\n"), None);
    }
}
