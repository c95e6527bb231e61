//! The VMM program: starts or takes over a guest, then runs one loop until it exits.

mod answers;
mod commands;
mod dump;
mod event_loop;
#[cfg(feature = "failpoints")]
mod failpoints;
mod incoming;
mod loading;
mod protected;
mod receiving;
mod rehearsal_child;
mod rehearsing;
mod reset_throttle;
mod restoring;
mod saving;
mod sending;
mod signals;
mod start;
mod start_error;
mod transferring;

use std::ffi::OsString;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cpr_qmp::command::{Command, MigrateArgs};
use cpr_qmp::event::EventKind;
use cpr_qmp::migration::{MigMode, MigrationParameters, MigrationStatus};
use cpr_qmp::run_state::{RunState, ShutdownCause};

use crate::config::Config;
use crate::devices::DeviceRequest;
use crate::keeper::AdoptedKeeper;
use crate::machine::{Machine, MachineError};
use crate::migration::cpr::monotonic::monotonic_ns;
use crate::migration::cpr::phases::Phases;
use crate::migration::cpr::rehearsal::{Answering, RemainingProcess};
use crate::migration::cpr::safeguard::Safeguard;
use crate::migration::cpr::{fall_back, take_over};
use crate::migration::normal::on_demand::Filling;
use crate::migration::normal::outgoing::Outgoing as Sending;
use crate::migration::reboot::outgoing::Saved;
use crate::migration::status::{Migration, Times};
use crate::migration::transfer::outgoing::Outgoing;
use crate::pid_file::PidFile;
use crate::qmp::{ConnectionId, Server};
use crate::vcpu::{GuestEvent, GuestEventKind};
use crate::{logging, own_binary, reserve};
use incoming::AwaitedState;
use loading::Loading;
use receiving::Receiving;
use rehearsing::Rehearsing;
use reset_throttle::ResetThrottle;
use signals::EndSignals;

/// A running VMM.
struct Vmm {
    config: Config,
    machine: Machine,
    qmp: Server,
    migration: Migration,
    parameters: MigrationParameters,
    log: Option<Arc<File>>,
    signals: EndSignals,
    /// An update that is taken over but whose state is not loaded yet (`--incoming defer`).
    awaited: Option<AwaitedState>,
    /// An update whose guest runs again but which is not finished.
    finishing: Option<Finishing>,
    /// An update whose command is being rehearsed; its answer is pending.
    rehearsing: Option<Rehearsing>,
    /// A transfer whose guest still runs here.
    transferring: Option<Outgoing>,
    /// Set while this process waits for a guest that another one transfers.
    receiving: Option<Receiving>,
    /// A migration whose RAM is being copied (normal).
    sending: Option<Sending>,
    /// Set while this process waits for a guest with its RAM.
    loading: Option<Loading>,
    /// RAM that is being read while the guest runs.
    filling: Option<Filling>,
    /// Set while `migrate-incoming` is to tell where a guest with its RAM comes from.
    awaits_ram: bool,
    /// The guest was sent away with its RAM, and is still here.
    sent: bool,
    /// A guest that was saved for a later process (cpr-reboot), and is still here.
    saved: Option<Saved>,
    /// Set while this process waits for a state that fits its RAM file.
    awaits_saved: bool,
    /// Processes that rehearsals left behind and could not kill, until they end.
    leftovers: Vec<RemainingProcess>,
    /// Memory dumps in progress; their answers are pending.
    dumps: Vec<dump::Dump>,
    /// What continues the guest if this process dies.
    safeguard: Option<Safeguard>,
    /// The safeguard's copy of the state could not be brought up to date.
    stale: bool,
    /// The run state that the guest is about to enter.
    run_state_to_be: Option<RunState>,
    /// Clients were told that an update stopped the guest.
    stopped: bool,
    ended: Option<End>,
    pid_file: Option<PidFile>,
    resets: ResetThrottle,
}

/// An update whose guest runs while the old address space still exists.
struct Finishing {
    keeper: Option<AdoptedKeeper>,
    began_ns: u64,
    downtime_ns: Option<u64>,
}

/// How the VMM exits; clients are told once their pending answers are queued.
struct End {
    status: ExitStatus,
    guest: bool,
    reason: ShutdownCause,
}

/// The process's exit status.
type ExitStatus = u8;

