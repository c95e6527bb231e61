//! Planted bugs in loading the saved state: the new process forgets or changes part of it.
//!
//! What is forgotten becomes what a new VM of KVM has.

use ciborium::Value;
use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, kvm_clock_data,
    kvm_cpuid_entry2, kvm_debugregs, kvm_ioapic_state, kvm_ioapic_state__bindgen_ty_1, kvm_irqchip,
    kvm_lapic_state, kvm_mp_state, kvm_pic_state, kvm_pit_channel_state, kvm_pit_state2,
    kvm_vcpu_events,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vm_superio::SerialState;

use super::{Planted, planted};

/// A mistake in the section called so; without an instance, in all sections of that name.
type Mistake = (Planted, &'static str, fn(&mut Value));

const MISTAKES: &[Mistake] = &[
    (Planted::ForgetSlavePic, "platform", |state| {
        edit(state, "pic_slave", |chip: &mut kvm_irqchip| {
            chip.chip.pic = kvm_pic_state { elcr_mask: 0xde, ..Default::default() };
        });
    }),
    (Planted::ForgetIoapic, "platform", |state| {
        edit(state, "ioapic", |chip: &mut kvm_irqchip| {
            const MASKED: u64 = 1 << 16;
            chip.chip.ioapic = kvm_ioapic_state {
                base_address: 0xfec0_0000,
                redirtbl: [kvm_ioapic_state__bindgen_ty_1 { bits: MASKED }; 24],
                ..Default::default()
            };
        });
    }),
    (Planted::ForgetPit, "platform", |state| {
        edit(state, "pit", |pit: &mut kvm_pit_state2| {
            let channel = |gate| kvm_pit_channel_state {
                count: 0x1_0000,
                mode: 0xff,
                gate,
                ..Default::default()
            };
            *pit = kvm_pit_state2 { channels: [1, 1, 0].map(channel), ..Default::default() };
        });
    }),
    (Planted::ClockStandsStill, "platform", |state| {
        edit(state, "clock", |clock: &mut kvm_clock_data| clock.flags &= !KVM_CLOCK_REALTIME);
    }),
    (Planted::ForgetUart, "devices", forget_uart),
    (Planted::ForgetCmos, "board", |state| {
        const REGISTERS_OF_TIME: usize = 14;
        let bytes = field(field(state, "rtc"), "registers").as_bytes_mut();
        bytes.expect("the registers are bytes")[REGISTERS_OF_TIME..].fill(0);
    }),
    (Planted::ForgetClock, "board", |state| {
        edit(field(state, "rtc"), "ahead", |ahead: &mut Option<(i64, u32)>| *ahead = Some((0, 0)));
    }),
    (Planted::ForgetPower, "board", |state| *field(field(state, "power"), "enabled") = 0.into()),
    (Planted::ForgetMsix, "virtio-rng", |state| {
        const MASKED: [u32; 4] = [0, 0, 0, 1];
        edit(field(state, "msix"), "table", |table: &mut Vec<[u32; 4]>| table.fill(MASKED));
    }),
    (Planted::RestartQueues, "virtio-rng", |state| {
        for queue in list(field(state, "queues")) {
            for index in ["next_available", "next_used"] {
                *field(queue, index) = 0.into();
            }
        }
    }),
    (Planted::ForgetVirtioStatus, "virtio-rng", |state| {
        *field(field(state, "common"), "status") = 0.into();
    }),
    (Planted::ForgetVirtioFeatures, "virtio-rng", |state| {
        *field(field(state, "common"), "features") = 0.into();
    }),
    (Planted::ForgetIsr, "vcpu", |state| {
        edit(state, "lapic", |lapic: &mut kvm_lapic_state| lapic.regs[0x100..0x180].fill(0));
    }),
    (Planted::ForgetIrr, "vcpu", |state| {
        edit(state, "lapic", |lapic: &mut kvm_lapic_state| lapic.regs[0x200..0x280].fill(0));
    }),
    (Planted::RestartTimer, "vcpu", |state| {
        edit(state, "lapic", |lapic: &mut kvm_lapic_state| {
            const INITIAL: usize = 0x380;
            const CURRENT: usize = 0x390;
            if lapic.regs[CURRENT..CURRENT + 4] != [0; 4] {
                lapic.regs.copy_within(INITIAL..INITIAL + 4, CURRENT);
            }
        });
    }),
    (Planted::SlowTimer, "vcpu", |state| {
        const DIVIDE: usize = 0x3e0;
        const BY_2: std::ffi::c_char = 0;
        edit(state, "lapic", |lapic: &mut kvm_lapic_state| lapic.regs[DIVIDE] = BY_2);
    }),
    (Planted::ForgetMpState, "vcpu", |state| {
        let mp_state = KVM_MP_STATE_UNINITIALIZED;
        edit(state, "mp_state", |saved: &mut kvm_mp_state| saved.mp_state = mp_state);
    }),
    // After the line above: the boot processor is different.
    (Planted::ForgetMpState, "vcpu.0", |state| {
        let mp_state = KVM_MP_STATE_RUNNABLE;
        edit(state, "mp_state", |saved: &mut kvm_mp_state| saved.mp_state = mp_state);
    }),
    (Planted::ForgetDebugRegs, "vcpu", |state| {
        edit(state, "debug_regs", |debug: &mut kvm_debugregs| {
            *debug = kvm_debugregs { dr6: 0xffff_0ff0, dr7: 0x400, ..Default::default() };
        });
    }),
    (Planted::ForgetXcr0, "vcpu", |state| *field(state, "xcrs") = Value::Null),
    (Planted::PartialMsrs, "vcpu", |state| {
        let msrs = list(field(state, "msrs"));
        msrs.truncate(msrs.len() / 2);
    }),
    (Planted::SkewTsc, "vcpu.1", |state| {
        // Absent if the host's KVM does not offer it.
        if field(state, "tsc_offset").is_integer() {
            edit(state, "tsc_offset", |offset: &mut u64| *offset = offset.wrapping_add(1 << 30));
        }
    }),
    (Planted::ForgetShadow, "vcpu", |state| {
        edit(state, "events", |events: &mut kvm_vcpu_events| events.interrupt.shadow = 0);
    }),
    (Planted::ForgetNmi, "vcpu", |state| {
        edit(state, "events", |events: &mut kvm_vcpu_events| {
            (events.nmi.pending, events.nmi.injected) = (0, 0);
        });
    }),
    (Planted::LoseCpuid, "vcpu", |state| {
        edit(state, "cpuid", |entries: &mut Vec<kvm_cpuid_entry2>| {
            // The LAPIC's TSC-deadline mode.
            let features = entries.iter_mut().filter(|entry| entry.function == 1);
            features.for_each(|entry| entry.ecx &= !(1 << 24));
        });
    }),
    (Planted::TruncateXsave, "vcpu", |state| {
        const FIRST_BYTES: usize = 4;
        let area = field(state, "xsave").as_bytes_mut().expect("the XSAVE area is bytes");
        area[FIRST_BYTES..].fill(0);
    }),
];

/// Makes the planted mistakes in `sections`, each called `name.instance`.
pub(in super::super) fn change(sections: &mut [(String, &mut Vec<u8>)]) {
    for &(bug, of, mistake) in MISTAKES.iter().filter(|(bug, ..)| planted(*bug)) {
        for (name, data) in sections.iter_mut().filter(|(name, _)| is_of(name, of)) {
            // Only a damaged state cannot be decoded; its reader refuses it.
            let Ok(mut state) = ciborium::from_reader(&***data) else { continue };
            mistake(&mut state);
            data.clear();
            ciborium::into_writer(&state, &mut **data).expect("writing to memory cannot fail");
            tracing::info!(bug = bug.name(), section = name, "planted");
        }
    }
}

fn is_of(section: &str, of: &str) -> bool {
    section == of || section.split_once('.').is_some_and(|(name, _)| name == of)
}

/// Changes a value of a type of its own.
fn edit<T: Serialize + DeserializeOwned>(
    state: &mut Value,
    name: &str,
    change: impl FnOnce(&mut T),
) {
    let place = field(state, name);
    let mut value: T = place.deserialized().expect("the field has this type");
    change(&mut value);
    *place = Value::serialized(&value).expect("it was read from such a value");
}

/// Finds a field. Panics if it is missing: the planted bug would have no effect.
fn field<'a>(state: &'a mut Value, name: &str) -> &'a mut Value {
    let fields = state.as_map_mut().expect("a state is a map");
    let field = fields.iter_mut().find(|(key, _)| key.as_text() == Some(name));
    &mut field.unwrap_or_else(|| panic!("the saved state has no field {name}")).1
}

fn list(value: &mut Value) -> &mut Vec<Value> {
    value.as_array_mut().expect("the field is a list")
}

fn forget_uart(state: &mut Value) {
    let fresh = SerialState::default();
    let serial = field(state, "serial");
    for (name, value) in [
        ("baud_divisor_low", fresh.baud_divisor_low),
        ("baud_divisor_high", fresh.baud_divisor_high),
        ("interrupt_enable", fresh.interrupt_enable),
        ("interrupt_identification", fresh.interrupt_identification),
        ("line_control", fresh.line_control),
        ("line_status", fresh.line_status),
        ("modem_control", fresh.modem_control),
        ("modem_status", fresh.modem_status),
        ("scratch", fresh.scratch),
    ] {
        *field(serial, name) = value.into();
    }
    for name in ["in_buffer", "pending_output"] {
        *field(serial, name) = Value::Bytes(Vec::new());
    }
}

#[cfg(test)]
mod tests;
