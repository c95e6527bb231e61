//! Reads the kernel's log: complaints that follow an update are damage.
//!
//! Before the first update they are not: a slow host makes a kernel complain of itself.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use crate::finding::Finding;

/// The kernel's log, a record a read (Documentation/ABI/testing/dev-kmsg).
const LOG: &str = "/dev/kmsg";
/// The largest record.
const RECORD: usize = 8192;

/// A complaint that counts from [`LONG_INTERRUPT_NS`] on: an update may pause the guest within the
/// interrupt, and on an emulated CPU one takes milliseconds anyway.
const SLOW_INTERRUPT: &str = "hrtimer: interrupt took";
/// Longer than any blackout that passes, in nanoseconds.
const LONG_INTERRUPT_NS: u64 = 2_000_000_000;

/// Complaints of a kernel: all of these words are in the line. Each has what it means after an update.
const COMPLAINTS: [(&[&str], &str); 20] = [
    (&["BUG:"], "a state that the kernel holds impossible, such as a bad page or a bad pointer"),
    (&["WARNING:"], "a state that it did not expect"),
    (&["Oops"], "an exception in the kernel"),
    (&["general protection fault"], "a register or a segment was lost"),
    (&["unable to handle"], "a page table or a pointer was damaged"),
    (&["double fault"], "a stack or a TSS was lost"),
    (&["soft lockup"], "a CPU did not schedule: a lost interrupt, or time that jumped"),
    (&["hard LOCKUP"], "a CPU took no interrupts"),
    (
        &["rcu", "stall"],
        "a CPU reported no quiescent state: a lost tick or IPI, or time that jumped",
    ),
    (&["blocked for more than"], "a task waits for a wakeup that was lost"),
    (&["clocksource", "unstable"], "a clock was given up because another disagrees"),
    (&["clocksource", "skewed"], "the TSC and another clock disagree, as newer kernels call it"),
    (&["TSC", "unstable"], "the TSC jumped, or differs between CPUs"),
    (&["TSC ADJUST", "differs"], "the TSC of one CPU was moved"),
    (&[SLOW_INTERRUPT], "an interrupt of the timer took longer than a blackout may"),
    (&["time went backwards"], "a clock stepped back"),
    (&["No irq handler for vector"], "an interrupt arrived at the wrong vector"),
    (&["Disabling IRQ"], "an interrupt line is stuck"),
    (&["Spurious LAPIC timer"], "a timer fired that was not armed"),
    (&["lost", "tick"], "interrupts of a timer were lost"),
];

/// A line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line<'a> {
    from_kernel: bool,
    text: &'a str,
}

impl<'a> Line<'a> {
    /// Parses a record: `priority,sequence,time,flags;text`, then lines with details.
    fn parse(record: &'a str) -> Option<Self> {
        let (head, rest) = record.split_once(';')?;
        let priority: u32 = head.split(',').next()?.parse().ok()?;
        let text = rest.lines().next().unwrap_or_default();
        Some(Self { from_kernel: priority >> 3 == 0, text })
    }
}

/// Returns what a record of the log complains of, if it does.
fn judge(record: &str) -> Result<(), Finding> {
    let Some(Line { from_kernel: true, text }) = Line::parse(record) else { return Ok(()) };
    let complains = |words: &&[&str]| words.iter().all(|word| text.contains(word));
    match COMPLAINTS.iter().find(|(words, _)| complains(words)) {
        Some(_) if is_short_interrupt(text) => Ok(()),
        Some((_, meaning)) => Err(Finding::text(format!("kernel log: {text} ({meaning})"))),
        None => Ok(()),
    }
}

/// Whether `text` complains of an interrupt that was shorter than [`LONG_INTERRUPT_NS`].
fn is_short_interrupt(text: &str) -> bool {
    let Some((_, took)) = text.split_once(SLOW_INTERRUPT) else { return false };
    let digits = took.trim_start().split(' ').next().unwrap_or_default();
    digits.parse::<u64>().is_ok_and(|ns| ns < LONG_INTERRUPT_NS)
}

