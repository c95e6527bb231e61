//! A planted bug: assembly steps that run after the vCPUs were started.

use std::time::Duration;

use kvm_ioctls::VmFd;

use super::MachineError;
use super::order::Step;
use super::state::PlatformState;

/// A delay that a busy host may add between two steps.
const LATE: Duration = Duration::from_millis(10);

/// The late steps.
#[derive(Debug)]
pub(super) struct DelayedSteps {
    steps: Vec<Step>,
    platform: PlatformState,
}

impl DelayedSteps {
    /// Creates the list of late steps; it is empty unless a swap is planted.
    pub(super) fn new(steps: Vec<Step>, platform: PlatformState) -> Self {
        Self { steps, platform }
    }

    /// Carries out the steps.
    pub(super) fn carry_out(self, vm: &VmFd) -> Result<(), MachineError> {
        for step in self.steps {
            std::thread::sleep(LATE);
            match step {
                Step::Clock => self.platform.set_clock(vm)?,
                Step::Pit => self.platform.set_pit(vm)?,
                _ => {}
            }
        }
        Ok(())
    }
}
