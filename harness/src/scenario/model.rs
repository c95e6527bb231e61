//! The model of a case: what a TOML scenario compiles to and Rust tests build directly.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::command_kind::{CommandKind, Errno};
use super::fault::Inject;
use super::interrupt::{Interrupt, Interruption};
use super::kill::{EndBy, Keeper, KillOutcome, KillVmm};
use super::kill_in_update::KillInUpdate;
use super::limit::{Amount, Limit};
use super::signal::SignalAt;
use super::size::Size;
use super::soak::Soak;
use super::stalled::Stalled;

/// One run of one scenario, with every parameter fixed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Case {
    /// `theme/scenario[key=value,…]`.
    pub name: String,
    /// What the case shows, in one line.
    pub summary: String,
    /// The guest's seed.
    pub seed: u64,
    /// The time in milliseconds after which the watchdog ends the case.
    #[serde(rename = "time-limit-ms")]
    pub deadline_ms: u64,
    /// The longest blackout of a successful update, in milliseconds; none: the check's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_blackout_ms: Option<u64>,
    /// Whether the case runs only when it is requested by name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_request: bool,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The virtual machine.
    pub vm: Vm,
}

/// The virtual machine of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Vm {
    /// The guest that boots.
    #[serde(default = "heartbeat")]
    #[schemars(transform = super::schema_parts::guests)]
    pub guest: String,
    /// Number of vCPUs.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 8))]
    pub cpus: u32,
    /// Size of RAM.
    #[serde(default)]
    pub memory: Size,
    /// Whether RAM is shared memory, which an update needs.
    #[serde(default = "yes")]
    pub share: bool,
    /// Page size of RAM.
    #[serde(default)]
    pub pages: Pages,
    /// What the serial port is connected to.
    #[serde(default, skip_serializing_if = "SerialKind::is_default")]
    pub serial: SerialKind,
    /// Whether the guest waits for `cont` before it starts.
    #[serde(default)]
    pub paused: bool,
    /// Additional text for the guest's command line; the seed is always included.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cmdline: String,
    /// A system call filter that the VMM is started under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Seccomp>,
    /// The signal settings that the VMM is started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<Signals>,
    /// Gives the VMM its own memory cgroup, with this limit once the guest has booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Amount>,
    /// Whether the VMM is started from a copy of its binary in the case's folder.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_binary: bool,
    /// When the VMM has a keeper; none: the VMM's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<Keeper>,
    /// Sends the VMM's log to a pipe that is never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled: Option<Stalled>,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            guest: heartbeat(),
            cpus: one(),
            memory: Size::default(),
            share: yes(),
            pages: Pages::default(),
            serial: SerialKind::default(),
            paused: false,
            cmdline: String::new(),
            seccomp: None,
            signals: None,
            memory_limit: None,
            own_binary: false,
            keeper: None,
            stalled: None,
        }
    }
}

/// A system call filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Seccomp {
    /// `execve` fails with EPERM, `execveat` works.
    NoExecve,
}

/// Signal settings that a process inherits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Signals {
    /// SIGCHLD is ignored.
    SigchldIgnored,
    /// SIGRTMIN is blocked.
    SigrtminBlocked,
    /// All signals that can be blocked are blocked.
    AllBlocked,
}

fn heartbeat() -> String {
    "heartbeat".into()
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

/// What the guest's serial port is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SerialKind {
    /// A file.
    #[default]
    File,
    /// A UNIX socket.
    Unix,
}

impl SerialKind {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Page size of the guest's RAM on the host.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
pub enum Pages {
    /// 4 KiB.
    #[default]
    #[serde(rename = "4k")]
    #[value(name = "4k")]
    Small,
    /// Transparent huge pages.
    #[serde(rename = "thp")]
    #[value(name = "thp")]
    Transparent,
    /// 2 MiB pages from the host's hugetlbfs pool.
    #[serde(rename = "2m")]
    #[value(name = "2m")]
    Reserved,
}

impl Pages {
    /// The name in a scenario and on the VMM's command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Small => "4k",
            Self::Transparent => "thp",
            Self::Reserved => "2m",
        }
    }
}

/// One step of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Start the VMM and wait until the guest's body runs.
    Boot,
    /// `stop`.
    Stop,
    /// `cont`.
    Cont,
    /// `system_reset`, then wait for the next boot of the guest.
    Reset,
    /// `quit`: the VMM exits.
    Quit,
    /// SIGKILL to the VMM.
    Kill,
    /// `stop` or `cont`, whichever leads to this state; nothing if the guest is already in it.
    Bring(RunTarget),
    /// Wait until the guest makes progress.
    Wait(Wait),
    /// Let the guest continue from this marker.
    Go(u32),
    /// At each of the guest's markers up to this one: wait for it, update, let the guest continue.
    EachMarker(u32),
    /// Connect a client to the serial port's socket, or disconnect it.
    Serial(SerialAction),
    /// Update the VMM.
    Migrate(Migrate),
    /// Update the VMM and watch the guest meanwhile.
    Measure,
    /// Inject a fault into the next update.
    Inject(Inject),
    /// Send an NMI to every vCPU.
    Nmi,
    /// Trigger the interrupt line that the VMM connects to an eventfd (`KVM_IRQFD`).
    Irqfd,
    /// Send INIT and SIPI to a vCPU.
    InitSipi(StartAt),
    /// Inject every fault at this point, each into its own update and followed by a good update.
    Faults(String),
    /// Kill the VMM's process at this point of an update; the VM must survive.
    KillAt(String),
    /// Repeat these steps.
    Repeat(Repeat),
    /// Updates at random times, drawn from the case's seed; checked after each of them.
    Soak(Soak),
    /// Send the VMM a signal at this point of an update; the VMM must end.
    Signal(SignalAt),
    /// Interrupt an update while it is held at a point.
    Interrupt(Interrupt),
    /// Interrupt updates held at this point in every way; `quit` comes last.
    Interrupts(String),
    /// Interrupt updates with a signal; a VM that is gone is started again in the same folder.
    KillInUpdate(KillInUpdate),
    /// SIGKILL to the main process of the VMM, outside updates.
    KillVmm(KillVmm),
    /// End the VMM with a signal or through its cgroup, outside updates.
    EndBy(EndBy),
    /// Send these commands in one write, so that each arrives while earlier ones are in progress.
    Race(Vec<RaceCommand>),
    /// Set a soft limit of the VMM.
    Limit(Limit),
    /// Change the file that the VMM was started from.
    Binary(BinaryChange),
}

