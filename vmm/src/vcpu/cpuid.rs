//! The CPUID that a vCPU shows its guest.

use kvm_bindings::{CpuId, KVM_CAP_TSC_DEADLINE_TIMER, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const HTT: u32 = 1 << 28;
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;

/// All that KVM supports, with the topology of vCPU `index` of `cpus`: one thread a core, APIC ID =
/// index (SDM vol. 2, CPUID; vol. 3, 9.9.5).
pub fn cpuid_for(kvm: &Kvm, index: u8, cpus: u8) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    // KVM leaves this bit to whoever knows that the irqchip is in the kernel (KVM API 4.46).
    let deadline = kvm.check_extension_raw(KVM_CAP_TSC_DEADLINE_TIMER.into()) > 0;
    for entry in cpuid.as_mut_slice() {
        adjust(entry, index, cpus, deadline);
    }
    Ok(cpuid)
}

fn adjust(entry: &mut kvm_cpuid_entry2, index: u8, cpus: u8, deadline: bool) {
    let id = u32::from(index);
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0xff00 | id << 24 | u32::from(cpus) << 16;
            // The state of a nested guest (KVM_GET_NESTED_STATE) is not saved, so a guest that ran
            // one would not survive an update: it is not offered any.
            entry.ecx &= !VMX;
            entry.ecx |= HYPERVISOR | if deadline { TSC_DEADLINE } else { 0 };
            entry.edx = entry.edx & !HTT | if cpus > 1 { HTT } else { 0 };
        }
        0xb | 0x1f => {
            let core_bits = u8::BITS - cpus.saturating_sub(1).leading_zeros();
            (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                0 => (0, 1, 1 << 8),
                1 => (core_bits, cpus.into(), 2 << 8 | 1),
                n => (0, 0, n),
            };
            entry.edx = id;
        }
        // As VMX above.
        0x8000_0001 => entry.ecx &= !SVM,
        0x8000_001e => entry.eax = id,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaf_1_carries_the_apic_id() {
        let mut entry = kvm_cpuid_entry2 { function: 1, ebx: 0xdead_0800, ..Default::default() };
        adjust(&mut entry, 3, 4, true);
        assert_eq!(entry.ebx, 0x0304_0800);
        assert_eq!(entry.ecx, TSC_DEADLINE | HYPERVISOR);
        assert_eq!(entry.edx, HTT);
    }

    #[test]
    fn no_guest_is_offered_guests_of_its_own() {
        let leaf = |function| kvm_cpuid_entry2 { function, ecx: u32::MAX, ..Default::default() };
        let (mut vmx, mut svm) = (leaf(0x1), leaf(0x8000_0001));
        adjust(&mut vmx, 0, 1, true);
        adjust(&mut svm, 0, 1, true);
        assert_eq!((vmx.ecx, svm.ecx), (!VMX, !SVM));
    }

    #[test]
    fn leaf_b_counts_bits_for_the_cores() {
        let level = |cpus| {
            let mut entry = kvm_cpuid_entry2 { function: 0xb, index: 1, ..Default::default() };
            adjust(&mut entry, 0, cpus, true);
            (entry.eax, entry.ebx)
        };
        assert_eq!([1, 2, 3, 4, 8].map(level), [(0, 1), (1, 2), (2, 3), (2, 4), (3, 8)]);
    }
}