const FAILURE: ExitStatus = 1;
/// Rust's exit status for a panic.
const PANICKED: i32 = 101;
/// How long exit waits for a reader of the serial port.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// See [`crate::main`].
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut phases = Phases::begin();
    logging::hook_panics();
    let args: Vec<OsString> = args.into_iter().collect();
    #[cfg(feature = "failpoints")]
    failpoints::arm_early(&args);
    signals::reset_inherited_signals();
    // SAFETY: the caller calls this first (see `crate::main`).
    let adopted = unsafe { take_over::adopt() };
    phases.done(&"adopt");
    let returned = adopted.as_ref().ok().and_then(Option::as_ref).map(|adopted| &adopted.fallback);
    own_binary::note(returned.filter(|way| way.returned.is_some()).map(|way| way.record.binary));
    signals::survive_file_size_limit();
    // A rehearsal must get as far as its check of the stack limit.
    let config = match reserve::with_enough_stack(|| Config::parse(args.clone())) {
        Ok(config) => config,
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            fall_back::fall_back_if_armed(format_args!("{line}"));
            if !error.use_stderr() {
                error.exit();
            }
            logging::say(format_args!("{}", error.render().to_string().trim_end()));
            logging::finish();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    #[cfg(feature = "failpoints")]
    config.x_state_version.into_iter().for_each(crate::failpoints::pretend_version);
    // A process with a guest to take over is not a rehearsal.
    if let Ok(None) = &adopted {
        // SAFETY: there is still only one thread.
        if let Some(asked) = unsafe { Answering::asked() } {
            return rehearsal_child::answer(asked, &config);
        }
    }
    phases.done(&"parse");
    let result =
        adopted.map_err(start_error::StartError::from).and_then(|a| Vmm::start(config, a, phases));
    let status = match result {
        Ok(vmm) => ExitCode::from(vmm.run()),
        Err(error) => {
            if fall_back::is_armed() {
                tracing::error!(%error, "cpr_fall_back");
            }
            fall_back::fall_back_if_armed(format_args!("{error}"));
            logging::fatal(&error);
            ExitCode::from(FAILURE)
        }
    };
    logging::finish();
    status
}

impl Vmm {
    fn run(mut self) -> ExitStatus {
        match catch_unwind(AssertUnwindSafe(|| self.run_to_the_end())) {
            Ok(status) => status,
            // Exit before the machine is torn down: the keeper continues it.
            Err(_) if self.safeguard.is_some() => crate::sys::exit(PANICKED),
            Err(panic) => resume_unwind(panic),
        }
    }

    fn run_to_the_end(&mut self) -> ExitStatus {
        logging::wake_by(self.machine.wake().clone());
        loop {
            self.checkpoint();
            self.publish_and_send();
            self.deal_with_guest_events();
            // A VMM that is about to exit must not be replaced by one that does not know that.
            if self.ended.is_none() {
                self.poll_rehearsal();
                self.poll_transfer();
                self.poll_receiving();
                self.poll_sending();
                self.poll_loading();
                self.poll_filling();
            }
            self.poll_dumps();
            self.serve_clients();
            if let Some(End { status, guest, reason }) = self.ended {
                // The guest must not be continued after a deliberate exit.
                self.stop_guarding();
                self.qmp.broadcast(&EventKind::Shutdown { guest, reason }.now());
                self.qmp.flush();
                if let Some(bus) = self.machine.bus() {
                    bus.serial().host_mut().drain(LAST_OUTPUT);
                }
                return status;
            }
            self.checkpoint();
            self.publish_and_send();
            if !self.qmp.is_due() {
                self.wait();
            }
        }
    }

    fn end(&mut self, status: ExitStatus, guest: bool, reason: ShutdownCause) {
        if self.ended.is_none() {
            tracing::info!(status, guest, ?reason, "end");
            self.ended = Some(End { status, guest, reason });
            self.own_files();
        }
    }

    fn serve_clients(&mut self) {
        while self.ended.is_none()
            && let Some(request) = self.qmp.next_request()
        {
            self.checkpoint();
            // A process that continues from here refuses the request: it must not be executed
            // twice.
            self.keep_up_to_date();
            match request.command {
                Command::Migrate(args) => self.migrate(request.client, &args),
                Command::Pmemsave(args) => self.pmemsave(request.client, &args),
                other => {
                    let result = self.execute(other);
                    self.qmp.respond(request.client, result);
                }
            }
            self.deal_with_guest_events();
        }
    }

