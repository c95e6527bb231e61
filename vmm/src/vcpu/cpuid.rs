//! The CPUID that a vCPU shows its guest.

mod topology;

use kvm_bindings::{CpuId, KVM_CAP_TSC_DEADLINE_TIMER, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use topology::Topology;

const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;

/// Errors from setting a vCPU's CPUID.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// KVM cannot list the CPUID entries it supports.
    #[error("KVM_GET_SUPPORTED_CPUID: {0}")]
    Supported(kvm_ioctls::Error),
    /// KVM rejected the entries.
    #[error("KVM_SET_CPUID2: {0}")]
    Set(kvm_ioctls::Error),
    /// There are more entries than KVM accepts.
    #[error(
        "cannot build the guest's CPUID: it has {0} entries, KVM accepts at most {KVM_MAX_CPUID_ENTRIES}"
    )]
    TooMany(usize),
}

/// Returns the CPUID of vCPU `index` of `cpus`: all that KVM supports, with a topology of one
/// package and one thread per core. The APIC ID is the index.
pub fn cpuid_for(kvm: &Kvm, index: u8, cpus: u8) -> Result<CpuId, CpuidError> {
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(CpuidError::Supported)?;
    // KVM never reports this bit: userspace sets it if the irqchip is in the kernel (KVM API 4.46).
    let deadline = kvm.check_extension_raw(KVM_CAP_TSC_DEADLINE_TIMER.into()) > 0;
    let entries = for_guest(supported.as_slice(), Topology { index, cpus }, deadline);
    CpuId::from_entries(&entries).map_err(|_| CpuidError::TooMany(entries.len()))
}

fn for_guest(
    supported: &[kvm_cpuid_entry2],
    topology: Topology,
    deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    let mut entries = supported.to_vec();
    entries.iter_mut().for_each(|entry| adjust(entry, deadline));
    topology.put_into(&mut entries);
    entries
}

fn adjust(entry: &mut kvm_cpuid_entry2, deadline: bool) {
    match entry.function {
        0x1 => {
            // Nested guest state (KVM_GET_NESTED_STATE) is not saved, so a guest that runs a nested
            // guest would not survive an update: hide VMX.
            entry.ecx &= !VMX;
            entry.ecx |= HYPERVISOR | if deadline { TSC_DEADLINE } else { 0 };
        }
        // Hide SVM for the same reason.
        0x8000_0001 => entry.ecx &= !SVM,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Topology = Topology { index: 0, cpus: 1 };

    #[test]
    fn hypervisor_bit_is_set_and_deadline_timer_follows_kvm() {
        let leaf = [kvm_cpuid_entry2 { function: 1, ..Default::default() }];
        assert_eq!(for_guest(&leaf, ONE, true)[0].ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(for_guest(&leaf, ONE, false)[0].ecx, HYPERVISOR);
    }

    #[test]
    fn nested_virtualization_is_hidden() {
        let leaf = |function| kvm_cpuid_entry2 { function, ecx: u32::MAX, ..Default::default() };
        let entries = for_guest(&[leaf(0x1), leaf(0x8000_0001)], ONE, true);
        assert_eq!((entries[0].ecx, entries[1].ecx), (!VMX, !SVM));
    }

    /// Reads back what KVM keeps, which also works on hosts that cannot run a guest.
    #[rstest::rstest]
    fn kvm_keeps_the_topology_of_every_vcpu(#[values(1, 3)] cpus: u8) {
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        for index in 0..cpus {
            let fd = vm.create_vcpu(index.into()).unwrap();
            let cpuid = cpuid_for(&kvm, index, cpus).unwrap();
            fd.set_cpuid2(&cpuid).unwrap();
            let kept = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
            topology::tests::assert_consistent(kept.as_slice(), Topology { index, cpus });
        }
    }
}
