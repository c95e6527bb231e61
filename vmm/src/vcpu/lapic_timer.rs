//! What the LAPIC's registers show of its timer, and what they do not.
//!
//! KVM keeps a due interrupt where no ioctl reads it until the vCPU runs, so the last tick of a
//! periodic timer would be lost. A one-shot timer that is restored with a current count of 0 fires
//! at once, whether or not it had fired before. Due interrupts are therefore delivered before the
//! save (`super::settle`). TSC-deadline mode has no such gap: the deadline stays in its MSR until
//! the interrupt has arrived, and a deadline in the past fires as soon as it is restored.

use std::ffi::c_char;
use std::time::Duration;

use kvm_bindings::kvm_lapic_state;

const SPIV: usize = 0xf0;
const SPIV_ENABLED: u32 = 1 << 8;
const IRR: usize = 0x200;
const LVT_TIMER: usize = 0x320;
const MASKED: u32 = 1 << 16;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

/// Returns the 32-bit register at `offset`.
pub(super) fn register(lapic: &kvm_lapic_state, offset: usize) -> u32 {
    let bytes = &lapic.regs[offset..offset + 4];
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte as u8))
}

fn set_register(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (place, byte) in lapic.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
        *place = byte as c_char;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    OneShot,
    Periodic,
    Other,
}

fn mode(lapic: &kvm_lapic_state) -> Mode {
    match register(lapic, LVT_TIMER) >> 17 & 0b11 {
        0 => Mode::OneShot,
        1 => Mode::Periodic,
        _ => Mode::Other,
    }
}

/// Whether a one-shot timer was started and has expired.
fn has_expired(lapic: &kvm_lapic_state) -> bool {
    mode(lapic) == Mode::OneShot
        && register(lapic, INITIAL_COUNT) != 0
        && register(lapic, CURRENT_COUNT) == 0
}

/// Whether a periodic timer ticks, unmasked and with the LAPIC enabled.
fn is_ticking(lapic: &kvm_lapic_state) -> bool {
    mode(lapic) == Mode::Periodic
        && register(lapic, INITIAL_COUNT) != 0
        && register(lapic, LVT_TIMER) & MASKED == 0
        && register(lapic, SPIV) & SPIV_ENABLED != 0
}

/// Whether the timer's interrupt is pending in the IRR.
pub(super) fn is_requested(lapic: &kvm_lapic_state) -> bool {
    let vector = register(lapic, LVT_TIMER) & 0xff;
    register(lapic, IRR + (vector / 32) as usize * 0x10) >> (vector % 32) & 1 == 1
}

/// Returns the time since a periodic timer's last tick: KVM counts nanoseconds.
fn since_tick(lapic: &kvm_lapic_state) -> Duration {
    let [initial, current] = [INITIAL_COUNT, CURRENT_COUNT].map(|at| register(lapic, at));
    let divide = register(lapic, DIVIDE);
    let shift = ((divide & 0b11 | divide >> 1 & 0b100) + 1) & 0b111;
    Duration::from_nanos(u64::from(initial.saturating_sub(current)) << shift)
}

/// Whether a timer interrupt may be due that `lapic` does not show.
pub(super) fn may_be_due(lapic: &kvm_lapic_state) -> bool {
    has_expired(lapic) || is_ticking(lapic)
}

/// Whether a one-shot timer has run down and its interrupt may not have become due yet.
pub(super) fn may_be_late(lapic: &kvm_lapic_state) -> bool {
    has_expired(lapic) && !is_requested(lapic)
}

/// Whether no interrupt became due between the first read of the LAPIC (`before`), after which all
/// due interrupts were delivered, and its save, at most `later` afterwards.
pub(super) fn is_settled(
    before: &kvm_lapic_state,
    saved: &kvm_lapic_state,
    later: Duration,
) -> bool {
    if is_ticking(saved) {
        // Another tick makes no difference while one is still pending.
        is_ticking(before) && (is_requested(saved) || since_tick(saved) > later)
    } else {
        has_expired(before) || !has_expired(saved)
    }
}

