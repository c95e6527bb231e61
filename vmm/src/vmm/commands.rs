//! Carries out QMP commands.

use cpr_qmp::command::{Command, MigrateIncomingArgs};
use cpr_qmp::event::EventKind;
use cpr_qmp::info::{CpuInfoFast, MemoryInfo, NameInfo, SysEmuTarget};
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::{
    MigrationCapability, MigrationCapabilityStatus, MigrationInfo, MigrationParameters,
};
use cpr_qmp::run_state::{RunState, ShutdownCause, StatusInfo};
use serde_json::Value;

use super::answers::{answer, done, generic};
use super::incoming::{LoadError, Source};
use super::rehearsing::Rehearsing;
use super::sending::{self, DOWNTIME_LIMIT, MAX_BANDWIDTH};
use super::{FAILURE, Vmm, rehearsing};
use crate::logging;
use crate::migration::blockers::blocked_reasons;
use crate::migration::channel;
use crate::migration::cpr::{fall_back, plan};

impl Vmm {
    pub(super) fn execute(&mut self, command: Command) -> Result<Value, QmpError> {
        match command {
            Command::QueryName => answer(&NameInfo { name: self.config.name.clone() }),
            Command::QueryStatus => {
                let status = self.machine.run_state();
                answer(&StatusInfo { running: status.is_running(), status })
            }
            Command::QueryCpusFast => answer(&self.cpus()),
            Command::QueryMemorySizeSummary => answer(&MemoryInfo {
                base_memory: self.machine.ram().size(),
                plugged_memory: Some(0),
            }),
            Command::Stop => {
                self.stop(RunState::Paused).map_err(generic)?;
                done()
            }
            Command::Cont => self.qmp_cont(),
            Command::Quit => {
                self.end(0, false, ShutdownCause::HostQmpQuit);
                done()
            }
            Command::SystemReset => self.qmp_system_reset(),
            Command::SystemPowerdown => self.qmp_system_powerdown(),
            Command::InjectNmi => self.qmp_inject_nmi(),
            Command::MigrateCancel => {
                // After the rehearsal, the update ends before the next command is read.
                self.cancel_rehearsal();
                self.cancel_transfer();
                self.cancel_sending();
                done()
            }
            Command::MigrateIncoming(args) => self.migrate_incoming(&args),
            Command::QueryMigrate => {
                let elapsed = self.rehearsing.as_ref().map(Rehearsing::elapsed);
                answer(&MigrationInfo {
                    x_rehearsal_time: elapsed.map(|elapsed| elapsed.as_millis() as u64),
                    ..self.migration.info(self.blocked_reasons())
                })
            }
            Command::MigrateSetParameters(new) => {
                plan::check_deadline(&new).map_err(generic)?;
                sending::check_parameters(&new)?;
                let old = std::mem::take(&mut self.parameters);
                self.parameters = MigrationParameters {
                    mode: new.mode.or(old.mode),
                    max_bandwidth: new.max_bandwidth.or(old.max_bandwidth),
                    downtime_limit: new.downtime_limit.or(old.downtime_limit),
                    cpr_exec_command: new.cpr_exec_command.or(old.cpr_exec_command),
                    x_cpr_exec_rehearsal: new.x_cpr_exec_rehearsal.or(old.x_cpr_exec_rehearsal),
                    x_cpr_exec_rehearsal_timeout: new
                        .x_cpr_exec_rehearsal_timeout
                        .or(old.x_cpr_exec_rehearsal_timeout),
                    x_cpr_exec_deadline: new.x_cpr_exec_deadline.or(old.x_cpr_exec_deadline),
                    x_max_downtime: new.x_max_downtime.or(old.x_max_downtime),
                };
                self.limit_sending();
                done()
            }
            Command::QueryMigrateParameters => answer(&MigrationParameters {
                mode: Some(self.parameters.mode.unwrap_or_default()),
                max_bandwidth: Some(self.parameters.max_bandwidth.unwrap_or(MAX_BANDWIDTH)),
                downtime_limit: Some(self.parameters.downtime_limit.unwrap_or(DOWNTIME_LIMIT)),
                cpr_exec_command: Some(
                    self.parameters.cpr_exec_command.clone().unwrap_or_default(),
                ),
                x_cpr_exec_rehearsal: Some(rehearsing::wanted(&self.parameters)),
                x_cpr_exec_rehearsal_timeout: Some(
                    rehearsing::timeout(&self.parameters).as_millis() as u64,
                ),
                x_cpr_exec_deadline: Some(plan::deadline(&self.parameters).as_millis() as u64),
                x_max_downtime: Some(self.parameters.x_max_downtime.unwrap_or(0)),
            }),
            Command::MigrateSetCapabilities(args) => self.set_capabilities(&args.capabilities),
            Command::QueryMigrateCapabilities => answer(&[MigrationCapabilityStatus {
                capability: MigrationCapability::Events,
                state: self.migration.events(),
            }]),
            #[cfg(feature = "failpoints")]
            Command::QueryFailpoints => answer(&super::failpoints::list()),
            #[cfg(feature = "failpoints")]
            Command::XSetFailpoint(args) => super::failpoints::set(&args),
            #[cfg(feature = "failpoints")]
            Command::XAudit => super::failpoints::audit(&self.machine),
            #[cfg(feature = "failpoints")]
            Command::XInject(args) => super::failpoints::inject(&self.machine, &args),
            Command::QmpCapabilities(_)
            | Command::Migrate(_)
            | Command::Pmemsave(_)
            | Command::QueryVersion
            | Command::QueryCommands
            | Command::QueryQmpSchema => {
                Err(QmpError::generic("this command is answered elsewhere"))
            }
        }
    }

