//! The thread of every vCPU that sends its heartbeats, and compares its clocks each time.

use std::arch::x86_64::_rdtsc;
use std::sync::Barrier;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Release, SeqCst},
};
use std::thread;
use std::time::Duration;

use crate::clocks::{Clocks, Rate};
use crate::finding::Finding;
use crate::mailbox::{Mailbox, damage_kind};
use crate::page;
use crate::part;
use crate::reporting::{self, Pulse, Report};

/// TSC ticks that vCPUs may be apart: fewer than a write takes to reach another vCPU.
const SKEW: u64 = 2000;

/// The latest TSC value that any vCPU has read.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// Reads the TSC.
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux allows it to processes.
    unsafe { _rdtsc() }
}

/// Runs the thread of vCPU `cpu`. With the clocks' `rate`, it compares them with the TSC.
pub fn run(
    page: &'static Mailbox,
    cpu: usize,
    rest: Duration,
    rate: Option<Rate>,
    ready: &Barrier,
) -> ! {
    if let Err(error) = part::pin(cpu).and_then(|()| prefer_to_others()) {
        let report =
            Report { kind: damage_kind::CPU_MISSING, detail: cpu as u64, ..Report::default() };
        let text = format!("cannot run a real-time thread on CPU {cpu}: {error}");
        page::report(page, cpu, &Finding { report, text });
    }
    let shown = &page.cpus[cpu];
    shown.online.store(1, Release);
    page.cpus_online.fetch_add(1, Release);
    ready.wait();

    let mut pulse = Pulse::new(tsc());
    let mut clocks = rate.map(Clocks::new);
    while !reporting::is_damaged(page) {
        // In this order: what another vCPU stores later may be later.
        let latest = LATEST.load(SeqCst);
        let now = tsc();
        LATEST.fetch_max(now, SeqCst);
        if let Err(before) = pulse.beat(page, shown, now) {
            page::report(page, cpu, &back(before, now, "on one CPU"));
        }
        if is_behind(now, latest) {
            page::report(page, cpu, &back(latest, now, "behind another CPU"));
        }
        if let Some(clocks) = &mut clocks
            && let Err(finding) = clocks.compare(page)
        {
            page::report(page, cpu, &finding);
        }
        thread::sleep(rest);
    }
    page::stop()
}

/// Gives the calling thread priority over all others, so that its gaps are those of the vCPU.
fn prefer_to_others() -> nix::Result<()> {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter is valid for the call; 0 is the calling thread.
    nix::errno::Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &lowest) })
        .map(drop)
}

/// Whether a TSC value is less than `latest`, which another vCPU has read before.
fn is_behind(now: u64, latest: u64) -> bool {
    now + SKEW < latest
}

fn back(expected: u64, found: u64, how: &str) -> Finding {
    let report = Report { kind: damage_kind::TSC_BACK, expected, found, ..Report::default() };
    Finding { report, text: format!("the TSC went back by {}, {how}", expected - found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tsc_behind_another_cpu_is_noticed() {
        assert!(!is_behind(10_000 - SKEW, 10_000));
        assert!(is_behind(9_999 - SKEW, 10_000));
    }
}
