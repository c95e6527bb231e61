//! The status of a migration, and the events that report it.

use std::time::{Duration, Instant};

use cpr_qmp::event::EventKind;
use cpr_qmp::message::Event;
use cpr_qmp::migration::{MigrationInfo, MigrationRamStats, MigrationStatus};
use serde::{Deserialize, Serialize};

/// How long an update stopped the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blackout {
    /// How long no vCPU ran.
    pub downtime: Duration,
    /// How long its rehearsal took, if there was one.
    pub rehearsal: Option<Duration>,
}

/// The status of the latest migration. Each change produces its `MIGRATION` event, so that events
/// and `query-migrate` cannot disagree.
#[derive(Clone, Debug, Default)]
pub struct Migration {
    status: MigrationStatus,
    error: Option<String>,
    times: Option<Times>,
    began: Option<Instant>,
    /// The time of set-up, once that is over.
    setup: Option<Duration>,
    events: bool,
    /// The last update that completed.
    last: Option<Blackout>,
    /// What was copied of RAM, and how long the rest is expected to take.
    ram: Option<(MigrationRamStats, Option<Duration>)>,
}

/// The status of a migration, for the process that continues it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationSnapshot {
    status: MigrationStatus,
    error: Option<String>,
    times: Option<Times>,
}

/// How long a finished migration took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// From `migrate` to the end of the migration.
    pub total: Duration,
    /// How long no vCPU ran; `None` if none ran before.
    pub downtime: Option<Duration>,
}

impl Migration {
    /// Creates the migration that another process began `ago`.
    pub fn adopted(status: MigrationStatus, events: bool, ago: Duration) -> Self {
        Self { status, events, began: Instant::now().checked_sub(ago), ..Self::default() }
    }

    /// Returns what [`query-migrate`](Self::info) must report in another process.
    pub fn standing(&self) -> MigrationSnapshot {
        let Self { status, error, times, .. } = self.clone();
        MigrationSnapshot { status, error, times }
    }

    /// Creates a migration with the status it had in another process.
    pub fn standing_at(standing: MigrationSnapshot, events: bool) -> Self {
        let MigrationSnapshot { status, error, times } = standing;
        Self { status, error, times, events, ..Self::default() }
    }

    /// Returns the status.
    pub fn status(&self) -> MigrationStatus {
        self.status
    }

