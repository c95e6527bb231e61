//! The model of a case: what TOML compiles to, and what Rust tests build directly.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::command_kind::{CommandKind, Errno};
use super::fault::Inject;
use super::interrupt::{Interrupt, Interruption};
use super::kill::{EndBy, Fate, Keeper, KillVmm};
use super::kill_in_update::KillInUpdate;
use super::limit::{Amount, Limit};
use super::signal::SignalAt;
use super::size::Size;
use super::soak::Soak;
use super::stalled::Stalled;
use super::storm::Storm;

/// One run of one scenario, everything decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// `theme/scenario[key=value,…]`.
    pub name: String,
    /// What it shows, in one line.
    pub summary: String,
    /// The guest's seed.
    pub seed: u64,
    /// After this time the watchdog ends it.
    pub deadline_ms: u64,
    /// An update that succeeds may stop the guest for so long; none: as the check has it.
    #[serde(default, rename = "max-blackout-ms", skip_serializing_if = "Option::is_none")]
    pub max_blackout_ms: Option<u64>,
    /// It is run only when it is asked for by name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_request: bool,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// The virtual machine.
    pub vm: Vm,
}

/// The virtual machine of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// Which guest boots.
    #[serde(default = "heartbeat")]
    #[schemars(transform = super::schema::guests)]
    pub guest: String,
    /// vCPUs.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 8))]
    pub cpus: u32,
    /// RAM.
    #[serde(default)]
    pub memory: Size,
    /// RAM is shared memory, which an update needs.
    #[serde(default = "yes")]
    pub share: bool,
    /// Page size of RAM.
    #[serde(default)]
    pub pages: Pages,
    /// What its serial port is connected to.
    #[serde(default, skip_serializing_if = "SerialKind::is_default")]
    pub serial: SerialKind,
    /// The guest does not start before `cont`.
    #[serde(default)]
    pub paused: bool,
    /// More of the guest's command line; the seed is in it anyway.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cmdline: String,
    /// A system call filter that it is started under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Seccomp>,
    /// The signal settings that it is started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<Signals>,
    /// It has a memory cgroup of its own, with this limit once the guest has booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Amount>,
    /// It is started from a copy of its binary in the case's folder.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_binary: bool,
    /// Its keeper; none: as the VMM has it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<Keeper>,
    /// What it logs goes to a pipe that nobody reads.
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
    /// All that can be are blocked.
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
    /// A socket.
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
    /// 2 MiB pages from the host's reserve.
    #[serde(rename = "2m")]
    #[value(name = "2m")]
    Reserved,
}

impl Pages {
    /// As it stands in a scenario and on the VMM's command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Small => "4k",
            Self::Transparent => "thp",
            Self::Reserved => "2m",
        }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Start the VMM and wait until the guest's body runs.
    Boot,
    /// `stop`.
    Stop,
    /// `cont`.
    Cont,
    /// `system_reset`, and wait for the next boot of the guest.
    Reset,
    /// `quit`: the VMM ends by itself.
    Quit,
    /// SIGKILL.
    Kill,
    /// `stop` or `cont`, whichever leads there; nothing if the guest is there already.
    Bring(RunWish),
    /// Wait for progress of the guest.
    Wait(Wait),
    /// Let the guest go on from this marker.
    Go(u32),
    /// At each of the guest's markers up to this one: wait for it, update, let the guest go on.
    EachMarker(u32),
    /// A client comes to the serial port's socket, or leaves it.
    Serial(SerialWish),
    /// Update the VMM.
    Migrate(Migrate),
    /// Update the VMM, and watch the guest meanwhile.
    Measure,
    /// Let the next update meet a fault.
    Inject(Inject),
    /// Send an NMI to every vCPU.
    Nmi,
    /// Move the interrupt line that the VMM has behind a descriptor.
    Irqfd,
    /// Send INIT and SIPI to a vCPU.
    Start(StartAt),
    /// Let updates meet every fault at this point, each followed by a good one.
    Faults(String),
    /// Let the VMM's process be killed at this point of an update, which it must survive.
    KillAt(String),
    /// These steps, so often.
    Repeat(Repeat),
    /// Updates at random moments, from the case's seed.
    Storm(Storm),
    /// Updates without end, from the case's seed.
    Soak(Soak),
    /// Let an update meet a signal at this point: the VMM ends.
    Signal(SignalAt),
    /// Let something come while an update is held at a point.
    Interrupt(Interrupt),
    /// Let everything come while updates are held at this point, at last `quit`.
    Interrupts(String),
    /// Cut off updates by a signal; a VM that is gone is started anew in the same place.
    KillInUpdate(KillInUpdate),
    /// SIGKILL to the main process of the VMM, outside of updates.
    KillVmm(KillVmm),
    /// End the VMM from outside, outside of updates.
    EndBy(EndBy),
    /// Send these commands in one write, so that each arrives while the ones before are at work.
    Race(Vec<RaceCommand>),
    /// Set a soft limit of the VMM.
    Limit(Limit),
    /// Change the file that the VMM was started from.
    Binary(BinaryChange),
}

