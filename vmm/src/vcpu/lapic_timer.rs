//! What the LAPIC's registers say of its timer, and what they leave out.
//!
//! KVM keeps an interrupt that is due where no ioctl reads it until the vCPU runs: of a periodic timer
//! the last tick would be lost. And it lets a one-shot timer that is restored with nothing left on it
//! fire at once, whether or not it had. So what is due is made to arrive before the save
//! (`super::settle`). In TSC-deadline mode there is no such gap: the deadline stays in its MSR until
//! the interrupt has arrived, and one that has passed fires as soon as it is restored.

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

/// The 32 bits at `offset`.
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

/// A one-shot timer was started and has run down.
fn has_run_down(lapic: &kvm_lapic_state) -> bool {
    mode(lapic) == Mode::OneShot
        && register(lapic, INITIAL_COUNT) != 0
        && register(lapic, CURRENT_COUNT) == 0
}

/// A periodic timer ticks, and is heard.
fn is_ticking(lapic: &kvm_lapic_state) -> bool {
    mode(lapic) == Mode::Periodic
        && register(lapic, INITIAL_COUNT) != 0
        && register(lapic, LVT_TIMER) & MASKED == 0
        && register(lapic, SPIV) & SPIV_ENABLED != 0
}

/// The timer's interrupt has arrived and not been taken.
pub(super) fn is_requested(lapic: &kvm_lapic_state) -> bool {
    let vector = register(lapic, LVT_TIMER) & 0xff;
    register(lapic, IRR + (vector / 32) as usize * 0x10) >> (vector % 32) & 1 == 1
}

/// How long ago a periodic timer ticked, if it ticked only once since: KVM counts nanoseconds.
fn since_tick(lapic: &kvm_lapic_state) -> Duration {
    let [initial, current] = [INITIAL_COUNT, CURRENT_COUNT].map(|at| register(lapic, at));
    let divide = register(lapic, DIVIDE);
    let shift = ((divide & 0b11 | divide >> 1 & 0b100) + 1) & 0b111;
    Duration::from_nanos(u64::from(initial.saturating_sub(current)) << shift)
}

/// An interrupt of the timer may be due that `lapic` does not show.
pub(super) fn may_be_due(lapic: &kvm_lapic_state) -> bool {
    has_run_down(lapic) || is_ticking(lapic)
}

/// Nothing became due between a look at the LAPIC (`before`), after which all that was due has
/// arrived, and its save, which came `later`, or less.
pub(super) fn is_settled(
    before: &kvm_lapic_state,
    saved: &kvm_lapic_state,
    later: Duration,
) -> bool {
    if is_ticking(saved) {
        // A tick more makes no difference to one that has not been taken.
        is_ticking(before) && (is_requested(saved) || since_tick(saved) > later)
    } else {
        has_run_down(before) || !has_run_down(saved)
    }
}

/// Makes of what has settled what is to be restored.
pub(super) fn to_save(lapic: &mut kvm_lapic_state) {
    if has_run_down(lapic) {
        // Never started: it must not fire again.
        set_register(lapic, INITIAL_COUNT, 0);
    }
    if is_ticking(lapic) && register(lapic, CURRENT_COUNT) == 0 && !is_requested(lapic) {
        // The processor's own timer was to tick at the next entry. With nothing left on it KVM would
        // begin a whole period.
        set_register(lapic, CURRENT_COUNT, 1);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const PERIODIC: u32 = 1 << 17;
    pub(in super::super) const VECTOR: u32 = 0x40;
    const DEADLINE: u32 = 1 << 18;

    /// Enabled, with these registers, counting nanoseconds.
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
        assert!(has_run_down(&lapic(VECTOR, 0xffff_ff80, 0)));
        assert!(!has_run_down(&lapic(VECTOR, 0, 0)));
        assert!(!has_run_down(&lapic(VECTOR, 1000, 0x80)));
        assert!(!has_run_down(&lapic(VECTOR | PERIODIC, 1000, 0)));
        assert!(!has_run_down(&lapic(VECTOR | DEADLINE, 1000, 0)));
    }

    #[test]
    fn a_stopped_timer_has_not_run_down() {
        let mut lapic = lapic(VECTOR, 1000, 0);
        to_save(&mut lapic);
        assert!(!has_run_down(&lapic));
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
    fn a_timer_that_ran_down_after_the_look_has_not_settled() {
        let (runs, down) = (lapic(VECTOR, 1000, 500), lapic(VECTOR, 1000, 0));
        assert!(!is_settled(&runs, &down, US));
        assert!(is_settled(&down, &down, US) && is_settled(&runs, &runs, US));
    }

    #[test]
    fn a_tick_after_the_look_counts_unless_one_waits_already() {
        let at = |current| lapic(VECTOR | PERIODIC, 10_000, current);
        assert!(is_settled(&at(9_000), &at(8_000), US));
        assert!(!is_settled(&at(100), &at(9_500), US));
        assert!(is_settled(&at(100), &requested(at(9_500)), US));
        let stopped = lapic(VECTOR | PERIODIC | MASKED, 10_000, 5_000);
        assert!(!is_settled(&stopped, &at(5_000), US));
    }

    #[test]
    fn the_divisor_counts() {
        let mut lapic = lapic(VECTOR | PERIODIC, 1_000, 0);
        let by = |lapic: &mut kvm_lapic_state, value| {
            set_register(lapic, DIVIDE, value);
            since_tick(lapic).as_nanos()
        };
        assert_eq!([0b1011, 0b0000, 0b1010].map(|d| by(&mut lapic, d)), [1_000, 2_000, 128_000]);
    }

    #[test]
    fn a_tick_of_the_processors_own_timer_is_not_put_off_by_a_period() {
        let current = |mut lapic| {
            to_save(&mut lapic);
            register(&lapic, CURRENT_COUNT)
        };
        assert_eq!(current(lapic(VECTOR | PERIODIC, 1_000, 0)), 1);
        assert_eq!(current(requested(lapic(VECTOR | PERIODIC, 1_000, 0))), 0);
        assert_eq!(current(lapic(VECTOR | PERIODIC, 1_000, 7)), 7);
    }
}
