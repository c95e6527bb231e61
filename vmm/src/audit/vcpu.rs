//! Audit of a vCPU.

use std::os::fd::RawFd;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_cpuid_entry2, kvm_debugregs,
    kvm_device_attr, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_sregs2,
    kvm_vcpu_events, kvm_xcrs,
};
use nix::errno::Errno;
use nix::{request_code_none, request_code_read, request_code_readwrite, request_code_write};

use super::Values;
use super::call::{bytes, get, get_words, or_note, plain, zeroed};
use crate::sys;

const KVM_GET_REGS: u64 = request_code_read!(KVMIO, 0x81, size_of::<kvm_regs>());
const KVM_GET_SREGS: u64 = request_code_read!(KVMIO, 0x83, size_of::<kvm_sregs>());
const KVM_GET_LAPIC: u64 = request_code_read!(KVMIO, 0x8e, size_of::<kvm_lapic_state>());
const KVM_GET_CPUID2: u64 = request_code_readwrite!(KVMIO, 0x91, 8);
const KVM_GET_MP_STATE: u64 = request_code_read!(KVMIO, 0x98, size_of::<kvm_mp_state>());
const KVM_GET_VCPU_EVENTS: u64 = request_code_read!(KVMIO, 0x9f, size_of::<kvm_vcpu_events>());
const KVM_GET_DEBUGREGS: u64 = request_code_read!(KVMIO, 0xa1, size_of::<kvm_debugregs>());
const KVM_GET_TSC_KHZ: u64 = request_code_none!(KVMIO, 0xa3);
const KVM_GET_XSAVE: u64 = request_code_read!(KVMIO, 0xa4, LEGACY_XSAVE);
const KVM_GET_XCRS: u64 = request_code_read!(KVMIO, 0xa6, size_of::<kvm_xcrs>());
const KVM_GET_NESTED_STATE: u64 = request_code_readwrite!(KVMIO, 0xbe, 128);
const KVM_GET_SREGS2: u64 = request_code_read!(KVMIO, 0xcc, size_of::<kvm_sregs2>());
const KVM_GET_XSAVE2: u64 = request_code_read!(KVMIO, 0xcf, LEGACY_XSAVE);
const KVM_GET_DEVICE_ATTR: u64 = request_code_write!(KVMIO, 0xe2, size_of::<kvm_device_attr>());

/// Bytes of `kvm_xsave`.
const LEGACY_XSAVE: usize = 4096;
/// More bytes than any guest's XSAVE area has (AMX: 11 KiB).
const MOST_XSAVE: usize = 16 << 10;
/// Maximum number of CPUID entries (`KVM_MAX_CPUID_ENTRIES`).
const MOST_CPUID: usize = 256;
/// The LAPIC's registers are 4 bytes each, 16 bytes apart (SDM volume 3, chapter "APIC").
const LAPIC_STRIDE: usize = 16;

plain!(
    kvm_regs,
    kvm_sregs,
    kvm_sregs2,
    kvm_lapic_state,
    kvm_mp_state,
    kvm_vcpu_events,
    kvm_debugregs,
    kvm_xcrs,
    kvm_device_attr,
);

