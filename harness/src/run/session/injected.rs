//! Faults that are injected into updates: whether an update hit them, and in which process the VM is
//! after them.

use std::time::Duration;

use crate::check::{self, Ending, Finding};
use crate::observe::poll::{self, Deadline};
use crate::run::failure::StepError;
use crate::run::session::Session;
use crate::run::session::revival::lost;
use crate::run::update::fault;
use crate::scenario::{Expect, Inject, Migrate};

impl Session<'_> {
    /// Arms the fail point of the next update in the VMM that runs.
    pub(super) fn arm_in_old(&mut self) -> Result<Option<Inject>, StepError> {
        let Some(inject) = self.injection.take() else { return Ok(None) };
        if fault::arm(&mut self.qmp, &inject)?.is_empty() {
            return Ok(Some(inject));
        }
        let point = inject.point;
        let why = format!("{point} is a fail point of the new VMM: use `new-vmm-fault` for it");
        Err(StepError::Process(why))
    }

    /// Follows the VM to its keeper's process, if its own has died, and checks that the update hit the
    /// fault, if one was injected.
    pub(super) fn after_fault(
        &mut self,
        migrate: &Migrate,
        injected: Option<&Inject>,
        from: usize,
        ending: &Ending,
    ) -> Result<(), StepError> {
        // A VM that has moved is in another process already.
        let moved = migrate.mode.moves() && *ending == Ending::Completed;
        let must = migrate.expect == Expect::Revived && !moved;
        // With `survives`, the VM may continue in this process or in another one.
        if must || migrate.expect == Expect::Survives && self.has_died() {
            let dying = self.to_die(from, must);
            if !self.follow(dying)? {
                return Err(lost(self.vm.pid(), "in an update"));
            }
        }
        injected.map_or(Ok(()), |inject| self.check_hit(inject, self.options.patience.settle))
    }

    /// Checks that the update hit the injected fault. The outcome alone does not show it if the
    /// update may succeed.
    pub(super) fn check_hit(&self, inject: &Inject, within: Duration) -> Result<(), StepError> {
        // A stalled log cannot show the hit.
        if !fault::is_logged(inject) || self.case.vm.stalled.is_some() {
            return Ok(());
        }
        // Standard error has the lines from before the log, which is written asynchronously.
        let told = [self.evidence.vmm_log(), self.evidence.console_log()];
        let hit = poll::until(Deadline::after(within), || {
            told.iter().any(|log| fault::was_hit(inject, &log.since())).then_some(())
        });
        if hit.is_some() {
            return Ok(());
        }
        let Inject { point, action } = inject;
        let why = format!("the update did not reach fail point {point}, armed with {action}");
        Err(StepError::Checks(vec![Finding::new(check::outcome::CHECK.name, why)]))
    }
}
