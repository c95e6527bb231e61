//! The VM behind a gateway: executes QMP commands, and derives events and statuses from the VMM's
//! reports.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;

use cpr_qmp::address::{MigrationAddress, MigrationChannelType, SocketAddress};
use cpr_qmp::command::{Command, MigrateArgs};
use cpr_qmp::info::{CommandInfo, CpuInfoFast, SysEmuTarget};
use cpr_qmp::message::{Event, Greeting, GreetingBody, QmpError, VersionInfo, VersionTriple};
use cpr_qmp::migration::{
    MigMode, MigrationCapability, MigrationCapabilityStatus, MigrationInfo, MigrationStatus,
};
use cpr_qmp::request::Request;
use cpr_qmp::run_state::{RunState, StatusInfo};
use serde::Serialize;
use serde_json::{Value, json};

use super::Input;
use crate::backend::Channels;
use crate::backend::channels::Main;
use crate::backend::control::{Control, ControlError, Happened, Move};
use crate::scenario::Mode;

/// The commands that a gateway knows.
const COMMANDS: [&str; 17] = [
    "qmp_capabilities",
    "query-version",
    "query-commands",
    "query-status",
    "query-cpus-fast",
    "stop",
    "cont",
    "quit",
    "system_reset",
    "system_powerdown",
    "inject-nmi",
    "migrate",
    "query-migrate",
    "migrate-set-parameters",
    "query-migrate-parameters",
    "migrate-set-capabilities",
    "query-migrate-capabilities",
];

/// QEMU's default of `downtime-limit`, in milliseconds.
const DOWNTIME_LIMIT_MS: u64 = 300;

/// Where the VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In this process.
    Here,
    /// It is being moved to another process.
    Leaving,
    /// In another process.
    Gone,
    /// Expected from another process.
    Expected,
}

pub(super) struct Machine {
    control: Arc<dyn Control>,
    title: String,
    place: Place,
    /// The guest was stopped in the update under way.
    stopped: bool,
    /// The guest resumed before the update under way was known to have failed.
    resumed: bool,
    mode: MigMode,
    downtime_limit_ms: u64,
    with_events: bool,
    status: MigrationStatus,
    error: Option<String>,
    process_ended: bool,
    quits: bool,
    events: Vec<Event>,
    /// For results that come after what was reported before.
    results: Sender<Input>,
}

impl Machine {
    pub fn new(
        control: Arc<dyn Control>,
        title: String,
        incoming: bool,
        results: Sender<Input>,
    ) -> Self {
        Self {
            control,
            title,
            place: if incoming { Place::Expected } else { Place::Here },
            stopped: false,
            resumed: false,
            mode: MigMode::Normal,
            downtime_limit_ms: DOWNTIME_LIMIT_MS,
            with_events: false,
            status: MigrationStatus::None,
            error: None,
            process_ended: false,
            quits: false,
            events: Vec::new(),
            results,
        }
    }

    /// The first message to a client.
    pub fn greeting(&self) -> Greeting {
        Greeting { qmp: GreetingBody { version: self.version(), capabilities: Vec::new() } }
    }

    /// Returns the events since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Whether there is nothing left to serve: the process has ended, and what became of its VM has
    /// been told.
    pub fn is_over(&self) -> bool {
        let is_told = match self.place {
            // How it ends is not known yet.
            Place::Leaving => false,
            Place::Gone => self.quits,
            Place::Here | Place::Expected => true,
        };
        self.process_ended && is_told
    }

    /// The process has ended.
    pub fn ended(&mut self) {
        self.process_ended = true;
    }

    /// The VMM reports something.
    pub fn happened(&mut self, happened: Happened) {
        match (happened, self.place) {
            (Happened::Stopped, Place::Leaving) => {
                self.stopped = true;
                self.emit("STOP", None);
                self.reach_device();
            }
            (Happened::Pass(number), Place::Leaving) => {
                self.reach_active();
                self.emit("MIGRATION_PASS", Some(json!({ "pass": number })));
            }
            (Happened::Pass(_), _) => {}
            (Happened::Resumed, Place::Leaving) => self.resumed = true,
            (Happened::Stopped, _) => self.emit("STOP", None),
            (Happened::Resumed, _) => self.emit("RESUME", None),
            (Happened::Reset, _) => {
                let data = json!({ "guest": false, "reason": "host-qmp-system-reset" });
                self.emit("RESET", Some(data));
            }
            // The end of the VM that `quit` asked for has been told.
            (Happened::PoweredOff, _) if self.quits => {}
            (Happened::PoweredOff, _) => {
                let data = json!({ "guest": true, "reason": "guest-shutdown" });
                self.emit("SHUTDOWN", Some(data));
            }
        }
    }

