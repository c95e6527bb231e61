//! A guest that is paused to be handed over.

use std::ops::Deref;

use cpr_qmp::run_state::RunState;

use crate::machine::{Machine, MachineError};

/// While this exists, no vCPU runs. Dropping it restores the machine's previous run state.
pub struct Paused<'a> {
    machine: &'a mut Machine,
    before: RunState,
    given_up: bool,
}

impl<'a> Paused<'a> {
    /// Pauses the guest.
    pub fn pause(machine: &'a mut Machine) -> Result<Self, MachineError> {
        let before = machine.run_state();
        if before.is_running() {
            machine.pause(RunState::FinishMigrate)?;
        } else {
            machine.set_run_state(RunState::FinishMigrate);
        }
        machine.collect_events();
        machine.disconnect_irqfd();
        Ok(Self { machine, before, given_up: false })
    }

    /// Returns the run state from before the pause.
    pub fn before(&self) -> RunState {
        self.before
    }

    /// Leaves the guest to another process, which has claimed it or can: dropping this does not
    /// restore the run state.
    pub fn give_up(mut self) {
        self.given_up = true;
        self.machine.set_run_state(RunState::Postmigrate);
    }
}

impl Deref for Paused<'_> {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        self.machine
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if self.given_up {
            return;
        }
        self.machine.connect_irqfd();
        // No seam: the mistake is that this guard does not undo the pause.
        if planted!(StayPaused) && self.before.is_running() {
            self.machine.set_run_state(RunState::Paused);
        } else if self.before.is_running() {
            self.machine.resume();
        } else {
            self.machine.set_run_state(self.before);
        }
    }
}