/// Reads everything of `vcpu`, under names that begin with `name`.
pub(super) fn read(vcpu: RawFd, name: &str, msrs: &[u32], values: &mut Values) {
    let called = |part: &str| format!("{name}.{part}");
    // Read first: reading it lets a pending INIT or SIPI take effect, which resets the rest.
    let mp_state = get::<kvm_mp_state>(vcpu, KVM_GET_MP_STATE, zeroed());
    if let Some(state) = or_note(values, &called("mp-state"), mp_state) {
        values.note(called("mp-state"), state.mp_state);
    }
    if let Some(regs) = or_note(values, &called("regs"), get(vcpu, KVM_GET_REGS, zeroed())) {
        registers(name, &regs, values);
    }
    special_registers(vcpu, name, values);
    let debug = get::<kvm_debugregs>(vcpu, KVM_GET_DEBUGREGS, zeroed());
    if let Some(debug) = or_note(values, &called("debug"), debug) {
        debug.db.iter().enumerate().for_each(|(n, dr)| values.hex(called(&format!("dr{n}")), *dr));
        values.hex(called("dr6"), debug.dr6);
        values.hex(called("dr7"), debug.dr7);
        values.hex(called("dr-flags"), debug.flags);
    }
    if let Some(xcrs) = or_note(values, &called("xcrs"), get(vcpu, KVM_GET_XCRS, zeroed())) {
        let xcrs: kvm_xcrs = xcrs;
        for xcr in xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize) {
            values.hex(called(&format!("xcr{}", xcr.xcr)), xcr.value);
        }
    }
    xsave(vcpu, &called("xsave"), values);
    let events = get(vcpu, KVM_GET_VCPU_EVENTS, zeroed());
    if let Some(events) = or_note(values, &called("events"), events) {
        self::events(&called("events"), &events, values);
    }
    let lapic = get::<kvm_lapic_state>(vcpu, KVM_GET_LAPIC, zeroed());
    if let Some(lapic) = or_note(values, &called("lapic"), lapic) {
        self::lapic(&called("lapic"), bytes(&lapic), values);
    }
    cpuid(vcpu, name, values);
    // SAFETY: the call takes no pointer.
    let khz = unsafe { sys::ioctl(vcpu, KVM_GET_TSC_KHZ, 0) };
    if let Some(khz) = or_note(values, &called("tsc-khz"), khz) {
        values.note(called("tsc-khz"), khz);
    }
    let mut offset = 0_u64;
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: (&raw mut offset) as u64,
        flags: 0,
    };
    let offset = get(vcpu, KVM_GET_DEVICE_ATTR, attribute).map(|_| offset);
    if let Some(offset) = or_note(values, &called("tsc-offset"), offset) {
        values.hex(called("tsc-offset"), offset);
    }
    nested(vcpu, &called("nested"), values);
    if let Some(found) = or_note(values, &called("msrs"), super::msrs::read(vcpu, msrs)) {
        found
            .into_iter()
            .for_each(|(msr, value)| values.hex(called(&format!("msr-{msr:x}")), value));
    }
}

fn registers(name: &str, regs: &kvm_regs, values: &mut Values) {
    let kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, .. } = *regs;
    let kvm_regs { r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags, .. } = *regs;
    for (register, value) in [
        ("rax", rax),
        ("rbx", rbx),
        ("rcx", rcx),
        ("rdx", rdx),
        ("rsi", rsi),
        ("rdi", rdi),
        ("rsp", rsp),
        ("rbp", rbp),
        ("r8", r8),
        ("r9", r9),
        ("r10", r10),
        ("r11", r11),
        ("r12", r12),
        ("r13", r13),
        ("r14", r14),
        ("r15", r15),
        ("rip", rip),
        ("rflags", rflags),
    ] {
        values.hex(format!("{name}.{register}"), value);
    }
}

fn special_registers(vcpu: RawFd, name: &str, values: &mut Values) {
    let called = |part: &str| format!("{name}.{part}");
    let sregs = get(vcpu, KVM_GET_SREGS, zeroed());
    let Some(sregs) = or_note(values, &called("sregs"), sregs) else { return };
    let kvm_sregs { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, .. } = sregs;
    for (register, segment) in [
        ("cs", cs),
        ("ds", ds),
        ("es", es),
        ("fs", fs),
        ("gs", gs),
        ("ss", ss),
        ("tr", tr),
        ("ldt", ldt),
    ] {
        let kvm_segment { base, limit, selector, type_, present, dpl, db, s, l, g, avl, .. } =
            segment;
        values.note(
            called(register),
            format_args!(
                "{selector:#x} base {base:#x} limit {limit:#x} type {type_:#x} present {present} \
                 dpl {dpl} db {db} s {s} l {l} g {g} avl {avl} unusable {}",
                segment.unusable
            ),
        );
    }
    for (register, table) in [("gdt", gdt), ("idt", idt)] {
        let text = format_args!("base {:#x} limit {:#x}", table.base, table.limit);
        values.note(called(register), text);
    }
    let kvm_sregs { cr0, cr2, cr3, cr4, cr8, efer, apic_base, .. } = sregs;
    for (register, value) in [
        ("cr0", cr0),
        ("cr2", cr2),
        ("cr3", cr3),
        ("cr4", cr4),
        ("cr8", cr8),
        ("efer", efer),
        ("apic-base", apic_base),
    ] {
        values.hex(called(register), value);
    }
    sregs
        .interrupt_bitmap
        .iter()
        .enumerate()
        .for_each(|(n, word)| values.hex(called(&format!("interrupt-bitmap{n}")), *word));
    let sregs2 = get::<kvm_sregs2>(vcpu, KVM_GET_SREGS2, zeroed());
    if let Some(sregs2) = or_note(values, &called("sregs2"), sregs2) {
        values.hex(called("sregs2-flags"), sregs2.flags);
        for (n, pdptr) in sregs2.pdptrs.iter().enumerate() {
            values.hex(called(&format!("pdptr{n}")), *pdptr);
        }
    }
}