/// Where a vCPU is to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartAt {
    /// The vCPU.
    pub cpu: u8,
    /// The page below 1 MiB, by its number.
    pub page: u8,
}

/// Steps that are done several times, one round after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Repeat {
    /// How often.
    pub times: u32,
    /// What.
    pub steps: Vec<Step>,
}

impl Step {
    /// Nothing can follow it.
    pub fn ends(&self) -> bool {
        match self {
            Self::Quit | Self::Kill | Self::EndBy(_) => true,
            Self::KillVmm(kill) => kill.expect == Fate::Gone,
            Self::Migrate(migrate) => migrate.expect == Expect::Ended,
            Self::Interrupt(interrupt) => interrupt.with == Interruption::Quit,
            _ => false,
        }
    }
}

/// What becomes of the file that the VMM was started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BinaryChange {
    /// It is removed.
    Deleted,
    /// Another file takes its name.
    Replaced,
    /// It is opened for writing, and written if nobody executes it.
    Overwritten,
}

/// A state to bring the guest to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunWish {
    /// The vCPUs run.
    Running,
    /// They stand still.
    Stopped,
}

/// What a client of the serial port does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SerialWish {
    /// It connects; from then on it sends numbered lines and checks those it gets.
    Connect,
    /// It closes its connection.
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
    /// The serial port's client gets this many more lines.
    SerialLines(u64),
}

/// An update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The command to execute.
    #[serde(default)]
    pub command: CommandKind,
    /// The migration channel.
    #[serde(default)]
    pub channel: Channel,
    /// Whether the VMM rehearses the command before the guest stops; none: as it does by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<bool>,
    /// After how many milliseconds the VMM must have come to an end; none: as it does by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// How it must end.
    #[serde(default)]
    pub expect: Expect,
    /// How often, one after the other.
    #[serde(default = "one")]
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

/// Where the state goes.
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
    /// `file:` that is a directory.
    Directory,
    /// `file:` on a file system that has no room.
    Full,
    /// `file:` on a file system mounted read-only.
    ReadOnly,
    /// A list of channels without a main one.
    OnlyCpr,
}

/// How an update must end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// It succeeds.
    #[default]
    Completed,
    /// It is refused in the answer to `migrate` or to setting its parameters, before the guest
    /// stops, with this in the error.
    Refused(String),
    /// It fails, and the guest goes on as before.
    Failed(Failure),
    /// It is refused or fails, with this in the error, and the guest goes on as before.
    Undone(String),
    /// It succeeds, is refused or fails; in any case the guest goes on.
    Kept,
    /// The VMM's process dies in it, and the VM continues in its keeper's.
    Revived,
    /// Whatever comes of it, the VM continues undamaged, in this process or its keeper's.
    Survives,
    /// Whatever comes of it, the VMM ends well, as a signal has asked it to.
    Ended,
}

/// What the error of a failed update must say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The errno; by default that of the bad command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<Errno>,
    /// More text that must be in it.
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
    /// The guest, waiting at a marker with `end=reset` on its command line, goes on and resets.
    GuestReset,
    /// The guest, waiting at a marker with `end=exit` on its command line, goes on and powers off.
    GuestExit,
}

impl RaceCommand {
    /// The guest boots anew.
    pub fn resets(self) -> bool {
        matches!(self, Self::Reset | Self::GuestReset)
    }

    /// The VMM ends.
    pub fn ends(self) -> bool {
        matches!(self, Self::Quit | Self::GuestExit)
    }
}
