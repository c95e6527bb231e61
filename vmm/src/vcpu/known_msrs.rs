//! The MSRs to save: at first those of the restored state, later all that this binary knows.

use std::sync::OnceLock;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use super::msrs;
use super::state_error::StateError;

/// A list of MSRs that can be extended once, while vCPUs use it.
#[derive(Clone, Debug)]
pub(super) struct KnownMsrs {
    first: Vec<u32>,
    /// The guest's CPUID, which determines a vCPU's MSRs; `None` if `first` is complete.
    cpuid: Option<Vec<kvm_cpuid_entry2>>,
    all: OnceLock<Vec<u32>>,
}

impl KnownMsrs {
    /// Creates a complete list.
    pub(super) fn all(msrs: Vec<u32>) -> Self {
        Self { first: msrs, cpuid: None, all: OnceLock::new() }
    }

    /// Creates the list of a saved state, whose binary may not have known all MSRs.
    pub(super) fn of_saved(msrs: Vec<u32>, cpuid: Vec<kvm_cpuid_entry2>) -> Self {
        Self { first: msrs, cpuid: Some(cpuid), all: OnceLock::new() }
    }

    /// Returns the MSRs to save now.
    pub(super) fn now(&self) -> &[u32] {
        self.all.get().unwrap_or(&self.first)
    }

    /// Returns the initial list.
    pub(super) fn first(&self) -> &[u32] {
        &self.first
    }

    /// Returns a hash of the MSRs that the list was chosen from, if this binary chose it.
    pub(super) fn choice(&self, kvm: &Kvm, tsc_offset: bool) -> Option<u64> {
        let is_own = self.cpuid.is_none() || self.all.get().is_some();
        is_own.then(|| msrs::choice(kvm, tsc_offset)).flatten()
    }

    /// Skips the search if `choice` is the hash of the MSRs that this binary would choose from.
    pub(super) fn were_chosen_from(&self, choice: Option<u64>, kvm: &Kvm, tsc_offset: bool) {
        if choice.is_some() && choice == msrs::choice(kvm, tsc_offset) {
            self.all.get_or_init(|| self.first.clone());
        }
    }

    /// Probes all MSRs on a vCPU like the guest's, in a separate VM. The known MSRs stay in the
    /// list, except those that this binary knows not to be state.
    pub(super) fn look_for_more(&self, kvm: &Kvm, tsc_offset: bool) -> Result<(), StateError> {
        let Some(cpuid) = self.cpuid.as_ref().filter(|_| self.all.get().is_none()) else {
            return Ok(());
        };
        let mut all = settable_with(kvm, cpuid, tsc_offset)?;
        let found = all.len();
        all.extend(self.first.iter().filter(|msr| !all.contains(msr)).collect::<Vec<_>>());
        msrs::to_save(&mut all, tsc_offset);
        tracing::debug!(first = self.first.len(), found, now = all.len(), "msrs_known");
        self.all.get_or_init(|| all);
        Ok(())
    }
}

fn settable_with(
    kvm: &Kvm,
    cpuid: &[kvm_cpuid_entry2],
    tsc_offset: bool,
) -> Result<Vec<u32>, StateError> {
    let error = |call| move |source| StateError::Ioctl { vcpu: 0, call, source };
    let vm = kvm.create_vm().map_err(error("KVM_CREATE_VM"))?;
    // Without it the vCPU has no LAPIC, and some MSRs are missing.
    vm.create_irq_chip().map_err(error("KVM_CREATE_IRQCHIP"))?;
    let vcpu = vm.create_vcpu(0).map_err(error("KVM_CREATE_VCPU"))?;
    let (what, count) = ("CPUID entries", cpuid.len());
    let cpuid =
        CpuId::from_entries(cpuid).map_err(|_| StateError::TooMany { vcpu: 0, what, count })?;
    vcpu.set_cpuid2(&cpuid).map_err(error("KVM_SET_CPUID2"))?;
    msrs::settable(kvm, &vcpu, tsc_offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::cpuid_for;

    const SYSENTER_CS: u32 = 0x174;
    const STAR: u32 = 0xc000_0081;
    const WALL_CLOCK: u32 = 0x11;
    const UNKNOWN: u32 = 0x1234_5678;

    #[test]
    fn msrs_unknown_to_an_older_binary_are_saved_after_the_search() {
        let kvm = Kvm::new().unwrap();
        let cpuid = cpuid_for(&kvm, 0, 1).unwrap().as_slice().to_vec();
        let known = KnownMsrs::of_saved(vec![WALL_CLOCK, UNKNOWN, SYSENTER_CS], cpuid);
        assert_eq!(known.now(), [WALL_CLOCK, UNKNOWN, SYSENTER_CS]);
        known.look_for_more(&kvm, true).unwrap();
        let has = |msr| known.now().iter().filter(|known| **known == msr).count();
        assert_eq!([SYSENTER_CS, STAR, WALL_CLOCK, UNKNOWN].map(has), [1, 1, 0, 1]);
    }

    #[test]
    fn equal_choice_skips_the_search() {
        let kvm = Kvm::new().unwrap();
        let choice = KnownMsrs::all(vec![STAR]).choice(&kvm, true);
        assert!(choice.is_some());
        let looked = |choice| {
            let cpuid = cpuid_for(&kvm, 0, 1).unwrap().as_slice().to_vec();
            let known = KnownMsrs::of_saved(vec![STAR], cpuid);
            known.were_chosen_from(choice, &kvm, true);
            known.look_for_more(&kvm, true).unwrap();
            known.now().len() > 1
        };
        let other = KnownMsrs::all(vec![STAR]).choice(&kvm, false);
        assert_eq!([choice, other, None].map(looked), [false, true, true]);
    }

    #[test]
    fn complete_list_is_not_extended() {
        let known = KnownMsrs::all(vec![STAR]);
        known.look_for_more(&Kvm::new().unwrap(), true).unwrap();
        assert_eq!(known.now(), [STAR]);
    }
}
