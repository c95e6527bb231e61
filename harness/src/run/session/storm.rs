//! Updates at random moments.

use crate::observe::poll;
use crate::run::failure::StepError;
use crate::run::session::Session;
use crate::scenario::{Storm, StormEventKind};

impl Session<'_> {
    /// Runs the storm that the case's seed determines on a running guest.
    pub(super) fn storm(&mut self, storm: &Storm) -> Result<(), StepError> {
        let seed = self.case.seed;
        let text = format!("a storm of {} updates from seed {seed}", storm.updates);
        self.evidence.timeline.say("harness", text);
        for number in 0..storm.updates {
            let gust = storm.storm_event(seed, number);
            self.evidence.timeline.say("harness", format!("gust {number}: {gust:?}"));
            // Waits for no condition: only lets the guest run for a random time.
            poll::during(gust.after, || None::<()>);
            match gust.kind {
                StormEventKind::Update => self.checked_update(true)?,
                StormEventKind::PauseThenUpdate => {
                    self.checked(Self::stop, true)?;
                    self.checked(Self::cont, false)?;
                    self.checked_update(true)?;
                }
                StormEventKind::UpdatePaused => {
                    self.checked(Self::stop, true)?;
                    self.checked_update(false)?;
                    self.checked(Self::cont, false)?;
                }
            }
        }
        Ok(())
    }
}
