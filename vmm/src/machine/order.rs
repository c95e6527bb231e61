//! The order in which a machine is saved, assembled and restored, and why. (The order within one
//! vCPU is in `vcpu::order`.)

use crate::constraint::Constraint;
#[cfg(feature = "failpoints")]
use crate::failpoints::Point;

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
    /// Devices outside of KVM get their saved registers.
    Devices,
    /// Each vCPU gets its saved state.
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

/// The order of assembly.
pub const STEPS: [Step; 10] =
    [Memslots, CreateIrqchip, CreatePit, CreateVcpus, Devices, Vcpus, Irqchip, Pit, Clock, Run];

/// The first step that uses saved state: before it, a machine is as after power-on.
pub const FIRST_WITH_STATE: Step = Devices;

/// Returns the fail point before `step`.
#[cfg(feature = "failpoints")]
pub fn point_before(step: Step) -> Option<Point> {
    Some(match step {
        Memslots => Point::Memslots,
        CreateIrqchip => Point::CreateIrqchip,
        CreatePit => Point::CreatePit,
        CreateVcpus => Point::CreateVcpus,
        Devices => Point::Devices,
        Vcpus => Point::Vcpus,
        Irqchip => Point::SetIrqchip,
        Pit => Point::SetPit,
        Clock => Point::SetClock,
        Run => return None,
    })
}

/// What [`STEPS`] must satisfy.
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
        "a device may raise its interrupt when its registers are set; the saved irqchip has what was pending",
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
    Constraint::new(38, Vcpus, Clock, "the clock is tied to the vCPUs' TSC"),
    Constraint::new(
        39,
        Clock,
        Run,
        "a guest that has seen a clock once must never see an earlier one",
    ),
    Constraint::new(40, Pit, Run, "the same holds for the timer's interrupts"),
    Constraint::new(41, Devices, Vcpus, "a vCPU's thread is given the devices when it starts"),
    Constraint::new(42, CreateVcpus, Vcpus, "a vCPU must exist before it can be given its state"),
];

/// One part of a machine's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// `KVM_GET_IRQCHIP` of the IOAPIC.
    Ioapic,
    /// Each vCPU, with its LAPIC.
    Vcpus,
    /// `KVM_GET_CLOCK`.
    Clock,
    /// `KVM_GET_IRQCHIP` of both PICs.
    Pics,
    /// `KVM_GET_PIT2`.
    Pit,
    /// Devices outside of KVM, which do not change while the vCPUs are paused.
    Devices,
}

/// The order of saving, while the vCPUs are paused. The PIT is not: it ticks until the process
/// executes the next binary.
pub const SAVE: [Part; 6] =
    [Part::Ioapic, Part::Vcpus, Part::Clock, Part::Pics, Part::Pit, Part::Devices];

/// What [`SAVE`] must satisfy.
pub const SAVE_CONSTRAINTS: [Constraint<Part>; 2] = [
    Constraint::new(
        51,
        Part::Ioapic,
        Part::Vcpus,
        "a PIT tick goes through the IOAPIC into a LAPIC: between the two it would be missing in the LAPIC, and a level-triggered pin would wait for its EOI for ever",
    ),
    Constraint::new(
        52,
        Part::Vcpus,
        Part::Pics,
        "a vCPU that lets its timer's interrupt arrive before its save may take one from the PIC",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_orders_satisfy_their_constraints() {
        for constraint in CONSTRAINTS {
            assert!(constraint.holds(&STEPS), "{constraint:?}");
        }
        for constraint in SAVE_CONSTRAINTS {
            assert!(constraint.holds(&SAVE), "{constraint:?}");
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

    #[cfg(feature = "failpoints")]
    #[test]
    fn every_constraint_can_be_planted_broken() {
        use crate::vcpu::order::{RESTORE_CONSTRAINTS, SAVE_CONSTRAINTS as VCPU_SAVE_CONSTRAINTS};

        let vcpu = VCPU_SAVE_CONSTRAINTS.iter().chain(&RESTORE_CONSTRAINTS).map(|c| c.number);
        let steps = CONSTRAINTS.iter().map(|c| c.number);
        let parts = SAVE_CONSTRAINTS.iter().map(|c| c.number);
        let mut numbers: Vec<u8> = vcpu.chain(steps).chain(parts).collect();
        numbers.sort();
        assert_eq!(numbers, crate::failpoints::CONSTRAINTS);
    }
}
