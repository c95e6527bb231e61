//! Reporting the first damage of the machine, and the panic handler.

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{
    AtomicBool, AtomicU8,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use super::mailbox::{Damage, damage_kind, damage_state, phase};
use super::{mailbox, shim};

/// What a guest knows about a damage.
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

/// Records the damage, unless there is an earlier one, and stops this vCPU; the others stop at
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
        // A text that does not fit is cut; nothing else can fail.
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

/// Records that `name` is `found`, and stops, unless it is as `expected`.
#[inline]
pub fn verify(expected: u64, found: u64, name: fmt::Arguments<'_>) {
    if expected != found {
        wrong(expected, found, name);
    }
}

/// Records a value that is not what it must be.
#[cold]
pub fn wrong(expected: u64, found: u64, name: fmt::Arguments<'_>) -> ! {
    report(Report { kind: damage_kind::VALUE, expected, found, ..Report::default() }, name)
}

/// Says what the host lacks for what the command line asks for; the first to say so is heard.
/// For `prepare`.
pub fn unavailable(what: fmt::Arguments<'_>) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, AcqRel) {
        // A text that does not fit is cut; nothing else can fail.
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