    fn migrate(&mut self, client: ConnectionId, args: &MigrateArgs) {
        // Before a keeper is started, or the one of a migration in progress replaced.
        if let Err(error) = self.check_idle(args) {
            return self.qmp.respond(client, Err(error));
        }
        match self.parameters.mode {
            Some(MigMode::CprTransfer) => self.transfer(client, args),
            Some(MigMode::CprReboot) => self.save_guest(client, args),
            Some(MigMode::CprExec) => self.migrate_safely(client, args),
            Some(MigMode::Normal) | None => self.send_guest(client, args),
        }
    }

    fn deal_with_guest_events(&mut self) {
        self.resets.look_again();
        // What a guest that was saved or sent asked for is in its state.
        while self.ended.is_none()
            && self.saved.is_none()
            && !self.sent
            && let Some(event) = self.machine.next_event(|event| self.resets.admits(event))
        {
            self.handle_event(event);
        }
    }

    fn handle_event(&mut self, GuestEvent { vcpu, kind }: GuestEvent) {
        match kind {
            GuestEventKind::Device(DeviceRequest::Reset) => {
                self.reset(true, ShutdownCause::GuestReset);
            }
            GuestEventKind::Device(DeviceRequest::PowerOff) => {
                self.end(0, true, ShutdownCause::GuestShutdown);
            }
            GuestEventKind::Device(DeviceRequest::Exit(status)) => {
                self.end(status, true, ShutdownCause::GuestShutdown);
            }
            GuestEventKind::TripleFault { rip } => {
                if let Some(left_out) = self.resets.logs() {
                    let rip = format!("{rip:#x}");
                    tracing::error!(vcpu, rip, left_out, "guest_triple_fault");
                }
                // A PC resets on a triple fault, and so does QEMU.
                self.reset(true, ShutdownCause::GuestReset);
            }
            GuestEventKind::Failed(why) => {
                tracing::error!(vcpu, %why, "vcpu_failed");
                if let Err(error) = self.stop(RunState::InternalError) {
                    tracing::error!(%error, "stop_failed");
                }
            }
        }
    }

    fn reset(&mut self, guest: bool, reason: ShutdownCause) {
        match self.reset_machine() {
            Ok(()) => {
                // As in QEMU: a stopped machine returns to `prelaunch`.
                if !self.machine.run_state().is_running() {
                    self.machine.set_run_state(RunState::Prelaunch);
                }
                self.qmp.broadcast(&EventKind::Reset { guest, reason }.now());
            }
            Err(error) => {
                logging::fatal(&format_args!("cannot reset the machine: {error}"));
                self.end(FAILURE, false, ShutdownCause::HostError);
            }
        }
    }

    fn stop(&mut self, state: RunState) -> Result<(), MachineError> {
        if self.machine.run_state().is_running() {
            self.machine.pause(state)?;
            self.qmp.broadcast(&EventKind::Stop.now());
        } else if state == RunState::InternalError {
            self.machine.set_run_state(state);
        } else if self.machine.run_state() == RunState::Inmigrate {
            // As in QEMU, the guest that is awaited does not run until `cont`.
            self.config.paused = true;
        }
        Ok(())
    }

    fn cont(&mut self) {
        if !self.machine.run_state().is_running() {
            self.deal_with_guest_events();
            if self.ended.is_some() {
                return;
            }
            self.machine.resume();
            self.qmp.broadcast(&EventKind::Resume.now());
        }
    }

    /// Finishes the update once the old address space is gone.
    fn finish_update(&mut self) {
        let Some(Finishing { keeper, began_ns, downtime_ns }) = self.finishing.take() else {
            return;
        };
        drop(keeper);
        let duration = Duration::from_nanos;
        let total = duration(monotonic_ns().saturating_sub(began_ns));
        let times = Times { total, downtime: downtime_ns.map(duration) };
        debug_assert_eq!(self.migration.status(), MigrationStatus::Device);
        if let Some(event) = self.migration.complete_with_downtime(times) {
            self.qmp.broadcast(&event);
        }
        self.conclude();
    }
}
