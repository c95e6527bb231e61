//! Delivering the due interrupt of the LAPIC's timer to a paused vCPU, so that its state has it.
//!
//! KVM delivers it when the vCPU runs: `KVM_RUN` with a pending signal does that, and executes
//! nothing. But a timer that has run down need not be due yet: KVM calculates the current count from
//! the clock, and the host's timer, which makes the interrupt due, may still have to fire on a CPU
//! that sleeps or that a hypervisor has stopped. A vCPU that enters the guest takes its host timer
//! with it to the CPU that it runs on, where an overdue one fires at once; a halted vCPU does not.
//! (On Intel processors that have a preemption timer, a vCPU that stops compares the clocks itself.)

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_lapic_state, kvm_vcpu_events};
use zerocopy::IntoBytes;

use super::lapic_timer;
use crate::sys;

/// A paused vCPU with no access left to complete.
pub(super) trait PausedVcpu {
    /// A system call failed.
    type Error;
    /// `KVM_GET_LAPIC`.
    fn lapic(&mut self) -> Result<kvm_lapic_state, Self::Error>;
    /// `KVM_GET_VCPU_EVENTS`.
    fn events(&mut self) -> Result<kvm_vcpu_events, Self::Error>;
    /// `KVM_GET_MP_STATE`.
    fn mp_state(&mut self) -> Result<u32, Self::Error>;
    /// `KVM_SET_MP_STATE`.
    fn set_mp_state(&mut self, mp_state: u32) -> Result<(), Self::Error>;
    /// `KVM_RUN` with a pending signal.
    fn run_with_signal(&mut self) -> Result<(), Self::Error>;
}

/// Delivers the interrupt that is due, or that the host's timer is late to make due.
pub(super) fn deliver<V: PausedVcpu>(vcpu: &mut V) -> Result<(), V::Error> {
    vcpu.run_with_signal()?;
    if lapic_timer::may_be_late(&vcpu.lapic()?) {
        // The state is whole without this: a failure would cost more than the interrupt.
        let _ = deliver_late(vcpu);
    }
    Ok(())
}

/// Has the host's timer fire on this CPU, and delivers its interrupt.
fn deliver_late<V: PausedVcpu>(vcpu: &mut V) -> Result<(), V::Error> {
    if vcpu.mp_state()? == KVM_MP_STATE_HALTED {
        enter_while_halted(vcpu)?;
    } else {
        // It may have been halted in the first run, and not have entered the guest there.
        vcpu.run_with_signal()?;
    }
    sys::sleep_shortly();
    vcpu.run_with_signal()
}

/// Has a halted vCPU enter the guest, but execute nothing there. It stays halted, unless something
/// has come that ends its halt.
fn enter_while_halted<V: PausedVcpu>(vcpu: &mut V) -> Result<(), V::Error> {
    let before = vcpu.events()?;
    vcpu.set_mp_state(KVM_MP_STATE_RUNNABLE)?;
    let entered = vcpu.run_with_signal();
    let after = vcpu.events();
    if !after.as_ref().is_ok_and(|after| after.as_bytes() != before.as_bytes()) {
        vcpu.set_mp_state(KVM_MP_STATE_HALTED)?;
    }
    entered.and(after.map(drop))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::lapic_timer::tests::{VECTOR, lapic, requested};
    use super::*;

    const RUNNABLE: u32 = KVM_MP_STATE_RUNNABLE;
    const HALTED: u32 = KVM_MP_STATE_HALTED;

    /// A vCPU with an expired timer, and what it is like after each run.
    struct Scripted {
        lapic: kvm_lapic_state,
        events: kvm_vcpu_events,
        mp_state: u32,
        runs: Vec<u32>,
        after_run: fn(&mut Self) -> Result<(), ()>,
    }

    impl PausedVcpu for Scripted {
        type Error = ();

        fn lapic(&mut self) -> Result<kvm_lapic_state, ()> {
            Ok(self.lapic)
        }

        fn events(&mut self) -> Result<kvm_vcpu_events, ()> {
            Ok(self.events)
        }

        fn mp_state(&mut self) -> Result<u32, ()> {
            Ok(self.mp_state)
        }

        fn set_mp_state(&mut self, mp_state: u32) -> Result<(), ()> {
            self.mp_state = mp_state;
            Ok(())
        }

        fn run_with_signal(&mut self) -> Result<(), ()> {
            self.runs.push(self.mp_state);
            (self.after_run)(self)
        }
    }

    fn nothing_comes(_: &mut Scripted) -> Result<(), ()> {
        Ok(())
    }

    fn due_at_once(vcpu: &mut Scripted) -> Result<(), ()> {
        vcpu.lapic = requested(vcpu.lapic);
        Ok(())
    }

    fn interrupt_comes_when_it_enters(vcpu: &mut Scripted) -> Result<(), ()> {
        vcpu.events.interrupt.injected = u8::from(vcpu.runs.len() > 1);
        Ok(())
    }

    fn interrupt_ends_the_halt(vcpu: &mut Scripted) -> Result<(), ()> {
        vcpu.mp_state = RUNNABLE;
        Ok(())
    }

    fn fails_when_it_enters(vcpu: &mut Scripted) -> Result<(), ()> {
        if vcpu.runs.len() > 1 { Err(()) } else { Ok(()) }
    }

    #[rstest]
    #[case::running(RUNNABLE, nothing_comes, &[RUNNABLE; 3], RUNNABLE)]
    #[case::halted(HALTED, nothing_comes, &[HALTED, RUNNABLE, HALTED], HALTED)]
    #[case::halt_ends(
        HALTED,
        interrupt_comes_when_it_enters,
        &[HALTED, RUNNABLE, RUNNABLE],
        RUNNABLE
    )]
    #[case::was_halted(HALTED, interrupt_ends_the_halt, &[HALTED, RUNNABLE, RUNNABLE], RUNNABLE)]
    #[case::fails(HALTED, fails_when_it_enters, &[HALTED, RUNNABLE], HALTED)]
    #[case::not_late(HALTED, due_at_once, &[HALTED], HALTED)]
    fn late_timer(
        #[case] mp_state: u32,
        #[case] after_run: fn(&mut Scripted) -> Result<(), ()>,
        #[case] runs: &[u32],
        #[case] then: u32,
    ) {
        let lapic = lapic(VECTOR, 1000, 0);
        let events = kvm_vcpu_events::default();
        let mut vcpu = Scripted { lapic, events, mp_state, runs: Vec::new(), after_run };
        deliver(&mut vcpu).unwrap();
        assert_eq!((vcpu.runs.as_slice(), vcpu.mp_state), (runs, then));
    }
}