    fn blocked_reasons(&self) -> Vec<String> {
        // Without a guest, nothing blocks its migration.
        let mode = self.parameters.mode.unwrap_or_default();
        self.needs_guest().map_or(Vec::new(), |()| blocked_reasons(self.machine.ram(), mode))
    }

    fn cpus(&self) -> Vec<CpuInfoFast> {
        let cpu = |(index, thread): (i64, i32)| CpuInfoFast {
            cpu_index: index,
            qom_type: "host-x86_64-cpu".to_owned(),
            qom_path: format!("/machine/unattached/device[{index}]"),
            thread_id: thread.into(),
            target: SysEmuTarget::X86_64,
        };
        (0..).zip(self.machine.vcpu_threads()).map(cpu).collect()
    }

    fn qmp_cont(&mut self) -> Result<Value, QmpError> {
        self.take_back_saved()?;
        self.take_back_sent();
        match self.machine.run_state() {
            RunState::Inmigrate | RunState::Postmigrate => {
                self.needs_guest()?;
                done()
            }
            RunState::InternalError | RunState::Shutdown => {
                Err(QmpError::generic("Resetting the Virtual Machine is required"))
            }
            _ => {
                self.cont();
                done()
            }
        }
    }

    fn qmp_system_reset(&mut self) -> Result<Value, QmpError> {
        if self.filling.is_some() {
            // It writes to RAM on this thread, which would wait for the file.
            return Err(QmpError::generic(
                "guest RAM is still being read: retry when it is complete",
            ));
        }
        self.take_back_saved()?;
        self.take_back_sent();
        self.needs_guest()?;
        self.reset(false, ShutdownCause::HostQmpSystemReset);
        done()
    }

    fn qmp_system_powerdown(&mut self) -> Result<Value, QmpError> {
        self.needs_guest()?;
        if let Some(bus) = self.machine.bus() {
            bus.press_power_button();
        }
        self.qmp.broadcast(&EventKind::Powerdown.now());
        done()
    }

    fn qmp_inject_nmi(&mut self) -> Result<Value, QmpError> {
        self.needs_guest()?;
        self.machine.inject_nmi().map_err(generic)?;
        done()
    }

    fn migrate_incoming(&mut self, args: &MigrateIncomingArgs) -> Result<Value, QmpError> {
        if self.awaits_ram {
            return self.load_from(&args.address()?, args.exit_on_error != Some(false));
        }
        let path = channel::file_path(&args.address()?).map_err(generic)?;
        if self.awaits_saved {
            return self.load_saved_at(&path, args.exit_on_error != Some(false));
        }
        self.load(Source::File(&path)).map_err(|error| {
            // The VMM survives if it awaited no state, or if another file may be tried.
            let again = self.awaited.is_some() && args.exit_on_error == Some(false);
            if !again && !matches!(error, LoadError::NotAwaited) {
                fall_back::fall_back_if_armed(format_args!("{error}"));
                logging::fatal(&error);
                self.end(FAILURE, false, ShutdownCause::HostError);
            }
            if again && let Err(error) = self.await_state() {
                tracing::warn!(%error, "cpr_deadline");
            }
            generic(error)
        })?;
        done()
    }

    fn set_capabilities(
        &mut self,
        capabilities: &[MigrationCapabilityStatus],
    ) -> Result<Value, QmpError> {
        for MigrationCapabilityStatus { capability: MigrationCapability::Events, state } in
            capabilities
        {
            self.migration.set_events(*state);
        }
        done()
    }
}