    /// An update to another process has ended.
    pub fn sent(&mut self, result: Result<(), ControlError>) {
        match result {
            Ok(()) => {
                self.reach_device();
                self.place = Place::Gone;
                self.set_status(MigrationStatus::Completed);
            }
            Err(error) => {
                self.place = Place::Here;
                self.error = Some(error.to_string());
                self.set_status(MigrationStatus::Failed);
                if std::mem::take(&mut self.resumed) {
                    self.emit("RESUME", None);
                }
            }
        }
    }

    /// The VM has arrived, or will not.
    pub fn received(&mut self, result: Result<(), ControlError>) {
        // Without `events` no client expects any.
        match result {
            Ok(()) => {
                self.place = Place::Here;
                self.status = MigrationStatus::Completed;
            }
            Err(error) => {
                self.error = Some(error.to_string());
                self.status = MigrationStatus::Failed;
            }
        }
    }

    /// Executes a command.
    pub fn execute(&mut self, request: Request) -> Result<Value, QmpError> {
        let name = request.name.clone();
        if !COMMANDS.contains(&&*name) {
            return Err(QmpError::command_not_found(&name));
        }
        match request.command()? {
            Command::QmpCapabilities(_) => {}
            Command::QueryVersion => return value(&self.version()),
            Command::QueryCommands => {
                return value(&COMMANDS.map(|name| CommandInfo { name: name.to_owned() }));
            }
            Command::QueryStatus => {
                let status = self.run_state()?;
                return value(&StatusInfo { running: status.is_running(), status });
            }
            Command::QueryCpusFast => return value(&self.vcpus()?),
            Command::Stop => {
                if self.run_state()?.is_running() {
                    self.control.stop().map_err(refused)?;
                }
            }
            Command::Cont => match self.run_state()? {
                RunState::Running => {}
                RunState::Postmigrate => {
                    return Err(QmpError::generic("cannot resume the guest: another VMM runs it"));
                }
                RunState::Inmigrate | RunState::FinishMigrate => {
                    let why = "cannot resume the guest: an update is in progress";
                    return Err(QmpError::generic(why));
                }
                _ => self.control.cont().map_err(refused)?,
            },
            Command::SystemReset => self.control.reset().map_err(refused)?,
            Command::SystemPowerdown => self.control.power_down().map_err(refused)?,
            Command::InjectNmi => self.control.nmi().map_err(refused)?,
            Command::Quit => {
                let data = json!({ "guest": false, "reason": "host-qmp-quit" });
                self.emit("SHUTDOWN", Some(data));
                self.quits = true;
                if !self.process_ended {
                    // It may end before it answers. One that stays is noticed.
                    let _ = self.control.quit();
                }
            }
            Command::Migrate(arguments) => self.migrate(&arguments)?,
            Command::QueryMigrate => return value(&self.migration()),
            Command::MigrateSetParameters(parameters) => {
                self.mode = parameters.mode.unwrap_or(self.mode);
                self.downtime_limit_ms =
                    parameters.downtime_limit.unwrap_or(self.downtime_limit_ms);
            }
            Command::QueryMigrateParameters => {
                return Ok(json!({ "mode": self.mode, "downtime-limit": self.downtime_limit_ms }));
            }
            Command::MigrateSetCapabilities(set) => {
                for MigrationCapabilityStatus { capability, state } in set.capabilities {
                    match capability {
                        MigrationCapability::Events => self.with_events = state,
                    }
                }
            }
            Command::QueryMigrateCapabilities => {
                let (capability, state) = (MigrationCapability::Events, self.with_events);
                return value(&[MigrationCapabilityStatus { capability, state }]);
            }
            _ => return Err(QmpError::command_not_found(&name)),
        }
        Ok(json!({}))
    }

