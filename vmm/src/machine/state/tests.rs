//! Tests of interrupts that the host raises while a machine is saved.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use ciborium::Value;

use super::*;
use crate::boot;
use crate::devices::serial::{SerialConfig, SerialHost};
use crate::machine::MachineConfig;
use crate::memory::{MemoryConfig, PageKind, RamBlock};

const SPIV: usize = 0xf0;
const IRR: usize = 0x200;
/// Bits of a redirection table's entry.
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;

fn machine() -> Machine {
    let memory = MemoryConfig { size: 4 << 20, share: true, pages: PageKind::Small };
    let config = MachineConfig {
        memory,
        cpus: 1,
        cmdline: String::new(),
        test_device: false,
        devices: Vec::new(),
    };
    let image = boot::kernel(&[(1 << 20, 1, 1)]);
    Machine::new(config, RamBlock::create(memory).unwrap(), Some(image), None).unwrap()
}

fn newest() -> Formats {
    Formats::newest(&SECTIONS)
}

fn null() -> SerialHost {
    SerialHost::open(&SerialConfig::Null, None, &mut |_| None).unwrap()
}

/// Calls `act` with the bytes of the first vCPU's LAPIC in `state`.
fn with_lapic<T>(state: &mut SavedState, act: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut vcpu: Value = state.take(VCPU.0, 0, VCPU.1).unwrap();
    let fields = vcpu.as_map_mut().unwrap();
    let lapic = fields.iter_mut().find(|(key, _)| key.as_text() == Some("lapic")).unwrap();
    let result = act(lapic.1.as_bytes_mut().unwrap());
    state.put(VCPU.0, 0, VCPU.1, &vcpu);
    result
}

/// A machine whose guest has enabled its LAPIC and does not run.
fn with_lapic_enabled() -> Machine {
    let mut first = machine();
    first.boot(null()).unwrap();
    let mut state = first.save(&newest()).unwrap();
    with_lapic(&mut state, |lapic| lapic[SPIV + 1] |= 1);
    let mut machine = machine();
    let state = machine.examine(state).unwrap();
    machine.restore(null(), state, &mut |_| ()).unwrap();
    machine
}

/// Pulses the line as the PIT does, through IOAPIC and PIC. The pin is level-triggered, so that a
/// lost interrupt stays visible.
#[test]
fn no_tick_during_the_save_is_lost() {
    let machine = with_lapic_enabled();
    let vm = &machine.kvm_part.as_ref().unwrap().vm;
    for vector in 0x31..=0xf0_u8 {
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        vm.get_irqchip(&mut chip).unwrap();
        // SAFETY: of the IOAPIC KVM has filled this member of the union.
        unsafe { chip.chip.ioapic.redirtbl[0].bits = LEVEL | u64::from(vector) };
        vm.set_irqchip(&chip).unwrap();
        let (ready, ticking) = (Arc::new(Barrier::new(2)), vm.clone());
        let tick = std::thread::spawn({
            let ready = ready.clone();
            move || {
                ready.wait();
                let began = Instant::now();
                while began.elapsed() < Duration::from_micros(u64::from(vector) * 3 / 2) {
                    std::hint::spin_loop();
                }
                ticking.set_irq_line(0, true).unwrap();
                ticking.set_irq_line(0, false).unwrap();
            }
        });
        ready.wait();
        let mut state = machine.save(&newest()).unwrap();
        tick.join().unwrap();
        let place = IRR + usize::from(vector / 32) * 0x10 + usize::from(vector % 32 / 8);
        let requested = with_lapic(&mut state, |lapic| lapic[place] >> (vector % 8) & 1 == 1);
        let platform: PlatformState = state.take(PLATFORM.0, 0, PLATFORM.1).unwrap();
        // SAFETY: of the IOAPIC KVM has filled this member of the union.
        let waits = unsafe { platform.ioapic.chip.ioapic.redirtbl[0].bits } & REMOTE_IRR != 0;
        assert!(requested || !waits, "vector {vector:#x}");
    }
}

#[test]
fn older_versions_are_written_unless_they_lose_something() {
    let mut machine = machine();
    machine.boot(null()).unwrap();
    let mut older = newest();
    older.sections.remove(BOARD.0);
    older.sections.insert(DEVICES.0, 1);
    let state = machine.save(&older).unwrap();
    assert_eq!((state.version(DEVICES.0, 0), state.version(BOARD.0, 0)), (Some(1), None));
    let restored = machine.examine(state).unwrap();
    assert_eq!(restored.devices, machine.bus().unwrap().state());

    machine.bus().unwrap().press_power_button();
    let error = machine.check_formats(&older).unwrap_err();
    assert_eq!(
        error.to_string(),
        "reads no version of section board that holds the power button or the real-time clock, which \
         this guest has used"
    );
    assert!(matches!(machine.save(&older), Err(MachineError::TooOld(same)) if same == error));
    machine.check_formats(&newest()).unwrap();
}

#[test]
fn step_of_the_clock_is_found_where_kvm_tells_the_real_time() {
    let clock =
        |clock, realtime, flags| kvm_clock_data { clock, realtime, flags, ..Default::default() };
    let saved = clock(1000, 50_000, KVM_CLOCK_REALTIME);
    let error = |now| clock_error_ns(&saved, &now);
    assert_eq!(error(clock(1700, 50_700, KVM_CLOCK_REALTIME)), Some(0));
    assert_eq!(error(clock(1700, 50_500, KVM_CLOCK_REALTIME)), Some(200));
    assert_eq!(error(clock(900, 50_000, KVM_CLOCK_REALTIME)), Some(100));
    assert_eq!(error(clock(1700, 50_500, 0)), None);
}
