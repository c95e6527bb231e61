//! A planted bug: steps that come after the vCPUs run.

use std::time::Duration;

use kvm_ioctls::VmFd;

use super::MachineError;
use super::order::Step;
use super::state::PlatformState;

/// What a busy host may put between two steps.
const LATE: Duration = Duration::from_millis(10);

/// The steps.
#[derive(Debug)]
pub(super) struct Late {
    steps: Vec<Step>,
    platform: PlatformState,
}

impl Late {
    /// None but with a swap planted.
    pub(super) fn new(steps: Vec<Step>, platform: PlatformState) -> Self {
        Self { steps, platform }
    }

    /// Carries them out.
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