fn xsave(vcpu: RawFd, name: &str, values: &mut Values) {
    let mut words = vec![0_u64; MOST_XSAVE / size_of::<u64>()];
    let read = get_words(vcpu, KVM_GET_XSAVE2, &mut words)
        .or_else(|_| get_words(vcpu, KVM_GET_XSAVE, &mut words));
    if or_note(values, name, read).is_none() {
        return;
    }
    let mut area: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    super::xsave::normalise(&mut area);
    let used = area.iter().rposition(|byte| *byte != 0).map_or(0, |last| last / 16 * 16 + 16);
    values.bytes(name, &area[..used.max(0x240)]);
}

fn events(name: &str, events: &kvm_vcpu_events, values: &mut Values) {
    let kvm_vcpu_events { exception, interrupt, nmi, smi, .. } = *events;
    for (field, value) in [
        ("exception.injected", exception.injected.into()),
        ("exception.nr", exception.nr.into()),
        ("exception.has-error-code", exception.has_error_code.into()),
        ("exception.pending", exception.pending.into()),
        ("exception.error-code", u64::from(exception.error_code)),
        ("exception.has-payload", events.exception_has_payload.into()),
        ("exception.payload", events.exception_payload),
        ("interrupt.injected", interrupt.injected.into()),
        ("interrupt.nr", interrupt.nr.into()),
        ("interrupt.soft", interrupt.soft.into()),
        ("interrupt.shadow", interrupt.shadow.into()),
        ("nmi.injected", nmi.injected.into()),
        ("nmi.pending", nmi.pending.into()),
        ("nmi.masked", nmi.masked.into()),
        ("smi.smm", smi.smm.into()),
        ("smi.pending", smi.pending.into()),
        ("smi.inside-nmi", smi.smm_inside_nmi.into()),
        ("smi.latched-init", smi.latched_init.into()),
        ("triple-fault", events.triple_fault.pending.into()),
        ("sipi-vector", events.sipi_vector.into()),
        ("flags", events.flags.into()),
    ] {
        values.hex(format!("{name}.{field}"), value);
    }
}

fn lapic(name: &str, registers: &[u8], values: &mut Values) {
    for (index, register) in registers.chunks(LAPIC_STRIDE).enumerate() {
        let (value, rest) = register.split_at(4);
        let value = u32::from_le_bytes(value.try_into().expect("it has 4 bytes"));
        values.hex(format!("{name}.{:#05x}", index * LAPIC_STRIDE), value);
        if rest.iter().any(|byte| *byte != 0) {
            values.note(
                format!("{name}.{:#05x}.rest", index * LAPIC_STRIDE),
                format_args!("{rest:?}"),
            );
        }
    }
}

fn cpuid(vcpu: RawFd, name: &str, values: &mut Values) {
    let entry = size_of::<kvm_cpuid_entry2>() / size_of::<u64>();
    let mut words = vec![0_u64; 1 + MOST_CPUID * entry];
    words[0] = MOST_CPUID as u64;
    let read = get_words(vcpu, KVM_GET_CPUID2, &mut words);
    if or_note(values, &format!("{name}.cpuid"), read).is_none() {
        return;
    }
    let count = words[0] as u32 as usize;
    for entry in words[1..].chunks(entry).take(count) {
        let [leaf, eax_ebx, ecx_edx] = [
            (entry[0] as u32, (entry[0] >> 32) as u32),
            ((entry[1] >> 32) as u32, entry[2] as u32),
            ((entry[2] >> 32) as u32, entry[3] as u32),
        ];
        values.note(
            format!("{name}.cpuid-{:x}.{:x}", leaf.0, leaf.1),
            format_args!(
                "flags {:#x} eax {:#x} ebx {:#x} ecx {:#x} edx {:#x}",
                entry[1] as u32, eax_ebx.0, eax_ebx.1, ecx_edx.0, ecx_edx.1
            ),
        );
    }
}

fn nested(vcpu: RawFd, name: &str, values: &mut Values) {
    // A `kvm_nested_state`: flags, format, its size, then the rest.
    const MOST: usize = 16 << 10;
    let mut words = vec![0_u64; MOST / size_of::<u64>()];
    words[0] = (MOST as u64) << 32;
    match get_words(vcpu, KVM_GET_NESTED_STATE, &mut words) {
        // There is no such state without nested virtualization.
        Err(Errno::EINVAL | Errno::ENOTTY) => values.note(name, "none"),
        read => {
            if or_note(values, name, read).is_some() {
                let size = ((words[0] >> 32) as usize).min(MOST);
                let state: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                values.bytes(name, &state[..size]);
            }
        }
    }
}
