//! Updates without end: each is checked, and nothing that is kept of it grows with their number.

use std::time::Duration;

use super::failure::StepError;
use super::growth::Growth;
use super::session::Session;
use crate::check::{Action, Finding};
use crate::observe::poll;
use crate::scenario::{Channel, CommandKind, Expect, Failure, Migrate, Soak, With};

/// The name under which growth is told.
pub const MEMORY: &str = "memory";

/// Who says how long a soak goes on, and hears how it goes.
pub trait Pace: Sync {
    /// Whether there is to be one more burst, after so many.
    fn wants(&self, done: u32) -> bool;
    /// A burst has gone well, or the boot.
    fn done(&self, seen: Progress);
}

/// How a VM is after a burst, or before the first.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Good updates until now.
    pub updates: u32,
    /// Updates until now that had to be refused or undone.
    pub setbacks: u32,
    /// The blackouts of this burst.
    pub blackouts: Vec<Duration>,
    /// Its own memory.
    pub memory_kib: u64,
    /// Its descriptors.
    pub fds: usize,
}

impl Session<'_> {
    /// Soaks a running guest.
    pub(super) fn soak(&mut self, soak: &Soak) -> Result<(), StepError> {
        let seed = self.case.seed;
        let text = format!("a soak of up to {} updates from seed {seed}", soak.updates);
        self.evidence.timeline.say("harness", text);
        let (mut growth, mut setbacks) = (Growth::default(), 0);
        // As booted.
        self.tell_progress(setbacks);
        for number in 0..soak.updates {
            if self.pace.is_some_and(|pace| !pace.wants(number)) {
                break;
            }
            // The deadline is that of a burst.
            self.rewind_watchdog();
            let burst = soak.burst(seed, number);
            self.evidence.timeline.say("harness", format!("burst {number}: {burst:?}"));
            // The moment is the point: nothing is awaited, the guest is only given this time.
            poll::during(burst.after, || None::<()>);
            setbacks += u32::from(matches!(burst.with, With::NoChannel | With::NoCommand));
            self.burst(burst.with)?;
            self.tell_progress(setbacks);
            self.check_growth(&mut growth)?;
            self.forget();
        }
        Ok(())
    }

    fn burst(&mut self, with: With) -> Result<(), StepError> {
        match with {
            With::Nothing => self.checked_update(true),
            With::PauseBefore => {
                self.checked(Self::stop, true)?;
                self.checked(Self::cont, false)?;
                self.checked_update(true)
            }
            With::PauseAround => {
                self.checked(Self::stop, true)?;
                self.checked_update(false)?;
                self.checked(Self::cont, false)
            }
            With::NoChannel => {
                let undone = Expect::Undone("No such file or directory".into());
                self.checked_setback(Migrate {
                    channel: Channel::MissingDirectory,
                    expect: undone,
                    ..Migrate::default()
                })?;
                self.checked_update(true)
            }
            With::NoCommand => {
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