/// The place where a vCPU must start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartAt {
    /// The vCPU.
    pub cpu: u8,
    /// The number of the start page, below 1 MiB.
    pub page: u8,
}

/// A sequence of steps to run several times in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Repeat {
    /// Number of rounds.
    pub times: u32,
    /// The steps of one round.
    pub steps: Vec<Step>,
}

impl Step {
    /// Whether the step ends the VMM, so that no step can follow it.
    pub fn ends(&self) -> bool {
        match self {
            Self::Quit | Self::Kill | Self::EndBy(_) => true,
            Self::KillVmm(kill) => kill.expect == KillOutcome::Gone,
            Self::Migrate(migrate) => migrate.expect == Expect::Ended,
            Self::Interrupt(interrupt) => interrupt.with == Interruption::Quit,
            _ => false,
        }
    }
}

/// A change to the file that the VMM was started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BinaryChange {
    /// The file is removed.
    Deleted,
    /// Another file is renamed over it.
    Replaced,
    /// The file is opened for writing, and overwritten unless a process is executing it.
    Overwritten,
}

/// A state to bring the guest to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunTarget {
    /// The vCPUs run.
    Running,
    /// The vCPUs are stopped.
    Stopped,
}

/// What a client of the serial port does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SerialAction {
    /// It connects, then sends numbered lines and checks those it receives.
    Connect,
    /// It closes the connection.
    Leave,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Wait {
    /// This many more heartbeats of every vCPU.
    Heartbeats(u64),
    /// This many more sweeps over RAM by every vCPU.
    Sweeps(u64),
    /// The guest reaches this marker.
    Marker(u32),
    /// The serial port's client receives this many more lines.
    SerialLines(u64),
}

/// An update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Migrate {
    /// The command to execute.
    #[serde(default)]
    pub command: CommandKind,
    /// The migration channel.
    #[serde(default)]
    pub channel: Channel,
    /// Whether the VMM rehearses the command before the guest stops; none: the VMM's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<bool>,
    /// The deadline of the update, in milliseconds; none: the VMM's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// How the update must end.
    #[serde(default)]
    pub expect: Expect,
    /// How many updates, one after the other.
    #[serde(default = "one", rename = "times")]
    pub repeat: u32,
}

impl Default for Migrate {
    fn default() -> Self {
        Self {
            command: CommandKind::default(),
            channel: Channel::default(),
            rehearsal: None,
            deadline_ms: None,
            expect: Expect::default(),
            repeat: one(),
        }
    }
}

/// The channel that the state is saved to.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// `file:` in the case's folder.
    #[default]
    File,
    /// `tcp:`.
    Tcp,
    /// `exec:`.
    Exec,
    /// `unix:`.
    Unix,
    /// `fd:`.
    Fd,
    /// `file:` in a directory that does not exist.
    MissingDirectory,
    /// `file:` with the path of a directory.
    Directory,
    /// `file:` on a full file system.
    Full,
    /// `file:` on a read-only file system.
    ReadOnly,
    /// A list of channels without a `main` channel.
    OnlyCpr,
}

/// How an update must end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// It succeeds.
    #[default]
    Completed,
    /// It is refused in the reply to `migrate` or to setting its parameters, before the guest
    /// stops; the error contains this text.
    Refused(String),
    /// It fails, and the guest continues as before.
    Failed(Failure),
    /// It is refused or fails, and the guest continues as before; the error contains this text.
    NotCompleted(String),
    /// It succeeds, is refused or fails; in any case the guest continues.
    Any,
    /// The VMM's process dies during the update, and the VM continues in the keeper's process.
    Revived,
    /// Whatever the outcome, the VM continues undamaged, in this process or in the keeper's.
    Survives,
    /// Whatever the outcome, the VMM shuts down in an orderly way, as a signal requested.
    Ended,
}

/// What the error of a failed update must contain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The errno; the default is that of the bad command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<Errno>,
    /// Additional text that the error must contain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

/// A command of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RaceCommand {
    /// A good update.
    Migrate,
    /// `system_reset`.
    Reset,
    /// `quit`.
    Quit,
    /// `stop`.
    Stop,
    /// `cont`.
    Cont,
    /// The guest, waiting at a marker with `end=reset` on its command line, continues and resets.
    GuestReset,
    /// The guest, waiting at a marker with `end=exit` on its command line, continues and exits.
    GuestExit,
}

impl RaceCommand {
    /// Whether the guest boots again.
    pub fn resets(self) -> bool {
        matches!(self, Self::Reset | Self::GuestReset)
    }

    /// Whether the VMM ends.
    pub fn ends(self) -> bool {
        matches!(self, Self::Quit | Self::GuestExit)
    }
}
