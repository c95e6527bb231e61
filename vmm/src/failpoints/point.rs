//! The fail points: every edge of the update's protocol.

/// Which process a point is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The process before exec.
    Old,
    /// The process after exec.
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
            /// All points, in the order in which an update reaches them.
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
    /// When the vCPUs are paused.
    Paused: Old "paused",
    /// Before state is read.
    Save: Old "save",
    /// Before the state is written to the channel.
    Channel: Old "channel",
    /// Before the state's copy is written.
    Copy: Old "copy",
    /// Before the CPR state is written.
    State: Old "state",
    /// Before descriptors are made to survive exec.
    Publish: Old "publish",
    /// Right before exec.
    Exec: Old "exec",
    /// When the fallback record has been found.
    Adopt: New "adopt",
    /// When the descriptors have owners.
    Owned: New "owned",
    /// When the log is open.
    Log: New "log",
    /// When the end signals have handlers.
    Signals: New "signals",
    /// When RAM is mapped.
    Ram: New "ram",
    /// When QMP has been restored.
    Qmp: New "qmp",
    /// When the serial port's host side has been restored.
    Serial: New "serial",
    /// When the machine exists, without its KVM part.
    Machine: New "machine",
    /// When the state has been read and fits.
    Read: New "read",
    /// Before the memslots are registered.
    Memslots: New "memslots",
    /// Before the irqchip is created.
    CreateIrqchip: New "create-irqchip",
    /// Before the PIT is created.
    CreatePit: New "create-pit",
    /// Before the vCPUs are created.
    CreateVcpus: New "create-vcpus",
    /// Before the devices get their state.
    Devices: New "devices",
    /// Before the vCPUs get their state.
    Vcpus: New "vcpus",
    /// On a vCPU's thread, before its state is restored.
    VcpuRestore: New "vcpu-restore",
    /// Before the irqchip is set.
    SetIrqchip: New "set-irqchip",
    /// Before the PIT is set.
    SetPit: New "set-pit",
    /// Before the clock is set.
    SetClock: New "set-clock",
    /// Before the commit point, after which no fallback is possible.
    Commit: New "commit",
}

impl Point {
    /// Whether data is written there that can be cut short.
    pub fn writes(self) -> bool {
        matches!(self, Self::Channel | Self::State)
    }
}