/// The kernel's log, opened for reading.
pub struct KernelLog {
    file: File,
    record: Vec<u8>,
}

impl KernelLog {
    /// Opens the log at its beginning, or at its end.
    pub fn open(from_start: bool) -> io::Result<Self> {
        let mut file = File::open(LOG)?;
        if !from_start {
            file.seek(SeekFrom::End(0))?;
        }
        Ok(Self { file, record: vec![0; RECORD] })
    }

    /// Waits for the next record. Judges it if `counts`, called once it is there, says so.
    pub fn next(&mut self, counts: impl FnOnce() -> bool) -> Result<(), Finding> {
        let length = match self.file.read(&mut self.record) {
            Ok(length) => length,
            // Records were overwritten before they were read.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => return Ok(()),
            Err(error) => return Err(Finding::call("read the kernel's log", error)),
        };
        let record = String::from_utf8_lossy(&self.record[..length]);
        if counts() { judge(&record) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("0,1,5,-;BUG: kernel NULL pointer dereference, address: 0000000000000008")]
    #[case("4,1,5,-;WARNING: CPU: 1 PID: 7 at kernel/time/timekeeping.c:273 timekeeping_debug")]
    #[case("0,1,5,-;Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI")]
    #[case("0,1,5,-;Oops: general protection fault, probably for non-canonical address")]
    #[case("0,1,5,-;watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [linux-agent:1]")]
    #[case("0,1,5,-;watchdog: Watchdog detected hard LOCKUP on cpu 1")]
    #[case("3,1,5,-;rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:")]
    #[case("3,1,5,-;rcu: INFO: rcu_preempt self-detected stall on CPU")]
    #[case("3,1,5,-;INFO: task kworker/0:1:9 blocked for more than 120 seconds.")]
    #[case(
        "4,1,5,-;clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable because the skew is too large:"
    )]
    #[case("4,1,5,-;clocksource:                       'tsc' is skewed 20 ms over 500 ms")]
    #[case("4,1,5,-;tsc: Marking TSC unstable due to clocksource watchdog")]
    #[case("4,1,5,-;[Firmware Bug]: TSC ADJUST differs: CPU0 0 --> -1. Restoring")]
    #[case("4,1,5,-;hrtimer: interrupt took 2345678901 ns")]
    #[case("4,1,5,-;hrtimer: interrupt took ages")]
    #[case("4,1,5,-;__common_interrupt: 1.55 No irq handler for vector")]
    #[case("0,1,5,-;Disabling IRQ #4")]
    #[case("4,1,5,-;Spurious LAPIC timer interrupt on cpu 0")]
    fn complaints_of_the_kernel_are_damage(#[case] record: &str) {
        let text = judge(record).unwrap_err().text;
        assert!(text.starts_with(&format!("kernel log: {}", &record[8..])), "{text}");
    }

    #[rstest]
    #[case::plain("6,1,5,-;clocksource: Switched to clocksource kvm-clock")]
    #[case::of_the_agent("12,1,5,-;BUG: written by a process")]
    #[case::slow_host("4,1,5,-;perf: interrupt took too long (2534 > 2500), lowering rate")]
    #[case::paused_in_an_interrupt("4,1,5,-;hrtimer: interrupt took 15640001 ns")]
    #[case::detail("6,1,5,-;usb 1-1: new device\n SUBSYSTEM=BUG: no line of its own")]
    #[case::no_record("BUG: without a head")]
    fn other_records_are_not(#[case] record: &str) {
        assert_eq!(judge(record), Ok(()));
    }

    #[test]
    fn every_complaint_has_a_meaning() {
        for (index, (words, meaning)) in COMPLAINTS.iter().enumerate() {
            assert!(!meaning.is_empty() && !words.is_empty(), "{words:?}");
            let line = format!("4,1,5,-;{}", words.join(" "));
            let found = judge(&line).unwrap_err().text;
            let first = COMPLAINTS.iter().position(|(_, other)| found.contains(other));
            assert_eq!(first, Some(index), "an earlier entry hides {words:?}");
        }
    }
}
