//! The order in which a vCPU's items are saved and restored, and why.

use crate::constraint::Constraint;

/// One item of a vCPU's state that KVM offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// `KVM_GET_CPUID2`, `KVM_SET_CPUID2`.
    Cpuid,
    /// `KVM_VCPU_TSC_OFFSET`, if the host has it.
    TscOffset,
    /// `KVM_GET_MP_STATE`, `KVM_SET_MP_STATE`.
    MpState,
    /// `KVM_GET_SREGS` and `KVM_GET_SREGS2`, and their setters.
    Sregs,
    /// `KVM_GET_XCRS`, `KVM_SET_XCRS`.
    Xcrs,
    /// `KVM_GET_XSAVE2`, `KVM_SET_XSAVE`.
    Xsave,
    /// `KVM_GET_LAPIC`, `KVM_SET_LAPIC`.
    Lapic,
    /// `KVM_GET_MSRS`, `KVM_SET_MSRS`.
    Msrs,
    /// `KVM_GET_REGS`, `KVM_SET_REGS`.
    Regs,
    /// `KVM_GET_DEBUGREGS`, `KVM_SET_DEBUGREGS`.
    DebugRegs,
    /// `KVM_GET_VCPU_EVENTS`, `KVM_SET_VCPU_EVENTS`.
    Events,
}

use Item::*;

/// The order of saving.
pub const SAVE: [Item; 11] =
    [MpState, Regs, Sregs, Xcrs, Xsave, DebugRegs, Lapic, Msrs, TscOffset, Events, Cpuid];

/// The order of restoring.
pub const RESTORE: [Item; 11] =
    [Cpuid, TscOffset, Sregs, Xcrs, Xsave, Lapic, Msrs, Regs, MpState, DebugRegs, Events];

/// What [`SAVE`] must satisfy.
pub const SAVE_CONSTRAINTS: [Constraint<Item>; 4] = [
    Constraint::new(
        1,
        MpState,
        Regs,
        "reading the mp state lets a pending INIT or SIPI take effect, which changes RIP",
    ),
    Constraint::new(2, MpState, Sregs, "a pending INIT or SIPI also changes CS"),
    Constraint::new(3, MpState, Lapic, "reading it clears the LAPIC's pending INIT or SIPI"),
    Constraint::new(4, MpState, Events, "a pending INIT or SIPI also changes the events"),
];

/// What [`RESTORE`] must satisfy.
pub const RESTORE_CONSTRAINTS: [Constraint<Item>; 12] = [
    Constraint::new(11, Cpuid, Sregs, "KVM checks CR4, EFER and the APIC base against CPUID"),
    Constraint::new(12, Cpuid, Msrs, "KVM rejects MSRs that CPUID does not announce"),
    Constraint::new(13, Cpuid, Xcrs, "KVM checks XCR0 against CPUID leaf 0xd"),
    Constraint::new(14, Cpuid, Xsave, "the size of the XSAVE area follows from CPUID"),
    Constraint::new(
        16,
        Sregs,
        Lapic,
        "the APIC base in the sregs chooses between xAPIC and x2APIC, which lay the page out differently",
    ),
    Constraint::new(
        17,
        Lapic,
        Msrs,
        "IA32_TSC_DEADLINE is silently zero unless the LAPIC is in TSC-deadline mode",
    ),
    Constraint::new(
        18,
        TscOffset,
        Msrs,
        "the deadline is compared with the guest's TSC as soon as it is set",
    ),
    Constraint::new(19, TscOffset, Lapic, "the same holds for a running LAPIC timer"),
    Constraint::new(
        20,
        Sregs,
        Regs,
        "on VMX that runs real mode as vm86, KVM_SET_SREGS rewrites RFLAGS when CR0.PE changes",
    ),
    Constraint::new(
        21,
        Sregs,
        Events,
        "KVM_SET_SREGS queues an interrupt from its bitmap; the events say whether it is a soft one",
    ),
    Constraint::new(
        22,
        Regs,
        Events,
        "writing the registers drops a pending exception (KVM_SET_REGS clears it)",
    ),
    Constraint::new(
        23,
        Sregs,
        MpState,
        "KVM_SET_SREGS makes a boot processor runnable if its CS:RIP is the reset vector",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_satisfy_their_constraints() {
        for constraint in SAVE_CONSTRAINTS {
            assert!(constraint.holds(&SAVE), "{constraint:?}");
        }
        for constraint in RESTORE_CONSTRAINTS {
            assert!(constraint.holds(&RESTORE), "{constraint:?}");
        }
    }

    #[test]
    fn both_orders_have_every_item_once() {
        let set = |order: &[Item]| order.iter().copied().collect::<std::collections::HashSet<_>>();
        assert_eq!(set(&SAVE), set(&RESTORE));
        assert_eq!(set(&SAVE).len(), SAVE.len());
    }

    #[test]
    fn swapping_two_items_breaks_their_constraint() {
        for constraint in &RESTORE_CONSTRAINTS {
            let mut order = RESTORE;
            let at = |order: &[Item], item| order.iter().position(|&i| i == item).unwrap();
            let (a, b) = (at(&order, constraint.first), at(&order, constraint.then));
            order.swap(a, b);
            assert!(!constraint.holds(&order), "{}", constraint.number);
        }
    }

    #[test]
    fn the_orders_are_pinned() {
        insta::assert_debug_snapshot!((SAVE, RESTORE));
    }
}
