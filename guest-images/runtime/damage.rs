//! Reports the first damage of the machine; contains the panic handler.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering::AcqRel};

use super::mailbox::damage_kind;
pub use super::reporting::Report;
use super::{mailbox, reporting, shim};

/// Records the damage, unless there is an earlier record, and stops this vCPU; the others stop at
/// their next heartbeat.
pub fn report(what: Report, text: fmt::Arguments<'_>) -> ! {
    reporting::record(mailbox(), shim::cpu_index() as u32, what, text);
    shim::stop()
}

/// True once any vCPU has found damage.
#[inline]
pub fn is_damaged() -> bool {
    reporting::is_damaged(mailbox())
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
        reporting::write_text(&mailbox().unavailable, what);
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
