//! Audit of the board's chips and the clock.

use std::os::fd::RawFd;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVMIO, kvm_clock_data,
    kvm_ioapic_state, kvm_irqchip, kvm_pic_state, kvm_pit_state2,
};
use nix::{request_code_none, request_code_read, request_code_readwrite};

use super::Values;
use super::call::{get, or_note, plain, zeroed};

const KVM_GET_TSC_KHZ: u64 = request_code_none!(KVMIO, 0xa3);
const KVM_GET_IRQCHIP: u64 = request_code_readwrite!(KVMIO, 0x62, size_of::<kvm_irqchip>());
const KVM_GET_CLOCK: u64 = request_code_read!(KVMIO, 0x7c, size_of::<kvm_clock_data>());
const KVM_GET_PIT2: u64 = request_code_read!(KVMIO, 0x9f, size_of::<kvm_pit_state2>());

plain!(kvm_irqchip, kvm_clock_data, kvm_pit_state2, kvm_pic_state, kvm_ioapic_state);

pub(super) fn read(vm: RawFd, values: &mut Values) {
    let chip = |chip_id| get(vm, KVM_GET_IRQCHIP, kvm_irqchip { chip_id, ..zeroed() });
    for (name, id) in [("pic0", KVM_IRQCHIP_PIC_MASTER), ("pic1", KVM_IRQCHIP_PIC_SLAVE)] {
        if let Some(chip) = or_note(values, name, chip(id)) {
            // SAFETY: KVM_GET_IRQCHIP has filled in the member of this chip.
            pic(name, &unsafe { chip.chip.pic }, values);
        }
    }
    if let Some(chip) = or_note(values, "ioapic", chip(KVM_IRQCHIP_IOAPIC)) {
        // SAFETY: as above.
        ioapic(&unsafe { chip.chip.ioapic }, values);
    }
    if let Some(pit) = or_note(values, "pit", get(vm, KVM_GET_PIT2, zeroed())) {
        self::pit(&pit, values);
    }
    let clock = get::<kvm_clock_data>(vm, KVM_GET_CLOCK, zeroed());
    if let Some(clock) = or_note(values, "clock", clock) {
        values.note("clock.ns", clock.clock);
        values.hex("clock.flags", clock.flags);
    }
    // SAFETY: the call takes no pointer.
    let khz = unsafe { crate::sys::ioctl(vm, KVM_GET_TSC_KHZ, 0) };
    if let Some(khz) = or_note(values, "tsc-khz", khz) {
        values.note("tsc-khz", khz);
    }
}

fn pic(name: &str, pic: &kvm_pic_state, values: &mut Values) {
    let kvm_pic_state { last_irr, irr, imr, isr, priority_add, irq_base, .. } = *pic;
    let kvm_pic_state { read_reg_select, poll, special_mask, init_state, auto_eoi, .. } = *pic;
    let kvm_pic_state { rotate_on_auto_eoi, special_fully_nested_mode, init4, elcr, .. } = *pic;
    for (field, value) in [
        ("last-irr", last_irr),
        ("irr", irr),
        ("imr", imr),
        ("isr", isr),
        ("priority-add", priority_add),
        ("irq-base", irq_base),
        ("read-reg-select", read_reg_select),
        ("poll", poll),
        ("special-mask", special_mask),
        ("init-state", init_state),
        ("auto-eoi", auto_eoi),
        ("rotate-on-auto-eoi", rotate_on_auto_eoi),
        ("special-fully-nested-mode", special_fully_nested_mode),
        ("init4", init4),
        ("elcr", elcr),
        ("elcr-mask", pic.elcr_mask),
    ] {
        values.hex(format!("{name}.{field}"), value);
    }
}

fn ioapic(ioapic: &kvm_ioapic_state, values: &mut Values) {
    values.hex("ioapic.base", ioapic.base_address);
    values.hex("ioapic.ioregsel", ioapic.ioregsel);
    values.hex("ioapic.id", ioapic.id);
    values.hex("ioapic.irr", ioapic.irr);
    for (pin, entry) in ioapic.redirtbl.iter().enumerate() {
        // SAFETY: both members are the same 64 bits.
        values.hex(format!("ioapic.pin{pin}"), unsafe { entry.bits });
    }
}

fn pit(pit: &kvm_pit_state2, values: &mut Values) {
    values.hex("pit.flags", pit.flags);
    for (index, channel) in pit.channels.iter().enumerate() {
        for (field, value) in [
            ("latched-count", channel.latched_count),
            ("count-latched", channel.count_latched.into()),
            ("status-latched", channel.status_latched.into()),
            ("status", channel.status.into()),
            ("read-state", channel.read_state.into()),
            ("write-state", channel.write_state.into()),
            ("write-latch", channel.write_latch.into()),
            ("rw-mode", channel.rw_mode.into()),
            ("mode", channel.mode.into()),
            ("bcd", channel.bcd.into()),
            ("gate", channel.gate.into()),
        ] {
            values.hex(format!("pit.{index}.{field}"), value);
        }
        values.hex(format!("pit.{index}.count"), channel.count);
        values.note(format!("pit.{index}.load-time"), channel.count_load_time);
    }
}

#[cfg(test)]
mod tests {
    use super::super::call;
    use super::*;

    #[test]
    fn every_byte_of_a_pic_has_a_name() {
        let mut before = Values::default();
        pic("pic", &zeroed(), &mut before);
        assert_eq!(before.0.len(), size_of::<kvm_pic_state>());
        for byte in 0..size_of::<kvm_pic_state>() {
            let mut bytes = call::bytes(&zeroed::<kvm_pic_state>()).to_vec();
            bytes[byte] = 1;
            // SAFETY: it has one-byte integers only, so many of them.
            let changed: kvm_pic_state = unsafe { bytes.as_ptr().cast::<kvm_pic_state>().read() };
            let mut after = Values::default();
            pic("pic", &changed, &mut after);
            assert_ne!(before.0, after.0, "byte {byte}");
        }
    }
}
