//! What guests do by themselves: where they wait, and what must happen there.

use crate::scenario::Vm;

/// What the guest of a VM does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// It waits at markers 1 to this one.
    pub markers: u32,
    /// What it does after the last.
    pub end: End,
    /// At each marker it waits for something of the host.
    pub host: Option<Host>,
    /// It counts sweeps.
    pub sweeps: bool,
    /// It talks on the serial port.
    pub talks: bool,
    /// At each marker there has to be one update, or more.
    pub updated_at_markers: bool,
}

/// What a guest does after its last marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It goes on.
    None,
    /// It resets itself.
    Reset,
    /// It powers off.
    Exit,
}

/// What a guest waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// An NMI.
    Nmi,
    /// An edge of the interrupt line.
    Irqfd,
}

impl Guest {
    /// That of `vm`.
    pub fn of(vm: &Vm) -> Self {
        let word = |key: &str| {
            let mut words = vm.cmdline.split_ascii_whitespace();
            words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        };
        let plain = matches!(vm.guest.as_str(), "heartbeat" | "pattern");
        let host = match word("test") {
            Some("host-nmi") => Some(Host::Nmi),
            Some("host-irqfd") => Some(Host::Irqfd),
            _ => None,
        };
        Self {
            markers: word("markers").and_then(|n| n.parse().ok()).unwrap_or(0),
            end: match word("end") {
                Some("reset" | "triple") => End::Reset,
                Some("exit") => End::Exit,
                _ => End::None,
            },
            host,
            sweeps: matches!(vm.guest.as_str(), "pattern" | "serial"),
            talks: vm.guest == "serial",
            updated_at_markers: !plain && host.is_none(),
        }
    }
}

/// Where a guest is among its markers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marker {
    /// The last one it went on from.
    pub last: u32,
    /// It was seen waiting at the next one.
    pub waits: bool,
    /// What it waits for has come.
    pub sent: bool,
}

impl Marker {
    /// It waits at marker `n`.
    pub fn reached(&mut self, n: u32) {
        (self.last, self.waits) = (n.saturating_sub(1), true);
    }

    /// It goes on from it.
    pub fn passed(&mut self, n: u32) {
        *self = Self { last: n, waits: false, sent: false };
    }
}
