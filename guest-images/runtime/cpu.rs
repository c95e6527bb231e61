//! The interface of a vCPU for the body of a guest.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::arch::{outb, outl, pause, rdtsc};
use super::boot_info::BootInfo;
use super::damage::{self, Report};
use super::mailbox::{CpuMailbox, DEBUG_EXIT_PORT, TEST_PORT, damage_kind, phase};
use super::options::{End, Options};
use super::reporting::Pulse;
use super::{mailbox, shim};

const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;

/// The running vCPU. The body receives it and passes it along.
pub struct Cpu {
    index: usize,
    info: &'static BootInfo,
    shown: &'static CpuMailbox,
    pulse: Pulse,
}

impl Cpu {
    pub(super) fn new(index: usize, info: &'static BootInfo) -> Self {
        let shown = &mailbox().cpus[index];
        Self { index, info, shown, pulse: Pulse::new(rdtsc()) }
    }

    /// The index of this vCPU, which is its APIC ID.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The options of the command line.
    pub fn options(&self) -> &'static Options {
        &self.info.options
    }

    /// The boot information from the VMM.
    pub fn boot_info(&self) -> &'static BootInfo {
        self.info
    }

    /// This vCPU's part of the mailbox.
    pub fn shown(&self) -> &'static CpuMailbox {
        self.shown
    }

    /// Counts a heartbeat. A body calls this continuously: the time between two calls is a gap.
    /// Does not return once any vCPU has found damage.
    #[inline]
    pub fn tick(&mut self) {
        let now = rdtsc();
        if let Err(before) = self.pulse.beat(mailbox(), self.shown, now) {
            tsc_back(before, now);
        }
        if damage::is_damaged() {
            shim::stop();
        }
    }

    /// Waits, with heartbeats, until the condition holds.
    pub fn tick_until(&mut self, condition: impl Fn() -> bool) {
        while !condition() {
            pause();
            self.tick();
        }
    }

    /// Reports that this vCPU is online.
    pub(super) fn go_online(&mut self) {
        self.shown.online.store(1, Release);
        mailbox().cpus_online.fetch_add(1, Release);
    }

    /// Resets the largest gap.
    pub(super) fn forget_gap(&mut self) {
        self.pulse.forget_gap(self.shown);
    }

    /// Stops at a point at which the host may act. If the command line has `markers=` of at least
    /// `n`, it reports the marker and waits, with heartbeats, until the host lets it continue.
    pub fn marker(&mut self, n: u32) {
        self.marker_with(n, |cpu| {
            pause();
            cpu.tick();
        });
    }

    /// Like [`Self::marker`], but runs `meanwhile` while it waits, which must have heartbeats.
    pub fn marker_with(&mut self, n: u32, mut meanwhile: impl FnMut(&mut Self)) {
        if n > self.info.options.markers {
            return;
        }
        mailbox().marker.fetch_max(n, Release);
        outl(TEST_PORT, n);
        while mailbox().marker_go.load(Acquire) < n {
            meanwhile(self);
        }
    }

    /// Records how late an expected instant was, in TSC ticks.
    pub fn note_lateness(&self, ticks: u64) {
        mailbox().lateness.fetch_max(ticks, Relaxed);
    }

    /// Whether the command line selects this part of the guest; without `test=` it selects all.
    pub fn wants(&self, test: &str) -> bool {
        let wanted = self.info.options.test.as_str();
        wanted.is_empty() || wanted == test
    }

    /// Whether the command line selects this part of the guest and no other.
    pub fn wants_only(&self, test: &str) -> bool {
        self.info.options.test.as_str() == test
    }

    /// Ends the guest as `end=` says, or returns.
    pub fn end(&mut self) {
        match self.info.options.end {
            End::Never => return,
            End::Reset => outb(I8042_COMMAND, I8042_RESET),
            End::Triple => {
                shim::drop_exception_handlers();
                shim::stop();
            }
            End::Exit => {
                mailbox().phase.store(phase::DONE, Release);
                outb(DEBUG_EXIT_PORT, 0);
            }
        }
        // The machine may take a while to act on it.
        self.tick_until(|| false);
    }
}

#[cold]
fn tsc_back(expected: u64, found: u64) -> ! {
    damage::report(
        Report { kind: damage_kind::TSC_BACK, expected, found, ..Report::default() },
        format_args!("the TSC went back by {}", expected - found),
    )
}