    /// Returns the time since the migration began.
    pub fn elapsed(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// Returns whether a `MIGRATION` event is sent at every change (capability `events`).
    pub fn events(&self) -> bool {
        self.events
    }

    /// Turns the capability `events` on or off.
    pub fn set_events(&mut self, on: bool) {
        self.events = on;
    }

    /// Returns true from `setup` until the migration ends.
    pub fn under_way(&self) -> bool {
        // No seam: the mistake is in the decision itself; the status that clients see is right.
        planted!(NeverOver) && self.status == MigrationStatus::Completed
            || matches!(
                self.status,
                MigrationStatus::Setup
                    | MigrationStatus::Active
                    | MigrationStatus::Device
                    | MigrationStatus::Cancelling
            )
    }

    /// Begins a migration.
    #[must_use = "the event must be sent"]
    pub fn begin(&mut self) -> Option<Event> {
        self.error = None;
        (self.times, self.setup, self.ram) = (None, None, None);
        self.began = Some(Instant::now());
        self.advance(MigrationStatus::Setup)
    }

    /// Ends the set-up, for `setup-time`.
    pub fn set_up(&mut self) {
        self.setup = self.began.map(|began| began.elapsed());
    }

    /// Records what has been copied of RAM, and how long the rest is expected to take.
    pub fn set_ram(&mut self, ram: MigrationRamStats, expected: Option<Duration>) {
        self.ram = Some((ram, expected));
    }

    /// Records how long the last update that completed stopped the guest.
    pub fn set_last_blackout(&mut self, last: Option<Blackout>) {
        self.last = last;
    }

    /// Returns how long the last update that completed stopped the guest.
    pub fn last_blackout(&self) -> Option<Blackout> {
        self.last
    }

    /// Changes the status to `status`.
    #[must_use = "the event must be sent"]
    pub fn advance(&mut self, status: MigrationStatus) -> Option<Event> {
        self.advance_after(status, None)
    }

    fn advance_after(
        &mut self,
        status: MigrationStatus,
        downtime: Option<Duration>,
    ) -> Option<Event> {
        tracing::info!(from = ?self.status, to = ?status, "migration_status");
        self.status = status;
        let x_downtime_us = downtime.map(|downtime| downtime.as_micros() as u64);
        self.events.then(|| EventKind::Migration { status, x_downtime_us }.now())
    }

    /// Ends the migration as completed.
    #[must_use = "the event must be sent"]
    pub fn complete(&mut self, times: Option<Times>) -> Option<Event> {
        self.times = times;
        self.advance(MigrationStatus::Completed)
    }

    /// Ends the migration as completed, and tells for how long it stopped the guest, which runs
    /// again.
    #[must_use = "the event must be sent"]
    pub fn complete_with_downtime(&mut self, times: Times) -> Option<Event> {
        self.times = Some(times);
        self.advance_after(MigrationStatus::Completed, times.downtime)
    }

    /// Ends the migration as failed, with this error.
    #[must_use = "the event must be sent"]
    pub fn fail(&mut self, error: String) -> Option<Event> {
        tracing::error!(%error, "migration_failed");
        self.error = Some(error);
        self.advance(MigrationStatus::Failed)
    }

    /// Returns the reply to `query-migrate`.
    pub fn info(&self, blocked_reasons: Vec<String>) -> MigrationInfo {
        let millis = |duration: Duration| duration.as_millis() as u64;
        MigrationInfo {
            status: (self.status != MigrationStatus::None).then_some(self.status),
            total_time: match (self.times, self.under_way(), self.began) {
                (Some(times), ..) => Some(millis(times.total)),
                (None, true, Some(began)) => Some(millis(began.elapsed())),
                _ => None,
            },
            ram: self.ram.map(|(ram, _)| ram),
            expected_downtime: self.ram.and_then(|(_, expected)| expected).map(millis),
            setup_time: self.setup.map(millis),
            downtime: self.times.and_then(|times| times.downtime).map(millis),
            error_desc: self.error.clone(),
            blocked_reasons: (!blocked_reasons.is_empty()).then_some(blocked_reasons),
            ..MigrationInfo::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_query_agree_at_every_step() {
        let mut migration = Migration::default();
        migration.set_events(true);
        let mut seen = Vec::new();
        seen.extend(migration.begin());
        assert!(migration.under_way());
        for status in [MigrationStatus::Active, MigrationStatus::Device] {
            seen.extend(migration.advance(status));
            assert_eq!(migration.info(Vec::new()).status, Some(status));
        }
        seen.extend(migration.fail("why".to_owned()));
        assert!(!migration.under_way());
        assert_eq!(migration.info(Vec::new()).error_desc.as_deref(), Some("why"));
        let order: Vec<_> =
            seen.iter().map(|e| e.data.as_ref().unwrap()["status"].clone()).collect();
        assert_eq!(order, ["setup", "active", "device", "failed"]);
    }

    #[test]
    fn adopted_migration_counts_time_before_adoption() {
        let ago = Duration::from_millis(1500);
        let migration = Migration::adopted(MigrationStatus::Device, true, ago);
        assert!(migration.info(Vec::new()).total_time.is_some_and(|ms| ms >= 1500));
    }

    #[test]
    fn begin_clears_the_old_error() {
        let mut migration = Migration::default();
        assert!(migration.begin().is_none());
        let _ = migration.fail("why".to_owned());
        let _ = migration.begin();
        assert_eq!(migration.info(Vec::new()).error_desc, None);
    }
}