    /// Starts to move the VM to another process.
    fn migrate(&mut self, arguments: &MigrateArgs) -> Result<(), QmpError> {
        match self.place {
            Place::Here => {}
            Place::Leaving => {
                return Err(QmpError::generic("There's a migration process in progress"));
            }
            Place::Gone => return Err(QmpError::generic("the VM runs in another process")),
            Place::Expected => return Err(QmpError::generic("Guest is waiting for a migration")),
        }
        let mode = match self.mode {
            MigMode::Normal => Mode::Normal,
            MigMode::CprTransfer => Mode::CprTransfer,
            MigMode::CprReboot => Mode::CprReboot,
            MigMode::CprExec => Mode::CprExec,
        };
        let channels = channels(arguments)?;
        let to = Move { mode, channels, downtime_limit_ms: self.downtime_limit_ms };
        self.place = Place::Leaving;
        (self.stopped, self.resumed, self.error) = (false, false, None);
        self.set_status(MigrationStatus::Setup);
        let (control, results) = (self.control.clone(), self.results.clone());
        let sends = thread::Builder::new().name("qmp-send".into()).spawn(move || {
            let _ = results.send(Input::Sent(control.send(&to)));
        });
        if let Err(error) = sends {
            self.sent(Err(ControlError::new("start a thread", error)));
        }
        Ok(())
    }

    fn reach_active(&mut self) {
        if self.status == MigrationStatus::Setup {
            self.set_status(MigrationStatus::Active);
        }
    }

    fn reach_device(&mut self) {
        self.reach_active();
        if self.status == MigrationStatus::Active {
            self.set_status(MigrationStatus::Device);
        }
    }

    fn set_status(&mut self, status: MigrationStatus) {
        self.status = status;
        if self.with_events {
            self.emit("MIGRATION", Some(json!({ "status": status })));
        }
    }

    fn emit(&mut self, name: &str, data: Option<Value>) {
        self.events.push(Event::now(name, data));
    }

    fn run_state(&self) -> Result<RunState, QmpError> {
        match self.place {
            Place::Gone => Ok(RunState::Postmigrate),
            Place::Expected => Ok(RunState::Inmigrate),
            Place::Leaving if self.stopped => Ok(RunState::FinishMigrate),
            Place::Here | Place::Leaving => self.control.state().map_err(refused),
        }
    }

    fn vcpus(&self) -> Result<Vec<CpuInfoFast>, QmpError> {
        let threads = self.control.vcpu_threads().map_err(refused)?;
        let vcpu = |(index, thread): (usize, i32)| CpuInfoFast {
            cpu_index: index as i64,
            qom_type: "vcpu".into(),
            qom_path: format!("/machine/vcpu[{index}]"),
            thread_id: thread.into(),
            target: SysEmuTarget::X86_64,
        };
        Ok(threads.into_iter().enumerate().map(vcpu).collect())
    }

    fn migration(&self) -> MigrationInfo {
        MigrationInfo {
            status: (self.status != MigrationStatus::None).then_some(self.status),
            error_desc: self.error.clone(),
            ..MigrationInfo::default()
        }
    }

    fn version(&self) -> VersionInfo {
        let qemu = VersionTriple { major: 0, minor: 0, micro: 0 };
        VersionInfo { qemu, package: self.title.clone() }
    }
}

fn value(answer: &impl Serialize) -> Result<Value, QmpError> {
    serde_json::to_value(answer).map_err(|error| QmpError::generic(error.to_string()))
}

fn refused(error: ControlError) -> QmpError {
    QmpError::generic(error.to_string())
}

/// The channels that the arguments of `migrate` name.
fn channels(arguments: &MigrateArgs) -> Result<Channels, QmpError> {
    let unsupported =
        |kind: &str| QmpError::generic(format!("this gateway has no channel of kind {kind}"));
    let main = match arguments.address()? {
        MigrationAddress::Socket(SocketAddress::Unix(unix)) => Main::Unix(unix.path),
        MigrationAddress::Socket(SocketAddress::Inet(inet)) => {
            let port = inet.port.parse();
            Main::Tcp(port.map_err(|_| unsupported("tcp with a named port"))?)
        }
        MigrationAddress::File(file) => Main::File(file.filename),
        other => return Err(unsupported(other.kind())),
    };
    let all = arguments.channels.iter().flatten();
    let cpr = all.into_iter().find_map(|channel| match (channel.channel_type, &channel.addr) {
        (MigrationChannelType::Cpr, MigrationAddress::Socket(SocketAddress::Unix(unix))) => {
            Some(unix.path.clone())
        }
        _ => None,
    });
    Ok(Channels { main, cpr })
}
