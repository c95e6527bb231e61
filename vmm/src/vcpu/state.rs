//! The saved state of a vCPU.

use std::time::Duration;

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use serde::{Deserialize, Serialize};

use super::lapic_timer;
use crate::state::exact;

/// The saved state of one vCPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VcpuState {
    #[serde(with = "exact")]
    pub(super) mp_state: kvm_mp_state,
    #[serde(with = "exact")]
    pub(super) regs: kvm_regs,
    #[serde(with = "exact")]
    pub(super) sregs: kvm_sregs,
    pub(super) sregs2: Option<Sregs2Tail>,
    #[serde(with = "exact::option")]
    pub(super) xcrs: Option<kvm_xcrs>,
    #[serde(with = "serde_bytes")]
    pub(super) xsave: Vec<u8>,
    #[serde(with = "exact")]
    pub(super) debug_regs: kvm_debugregs,
    #[serde(with = "exact")]
    pub(super) lapic: kvm_lapic_state,
    #[serde(with = "exact::list")]
    pub(super) msrs: Vec<kvm_msr_entry>,
    /// Guest TSC minus host TSC. `None` if the host's KVM does not offer it: the guest's TSC is
    /// then either in `msrs` or the host's own.
    pub(super) tsc_offset: Option<u64>,
    #[serde(with = "exact")]
    pub(super) events: kvm_vcpu_events,
    #[serde(with = "exact::list")]
    pub(super) cpuid: Vec<kvm_cpuid_entry2>,
}

/// The fields of `kvm_sregs2` that `kvm_sregs` lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sregs2Tail {
    pub(super) flags: u64,
    pub(super) pdptrs: [u64; 4],
}

impl VcpuState {
    pub(super) fn empty() -> Self {
        Self {
            mp_state: kvm_mp_state::default(),
            regs: kvm_regs::default(),
            sregs: kvm_sregs::default(),
            sregs2: None,
            xcrs: None,
            xsave: Vec::new(),
            debug_regs: kvm_debugregs::default(),
            lapic: kvm_lapic_state::default(),
            msrs: Vec::new(),
            tsc_offset: None,
            events: kvm_vcpu_events::default(),
            cpuid: Vec::new(),
        }
    }

    /// See [`lapic_timer::is_settled`].
    pub(super) fn timer_is_settled(&self, before: &kvm_lapic_state, later: Duration) -> bool {
        lapic_timer::is_settled(before, &self.lapic, later)
    }

    /// See [`lapic_timer::to_save`].
    pub(super) fn normalize_for_restore(&mut self) {
        lapic_timer::to_save(&mut self.lapic);
    }

    /// See [`lapic_timer::is_requested`].
    #[cfg(test)]
    pub(super) fn timer_is_requested(&self) -> bool {
        lapic_timer::is_requested(&self.lapic)
    }

    /// Adds `growth` to the TSC offset, and returns whether there is one.
    pub fn grow_tsc_offset(&mut self, growth: u64) -> bool {
        self.tsc_offset = self.tsc_offset.map(|offset| offset.wrapping_add(growth));
        self.tsc_offset.is_some()
    }

    /// The CPUID that the guest sees.
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Indices of the MSRs in this state.
    pub fn msr_indices(&self) -> Vec<u32> {
        self.msrs.iter().map(|entry| entry.index).collect()
    }
}
