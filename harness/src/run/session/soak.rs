//! Runs an unlimited number of updates. Each is checked, and memory use does not grow with their
//! number.

use std::time::Duration;

use crate::check::{Action, Finding};
use crate::observe::poll;
use crate::run::failure::StepError;
use crate::run::measure::growth::Growth;
use crate::run::session::Session;
use crate::scenario::{Channel, CommandKind, Disturbance, Expect, Failure, Migrate, Soak};

/// The check name under which memory growth is reported.
pub const MEMORY: &str = "memory";

/// Decides how long a soak lasts, and receives its progress.
pub trait Pace: Sync {
    /// Returns whether to run another burst, after `done` bursts.
    fn wants(&self, done: u32) -> bool;
    /// Reports a successful burst, or the successful boot.
    fn done(&self, seen: Progress);
}

/// The state of a VM after a burst, or before the first.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Successful updates so far.
    pub updates: u32,
    /// Updates so far that had to be refused or rolled back.
    pub setbacks: u32,
    /// The blackouts of this burst.
    pub blackouts: Vec<Duration>,
    /// The VMM's own memory in KiB.
    pub memory_kib: u64,
    /// The number of the VMM's descriptors.
    pub fds: usize,
}

impl Session<'_> {
    /// Soaks a running guest.
    pub(super) fn soak(&mut self, soak: &Soak) -> Result<(), StepError> {
        let seed = self.case.seed;
        let text = format!("a soak of up to {} updates from seed {seed}", soak.updates);
        self.evidence.timeline.say("harness", text);
        let (mut growth, mut setbacks) = (Growth::default(), 0);
        // The state after boot.
        self.tell_progress(setbacks);
        for number in 0..soak.updates {
            if self.pace.is_some_and(|pace| !pace.wants(number)) {
                break;
            }
            // The deadline applies to each burst.
            self.rewind_watchdog();
            let burst = soak.burst(seed, number);
            self.evidence.timeline.say("harness", format!("burst {number}: {burst:?}"));
            // Waits for no condition: only lets the guest run for a random time.
            poll::during(burst.after, || None::<()>);
            setbacks +=
                u32::from(matches!(burst.with, Disturbance::NoChannel | Disturbance::NoCommand));
            self.burst(burst.with)?;
            self.tell_progress(setbacks);
            self.check_growth(&mut growth)?;
            // Without a pace the scenario limits their number, and the report is to show them all.
            let blackouts = self.pace.is_none().then(|| std::mem::take(&mut self.blackouts));
            self.forget();
            self.blackouts = blackouts.unwrap_or_default();
        }
        Ok(())
    }

    fn burst(&mut self, with: Disturbance) -> Result<(), StepError> {
        match with {
            Disturbance::Nothing => self.checked_update(true),
            Disturbance::PauseBefore => {
                self.checked(Self::stop, true)?;
                self.checked(Self::cont, false)?;
                self.checked_update(true)
            }
            Disturbance::PauseAround => {
                self.checked(Self::stop, true)?;
                self.checked_update(false)?;
                self.checked(Self::cont, false)
            }
            Disturbance::NoChannel => {
                let undone = Expect::NotCompleted("No such file or directory".into());
                self.checked_setback(Migrate {
                    channel: Channel::MissingDirectory,
                    expect: undone,
                    ..Migrate::default()
                })?;
                self.checked_update(true)
            }
            Disturbance::NoCommand => {
                let failed = Expect::Failed(Failure { errno: None, text: String::new() });
                self.checked_setback(Migrate {
                    command: CommandKind::Enoent,
                    rehearsal: Some(false),
                    expect: failed,
                    ..Migrate::default()
                })?;
                self.checked_update(true)
            }
        }
    }

    fn checked_setback(&mut self, migrate: Migrate) -> Result<(), StepError> {
        self.checked(|session| session.update(&migrate), true)
    }

    pub(super) fn checked_update(&mut self, ran: bool) -> Result<(), StepError> {
        self.checked(|session| session.update(&Migrate::default()), ran)
    }

    pub(super) fn checked(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<Action, StepError>,
        ran: bool,
    ) -> Result<(), StepError> {
        let action = act(self)?;
        self.check(&action, ran)
    }

    fn tell_progress(&self, setbacks: u32) {
        if let (Some(pace), Some(seen)) = (self.pace, &self.seen) {
            pace.done(Progress {
                updates: self.updates,
                setbacks,
                blackouts: self.blackouts.clone(),
                memory_kib: seen.memory_kib,
                fds: seen.fds.iter().count(),
            });
        }
    }

    fn check_growth(&self, growth: &mut Growth) -> Result<(), StepError> {
        let Some(seen) = &self.seen else { return Ok(()) };
        let grown = growth.note(seen.memory_kib);
        grown.map_err(|grown| StepError::Checks(vec![Finding::new(MEMORY, grown.to_string())]))
    }
}
