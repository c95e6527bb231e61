//! Writes the mailbox: its setup at boot, the heartbeats of a vCPU, the record of damage.
//!
//! Part of the guests' runtime and of the agent that runs in a Linux guest.

use core::fmt::{self, Write};
use core::sync::atomic::{
    AtomicU8, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
};

use super::mailbox::{CpuMailbox, MAILBOX_LAYOUT, MAILBOX_MAGIC, Mailbox, damage_state, phase};

/// The details of damage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// A [`super::mailbox::damage_kind`] value.
    pub kind: u32,
    /// Guest-physical address.
    pub address: u64,
    /// What was expected there.
    pub expected: u64,
    /// What was found.
    pub found: u64,
    /// A detail of the kind.
    pub detail: u64,
}

/// Clears the mailbox and fills in what is known at boot, the magic last. Low RAM may contain
/// anything, including the mailbox from before a reset.
pub fn set_up(page: &Mailbox, name: &str, seed: u64) {
    let is_mailbox =
        page.magic.load(Acquire) == MAILBOX_MAGIC && page.layout.load(Relaxed) == MAILBOX_LAYOUT;
    let boots = if is_mailbox { page.boots.load(Relaxed) } else { 0 };

    page.magic.store(0, SeqCst);
    // SAFETY: the same page as plain words; all fields are atomics, so this is not a data race.
    let words: &[AtomicU64; 512] = unsafe { &*(&raw const *page).cast() };
    words.iter().for_each(|word| word.store(0, Relaxed));

    page.layout.store(MAILBOX_LAYOUT, Relaxed);
    for (shown, byte) in page.name.iter().zip(name.bytes()) {
        shown.store(byte, Relaxed);
    }
    page.boots.store(boots.wrapping_add(1), Relaxed);
    page.seed.store(seed, Relaxed);
    page.magic.store(MAILBOX_MAGIC, Release);
}

/// Writes the record of the first damage; does nothing if there is one.
pub fn record(page: &Mailbox, cpu: u32, what: Report, text: fmt::Arguments<'_>) {
    let record = &page.damage;
    let claim =
        record.state.compare_exchange(damage_state::NONE, damage_state::WRITING, AcqRel, Relaxed);
    if claim.is_err() {
        return;
    }
    record.kind.store(what.kind, Relaxed);
    record.cpu.store(cpu, Relaxed);
    record.address.store(what.address, Relaxed);
    record.expected.store(what.expected, Relaxed);
    record.found.store(what.found, Relaxed);
    record.detail.store(what.detail, Relaxed);
    write_text(&record.text, text);
    record.state.store(damage_state::VALID, Release);
    page.phase.store(phase::DAMAGED, Release);
}

/// Returns true once any vCPU has found damage.
#[inline]
pub fn is_damaged(page: &Mailbox) -> bool {
    page.damage.state.load(Acquire) != damage_state::NONE
}

/// Writes a text into a field of the mailbox. A text that does not fit is truncated.
pub fn write_text(field: &[AtomicU8], text: fmt::Arguments<'_>) {
    // Nothing else can fail.
    let _ = Text { bytes: field, len: 0 }.write_fmt(text);
}

struct Text<'a> {
    bytes: &'a [AtomicU8],
    len: usize,
}

impl Write for Text<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            self.bytes.get(self.len).ok_or(fmt::Error)?.store(byte, Relaxed);
            self.len += 1;
        }
        Ok(())
    }
}

/// The heartbeats of one vCPU. It has one writer.
pub struct Pulse {
    heartbeat: u64,
    tsc: u64,
    gap: u64,
    gap_ack: u32,
}

impl Pulse {
    /// The pulse of a vCPU that begins at TSC `now`.
    pub fn new(now: u64) -> Self {
        Self { heartbeat: 0, tsc: now, gap: 0, gap_ack: 0 }
    }

    /// Counts a heartbeat at TSC `now`; the error is the TSC of the one before, if that is later.
    #[inline]
    pub fn beat(&mut self, page: &Mailbox, shown: &CpuMailbox, now: u64) -> Result<(), u64> {
        if now < self.tsc {
            return Err(self.tsc);
        }
        let gap = now - self.tsc;
        self.tsc = now;

        let request = page.gap_request.load(Relaxed);
        if request != self.gap_ack {
            self.forget_gap(shown);
            self.gap_ack = request;
            shown.gap_ack.store(request, Release);
        } else if gap > self.gap {
            self.gap = gap;
            shown.gap_tsc.store(now, Relaxed);
            shown.gap.store(gap, Release);
        }

        // There is one writer, so the addition need not be atomic.
        self.heartbeat += 1;
        shown.tsc.store(now, Relaxed);
        shown.heartbeat.store(self.heartbeat, Release);
        Ok(())
    }

    /// Resets the largest gap.
    pub fn forget_gap(&mut self, shown: &CpuMailbox) {
        self.gap = 0;
        shown.gap.store(0, Relaxed);
        shown.gap_tsc.store(0, Relaxed);
    }
}
