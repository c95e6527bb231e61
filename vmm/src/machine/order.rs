//! In which order a machine is assembled and restored, and why. (The order within one vCPU is in
//! `vcpu::order`.)

use crate::constraint::Constraint;

/// One step of assembling a machine, with or without a saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// `KVM_SET_USER_MEMORY_REGION`.
    Memslots,
    /// `KVM_CREATE_IRQCHIP`.
    CreateIrqchip,
    /// `KVM_CREATE_PIT2`.
    CreatePit,
    /// `KVM_CREATE_VCPU`.
    CreateVcpus,
    /// Devices outside of KVM get their registers.
    Devices,
    /// Each vCPU gets its state.
    Vcpus,
    /// `KVM_SET_IRQCHIP`: both PICs, then the IOAPIC.
    Irqchip,
    /// `KVM_SET_PIT2`.
    Pit,
    /// `KVM_SET_CLOCK`.
    Clock,
    /// `KVM_RUN`.
    Run,
}

use Step::*;

/// The order.
pub const STEPS: [Step; 10] =
    [Memslots, CreateIrqchip, CreatePit, CreateVcpus, Devices, Vcpus, Irqchip, Pit, Clock, Run];

/// The first step that saved state goes into: before it a machine is as after power-on.
pub const FIRST_WITH_STATE: Step = Devices;

/// "`first` comes before `then`": the reason is what goes wrong otherwise.
pub const CONSTRAINTS: [Constraint<Step>; 12] = [
    Constraint::new(
        31,
        Memslots,
        CreateIrqchip,
        "a memslot waits 7 ms for an SRCU grace period once there is an irqchip",
    ),
    Constraint::new(
        32,
        CreateIrqchip,
        CreateVcpus,
        "a vCPU gets its LAPIC when it is created, and only if there is an irqchip",
    ),
    Constraint::new(33, CreateIrqchip, CreatePit, "KVM_CREATE_PIT2 needs the irqchip"),
    Constraint::new(
        34,
        Devices,
        Irqchip,
        "a device that gets its registers may raise its interrupt: what was pending is in the saved irqchip",
    ),
    Constraint::new(
        35,
        Vcpus,
        Irqchip,
        "setting the IOAPIC delivers its pending interrupts into the LAPICs, which setting the LAPICs would wipe out",
    ),
    Constraint::new(
        36,
        Irqchip,
        Pit,
        "the PIT may tick as soon as it is set, into an irqchip that must not be overwritten afterwards",
    ),
    Constraint::new(
        37,
        CreateVcpus,
        Clock,
        "setting the clock makes every vCPU update its own at its next run",
    ),
    Constraint::new(38, Vcpus, Clock, "the clock is tied to the TSC that the vCPUs have"),
    Constraint::new(
        39,
        Clock,
        Run,
        "a guest that has seen a clock once must never see an earlier one",
    ),
    Constraint::new(40, Pit, Run, "the same holds for the timer's interrupts"),
    Constraint::new(41, Devices, Vcpus, "a vCPU's thread is given the devices when it starts"),
    Constraint::new(42, CreateVcpus, Vcpus, "only a vCPU that is there can be given its state"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_satisfies_its_constraints() {
        for constraint in CONSTRAINTS {
            assert!(constraint.holds(&STEPS), "{constraint:?}");
        }
    }

    #[test]
    fn everything_is_created_before_state_goes_into_it() {
        let created = [Memslots, CreateIrqchip, CreatePit, CreateVcpus];
        let first = STEPS.iter().position(|step| *step == FIRST_WITH_STATE);
        assert_eq!(first.map(|first| &STEPS[..first]), Some(&created[..]));
    }

    #[test]
    fn the_order_is_pinned() {
        insta::assert_debug_snapshot!(STEPS);
    }
}