/// Turns a settled LAPIC into the one to restore.
pub(super) fn to_save(lapic: &mut kvm_lapic_state) {
    if has_expired(lapic) {
        // Saved as never started: it must not fire again.
        set_register(lapic, INITIAL_COUNT, 0);
    }
    if is_ticking(lapic) && register(lapic, CURRENT_COUNT) == 0 && !is_requested(lapic) {
        // The processor's own timer was about to tick at the next VM entry. With a count of 0, KVM
        // would start a whole period.
        set_register(lapic, CURRENT_COUNT, 1);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const PERIODIC: u32 = 1 << 17;
    pub(in super::super) const VECTOR: u32 = 0x40;
    const DEADLINE: u32 = 1 << 18;

    /// An enabled LAPIC with these registers, counting nanoseconds.
    pub(in super::super) fn lapic(lvt: u32, initial: u32, current: u32) -> kvm_lapic_state {
        let mut lapic = kvm_lapic_state::default();
        for (offset, value) in [
            (SPIV, SPIV_ENABLED | 0xff),
            (LVT_TIMER, lvt),
            (INITIAL_COUNT, initial),
            (CURRENT_COUNT, current),
            (DIVIDE, 0b1011),
        ] {
            set_register(&mut lapic, offset, value);
        }
        lapic
    }

    pub(in super::super) fn requested(mut lapic: kvm_lapic_state) -> kvm_lapic_state {
        set_register(&mut lapic, IRR + 0x20, 1);
        lapic
    }

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn only_a_one_shot_timer_runs_down() {
        assert!(has_expired(&lapic(VECTOR, 0xffff_ff80, 0)));
        assert!(!has_expired(&lapic(VECTOR, 0, 0)));
        assert!(!has_expired(&lapic(VECTOR, 1000, 0x80)));
        assert!(!has_expired(&lapic(VECTOR | PERIODIC, 1000, 0)));
        assert!(!has_expired(&lapic(VECTOR | DEADLINE, 1000, 0)));
    }

    #[test]
    fn a_stopped_timer_has_not_run_down() {
        let mut lapic = lapic(VECTOR, 1000, 0);
        to_save(&mut lapic);
        assert!(!has_expired(&lapic));
        assert_eq!(register(&lapic, LVT_TIMER), VECTOR);
    }

    #[test]
    fn what_cannot_tick_is_never_due() {
        assert!(may_be_due(&lapic(VECTOR | PERIODIC, 1000, 500)));
        assert!(!may_be_due(&lapic(VECTOR | PERIODIC | MASKED, 1000, 500)));
        assert!(!may_be_due(&lapic(VECTOR | PERIODIC, 0, 0)));
        assert!(!may_be_due(&lapic(VECTOR | DEADLINE, 0, 0)));
        assert!(!may_be_due(&lapic(VECTOR, 1000, 500)));
        let mut disabled = lapic(VECTOR | PERIODIC, 1000, 500);
        set_register(&mut disabled, SPIV, 0xff);
        assert!(!may_be_due(&disabled));
    }

    #[test]
    fn timer_that_expires_after_the_first_read_is_not_settled() {
        let (runs, down) = (lapic(VECTOR, 1000, 500), lapic(VECTOR, 1000, 0));
        assert!(!is_settled(&runs, &down, US));
        assert!(is_settled(&down, &down, US) && is_settled(&runs, &runs, US));
    }

    #[test]
    fn tick_after_the_first_read_is_not_settled_unless_one_is_pending() {
        let at = |current| lapic(VECTOR | PERIODIC, 10_000, current);
        assert!(is_settled(&at(9_000), &at(8_000), US));
        assert!(!is_settled(&at(100), &at(9_500), US));
        assert!(is_settled(&at(100), &requested(at(9_500)), US));
        let stopped = lapic(VECTOR | PERIODIC | MASKED, 10_000, 5_000);
        assert!(!is_settled(&stopped, &at(5_000), US));
    }

    #[test]
    fn time_since_tick_uses_the_divisor() {
        let mut lapic = lapic(VECTOR | PERIODIC, 1_000, 0);
        let by = |lapic: &mut kvm_lapic_state, value| {
            set_register(lapic, DIVIDE, value);
            since_tick(lapic).as_nanos()
        };
        assert_eq!([0b1011, 0b0000, 0b1010].map(|d| by(&mut lapic, d)), [1_000, 2_000, 128_000]);
    }

    #[test]
    fn hardware_timer_tick_is_not_delayed_by_a_period() {
        let current = |mut lapic| {
            to_save(&mut lapic);
            register(&lapic, CURRENT_COUNT)
        };
        assert_eq!(current(lapic(VECTOR | PERIODIC, 1_000, 0)), 1);
        assert_eq!(current(requested(lapic(VECTOR | PERIODIC, 1_000, 0))), 0);
        assert_eq!(current(lapic(VECTOR | PERIODIC, 1_000, 7)), 7);
    }
}
