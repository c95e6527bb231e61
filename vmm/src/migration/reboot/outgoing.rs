//! Saves the guest: check, pause, save, and give it up once everything is on disk.

use std::time::Duration;

use cpr_qmp::address::MigrationAddress;
use cpr_qmp::event::EventKind;
use cpr_qmp::migration::{MigMode, MigrationStatus};

use super::error::RebootError;
use super::section::RebootSection;
use crate::machine::{Machine, SECTIONS};
use crate::memory::{RamBlock, Stamp};
use crate::migration::blockers::blocked_reasons;
use crate::migration::channel::{self, ChannelError, DurableFile};
use crate::migration::cpr::fall_back;
use crate::migration::cpr::headroom;
use crate::migration::cpr::monotonic::monotonic_ns;
use crate::migration::cpr::phases::Phases;
use crate::migration::cpr::plan::{Refused, check_run_state};
use crate::migration::cpr::safeguard::Safeguard;
use crate::migration::paused::Paused;
use crate::migration::status::Migration;
use crate::qmp::Server;
use crate::state::Formats;
use crate::switch::Switch;

/// Descriptors that a save opens for a moment.
const SAVE_FDS: usize = 4;
/// Bytes of state to reserve in the file: more than any machine's state has.
const BASE_BYTES: u64 = 64 << 10;
const BYTES_PER_VCPU: u64 = 64 << 10;

/// A checked save, with everything created that can be created while the guest runs.
#[derive(Debug)]
pub struct SavePlan {
    file: DurableFile,
    deadline: Duration,
}

impl SavePlan {
    /// Checks everything that can be checked before the guest stops.
    pub fn check(
        address: &MigrationAddress,
        machine: &Machine,
        deadline: Duration,
        follow_symlinks: Switch,
    ) -> Result<Self, RebootError> {
        check_run_state(machine)?;
        let path = channel::file_path(address).map_err(|error| match error {
            ChannelError::Kind { kind } => RebootError::NoFile(kind),
            other => other.into(),
        })?;
        if let Some(reason) = blocked_reasons(machine.ram(), MigMode::CprReboot).into_iter().next()
        {
            return Err(Refused::Blocked(reason).into());
        }
        let cpus = machine.config().cpus;
        headroom::address_space(cpus.into())?;
        headroom::descriptors(SAVE_FDS)?;
        fail_point!(Check);
        let bytes = BASE_BYTES + BYTES_PER_VCPU * u64::from(cpus);
        let file = DurableFile::open(path, follow_symlinks, bytes)?;
        machine.probe_missing_msrs();
        machine.ram().begin_sync();
        Ok(Self { file, deadline })
    }

    /// Returns how long the save may take.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Pauses the guest and saves it. If that fails, the guest is again as it was before; the
    /// failure has not been reported yet.
    pub fn save(self, context: SaveContext<'_>) -> Result<Saved, RebootError> {
        let SaveContext { machine, qmp, migration, safeguard, stopped } = context;
        let Self { mut file, deadline } = self;
        fail_point!(Helper);
        let _watched = safeguard.watched(deadline);
        let _retracted = fall_back::retracted(file.retraction().clone());
        file.clear_target()?;
        migration.set_up();
        fail_point!(Pause);
        let mut phases = Phases::outgoing();
        let paused = Paused::pause(machine)?;
        let paused_ns = monotonic_ns();
        if paused.before().is_running() {
            qmp.broadcast(&EventKind::Stop.now());
            *stopped = true;
        }
        fail_point!(Paused);
        for status in [MigrationStatus::Active, MigrationStatus::Device] {
            migration.advance(status).into_iter().for_each(|event| qmp.broadcast(&event));
        }
        fail_point!(Save);
        let formats = Formats::newest(&SECTIONS);
        let mut state = paused.save(&formats)?;
        safeguard.set_told_stopped(*stopped);
        qmp.flush_published();
        audit_point!(paused, Old);
        phases.stamp("save");
        let dated = Dated::date(paused.ram())?;
        let sample = paused.ram().sample()?;
        phases.stamp("sample");
        let (before, events) = (paused.before(), paused.unhandled_events());
        RebootSection::new(before, events, paused.msr_choice(), dated.stamp, sample)
            .put(&mut state);
        paused.ram().sync().map_err(RebootError::Sync)?;
        phases.stamp("ram");
        fail_point!(Channel);
        file.write(&state.encode(formats.state).0)?;
        phases.stamp("state");
        fail_point!(Commit);
        // From here on, nothing fails: a later process can continue the guest.
        let dated = dated.keep();
        file.keep();
        let downtime = before
            .is_running()
            .then(|| Duration::from_nanos(monotonic_ns().saturating_sub(paused_ns)));
        paused.give_up();
        tracing::info!(phases = phases.since(paused_ns), "reboot_saved");
        Ok(Saved { dated, downtime })
    }
}

/// The parts of the VMM that a save uses.
pub struct SaveContext<'a> {
    /// The machine.
    pub machine: &'a mut Machine,
    /// The QMP server.
    pub qmp: &'a mut Server,
    /// The migration's status.
    pub migration: &'a mut Migration,
    /// What continues the guest if this process fails.
    pub safeguard: &'a Safeguard,
    /// Set to whether clients were told that the guest has stopped.
    pub stopped: &'a mut bool,
}

/// A guest that was saved, and still exists here.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    /// The RAM file's time of modification. Another one means that another process has run the
    /// guest.
    pub dated: Stamp,
    /// How long the guest was stopped until it was saved; `None` if it did not run before.
    pub downtime: Option<Duration>,
}

/// A RAM file with the date of a save. Dropped before [`Dated::keep`], it gets another one: the
/// guest runs on, and a copy of the state must not load any more.
struct Dated<'a> {
    ram: &'a RamBlock,
    stamp: Stamp,
    keep: bool,
}

impl<'a> Dated<'a> {
    fn date(ram: &'a RamBlock) -> Result<Self, RebootError> {
        Ok(Self { ram, stamp: ram.date()?, keep: false })
    }

    fn keep(mut self) -> Stamp {
        self.keep = true;
        self.stamp
    }
}

impl Drop for Dated<'_> {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.ram.date()
        {
            tracing::warn!(%error, "reboot_ram_not_dated");
        }
    }
}
