//! Reports the first damage of the machine; contains the panic handler.

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{
    AtomicBool, AtomicU8,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use super::mailbox::{Damage, damage_kind, damage_state, phase};
use super::{mailbox, shim};

/// The details of damage.
#[derive(Clone, Copy, Default)]
pub struct Report {
    /// A [`damage_kind`] value.
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

/// Records the damage, unless there is an earlier record, and stops this vCPU; the others stop at
/// their next heartbeat.
pub fn report(what: Report, text: fmt::Arguments<'_>) -> ! {
    let page = mailbox();
    let record = &page.damage;
    if claim(record) {
        record.kind.store(what.kind, Relaxed);
        record.cpu.store(shim::cpu_index() as u32, Relaxed);
        record.address.store(what.address, Relaxed);
        record.expected.store(what.expected, Relaxed);
        record.found.store(what.found, Relaxed);
        record.detail.store(what.detail, Relaxed);
        // A text that does not fit is truncated; nothing else can fail.
        let _ = Text { bytes: &record.text, len: 0 }.write_fmt(text);
        record.state.store(damage_state::VALID, Release);
        page.phase.store(phase::DAMAGED, Release);
    }
    shim::stop()
}

/// True once any vCPU has found damage.
#[inline]
pub fn is_damaged() -> bool {
    mailbox().damage.state.load(Acquire) != damage_state::NONE
}

fn claim(record: &Damage) -> bool {
    record
        .state
        .compare_exchange(damage_state::NONE, damage_state::WRITING, AcqRel, Relaxed)
        .is_ok()
}

/// Checks that the value called `name` is as `expected`; otherwise records damage and stops.
#[inline]
pub fn verify(expected: u64, found: u64, name: fmt::Arguments<'_>) {
    if expected != found {
        wrong(expected, found, name);
    }
}

/// Records a wrong value as damage and stops.
#[cold]
pub fn wrong(expected: u64, found: u64, name: fmt::Arguments<'_>) -> ! {
    report(Report { kind: damage_kind::VALUE, expected, found, ..Report::default() }, name)
}

/// Records a feature that the command line requires and the host lacks; the first record stays.
/// Call it in `prepare`.
pub fn unavailable(what: fmt::Arguments<'_>) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, AcqRel) {
        // A text that does not fit is truncated; nothing else can fail.
        let _ = Text { bytes: &mailbox().unavailable, len: 0 }.write_fmt(what);
    }
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

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let what = Report { kind: damage_kind::PANIC, ..Report::default() };
    match info.location() {
        Some(at) => report(what, format_args!("{} ({}:{})", info.message(), at.file(), at.line())),
        None => report(what, format_args!("{}", info.message())),
    }
}
