//! Updates to a new VMM that is started once the old one has saved its VM and ended (`cpr-reboot`, and
//! `normal` with a file).

use crate::backend::Channels;
use crate::check::{Action, Ending};
use crate::process::environment::EnvironmentError;
use crate::run::failure::StepError;
use crate::run::session::Session;
use crate::run::session::transfer::{moved, outcome};
use crate::run::update::channel;
use crate::scenario::{Migrate, Mode, NewVmm};

impl Session<'_> {
    /// Lets the VMM save its VM and end, and starts another that loads it.
    pub(super) fn restart(&mut self, migrate: &Migrate) -> Result<Action, StepError> {
        self.tried += 1;
        let injected = self.arm_in_old()?;
        let channel = channel::prepare(migrate.channel, &self.work, self.tried)?;
        self.note_files();
        let arguments = channel.arguments.clone();
        let (from, ending) = self.ask_to_move(migrate, arguments, Self::await_former)?;
        self.after_fault(migrate, injected.as_ref(), from, &ending)?;
        if ending == Ending::Completed {
            let former = self.describe_former(migrate)?;
            self.quit_former()?;
            let channels = Channels::file(channel.state.clone());
            let fault = migrate.new_vmm_fault.as_ref();
            if !migrate.new_vmm.is_default() || fault.is_some() {
                let mut bad =
                    self.start_successor(migrate.new_vmm, fault, &channels, migrate.mode)?;
                bad.failed_as_it_must(fault).map_err(outcome)?;
                self.abandon(bad)?;
            }
            let mut new = self.start_successor(NewVmm::Good, None, &channels, migrate.mode)?;
            let connected = self.connect_to(&mut new, from);
            connected.map_err(|why| outcome(format!("the saved VM does not continue: {why}")))?;
            self.find_under_wrapper(&mut new)?;
            self.await_resumed(&mut new)?;
            self.move_to(new, former)?;
            if migrate.mode == Mode::Normal {
                // It has all of RAM, and is not needed any more.
                let state = &channel.state;
                std::fs::remove_file(state).map_err(EnvironmentError::file("remove", state))?;
            }
        }
        self.note_failure(migrate, injected.as_ref(), &ending);
        Ok(moved(migrate, ending, channel.state))
    }
}
