//! Where: every edge of the protocol.

use crate::machine::order::Step;

/// Which process a point is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one before exec.
    Old,
    /// The one after it.
    New,
}

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident: $side:ident $name:literal,)*) => {
        /// A place on an edge of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            /// All, in the order in which an update comes by.
            pub const ALL: &[Self] = &[$(Self::$point),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$point => $name),* }
            }

            /// Which process it is in.
            pub fn side(self) -> Side {
                match self { $(Self::$point => Side::$side),* }
            }
        }
    };
}

points! {
    /// After everything was checked.
    Check: Old "check",
    /// Before the command is rehearsed.
    Rehearsal: Old "rehearsal",
    /// Before the helper is started.
    Helper: Old "helper",
    /// Before the vCPUs are paused.
    Pause: Old "pause",
    /// When they stand still.
    Paused: Old "paused",
    /// Before state is read.
    Save: Old "save",
    /// Before it is written to the channel.
    Channel: Old "channel",
    /// Before its copy is written.
    Copy: Old "copy",
    /// Before the CPR state is written.
    State: Old "state",
    /// Before descriptors are made to survive exec.
    Publish: Old "publish",
    /// Right before exec.
    Exec: Old "exec",
    /// When the way back is found.
    Adopt: New "adopt",
    /// When the descriptors have owners.
    Owned: New "owned",
    /// When the log is open.
    Log: New "log",
    /// When the end signals have handlers.
    Signals: New "signals",
    /// When RAM is mapped.
    Ram: New "ram",
    /// When QMP goes on.
    Qmp: New "qmp",
    /// When the serial port's host side goes on.
    Serial: New "serial",
    /// When there is a machine, without anything of KVM.
    Machine: New "machine",
    /// When the state was read and fits.
    Read: New "read",
    /// Before each step of assembling a machine.
    Memslots: New "memslots",
    /// The same.
    CreateIrqchip: New "create-irqchip",
    /// The same.
    CreatePit: New "create-pit",
    /// The same.
    CreateVcpus: New "create-vcpus",
    /// The same.
    Devices: New "devices",
    /// The same.
    Vcpus: New "vcpus",
    /// On a vCPU's thread, before its state is written.
    VcpuRestore: New "vcpu-restore",
    /// As `Memslots`.
    SetIrqchip: New "set-irqchip",
    /// The same.
    SetPit: New "set-pit",
    /// The same.
    SetClock: New "set-clock",
    /// Before nothing can go back any more.
    Commit: New "commit",
}

impl Point {
    /// Whether something is written there that can be too short.
    pub fn writes(self) -> bool {
        matches!(self, Self::Channel | Self::State)
    }

    /// The point before `step`.
    pub fn before(step: Step) -> Option<Self> {
        Some(match step {
            Step::Memslots => Self::Memslots,
            Step::CreateIrqchip => Self::CreateIrqchip,
            Step::CreatePit => Self::CreatePit,
            Step::CreateVcpus => Self::CreateVcpus,
            Step::Devices => Self::Devices,
            Step::Vcpus => Self::Vcpus,
            Step::Irqchip => Self::SetIrqchip,
            Step::Pit => Self::SetPit,
            Step::Clock => Self::SetClock,
            Step::Run => return None,
        })
    }
}
