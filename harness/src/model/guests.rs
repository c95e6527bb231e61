//! Describes what guests do on their own: where they wait, and what must happen there.

use crate::scenario::Vm;

/// What the guest of a VM does on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The last marker at which it waits; the first is 1.
    pub markers: u32,
    /// What it does after the last marker.
    pub end: End,
    /// What it waits for from the host at each marker, if anything.
    pub host: Option<Host>,
    /// Whether it counts sweeps.
    pub sweeps: bool,
    /// Whether it talks on the serial port.
    pub talks: bool,
    /// Whether it needs at least one update at each marker.
    pub updated_at_markers: bool,
}

/// What a guest does after its last marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It continues.
    None,
    /// It resets itself.
    Reset,
    /// It powers off.
    Exit,
}

/// What a guest waits for from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// An NMI.
    Nmi,
    /// An edge of the interrupt line.
    Irqfd,
}

impl Guest {
    /// Returns the guest of `vm`.
    pub fn of(vm: &Vm) -> Self {
        let plain = matches!(vm.guest.as_str(), "heartbeat" | "pattern" | "linux");
        let host = match vm.word("test") {
            Some("host-nmi") => Some(Host::Nmi),
            Some("host-irqfd") => Some(Host::Irqfd),
            _ => None,
        };
        Self {
            markers: vm.markers(),
            end: match vm.word("end") {
                Some("reset" | "triple") => End::Reset,
                Some("exit") => End::Exit,
                _ => End::None,
            },
            host,
            sweeps: vm.counts_sweeps(),
            talks: vm.guest == "serial",
            updated_at_markers: !plain && host.is_none(),
        }
    }
}

/// Where a guest is among its markers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marker {
    /// The last marker that it has passed.
    pub last: u32,
    /// Whether it was seen waiting at the next one.
    pub waits: bool,
    /// Whether what it waits for has been sent.
    pub sent: bool,
}

impl Marker {
    /// Records that it waits at marker `n`.
    pub fn reached(&mut self, n: u32) {
        (self.last, self.waits) = (n.saturating_sub(1), true);
    }

    /// Records that it has passed marker `n`.
    pub fn passed(&mut self, n: u32) {
        *self = Self { last: n, waits: false, sent: false };
    }
}
