//! The messages between an old and a new process, in modes `cpr-transfer` and `normal`.

use cpr_qmp::run_state::RunState;
use serde::{Deserialize, Serialize};

use crate::memory::RamBlockInfo;
use crate::migration::cpr::description::Description;
use crate::state::Fingerprint;
use crate::unix_listener::ListenerState;
use crate::vcpu::GuestEvent;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// From the new process, first: what it is.
    Hello(Box<Description>),
    /// From the old process: what the guest consists of.
    Offer(Offer),
    /// From the new process: the machine exists, and lacks only its state.
    Built,
    /// From the old process: the guest is paused, and its state is on the main channel.
    Handover(Box<Handover>),
    /// From the new process: it has claimed the guest.
    Running {
        /// `CLOCK_MONOTONIC` when the vCPUs ran again, in nanoseconds; `None` if the guest is
        /// stopped.
        resumed_ns: Option<u64>,
    },
    /// From the old process, in mode `normal`: what the guest consists of. Its RAM follows, as a
    /// stream of its own (`normal::ram_stream`).
    Start(Start),
    /// From the old process, in mode `normal`, after RAM: the fingerprint of the saved state, which
    /// follows.
    State(Fingerprint),
    /// From the new process, in mode `normal`: it has loaded everything.
    Loaded,
    /// From the old process, in mode `normal`: it has given the guest up.
    Run,
    /// From either process: it does not continue, for this reason.
    Refused(String),
}

/// What a guest consists of whose RAM is copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// How long each process may take for its part once the guest is stopped, in milliseconds.
    pub deadline_ms: u64,
    /// RAM, in this order.
    pub ram: Vec<RamBlockInfo>,
}

/// What the guest consists of, except its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// How long each process may take for its part, in milliseconds.
    pub deadline_ms: u64,
    /// Identifies the set of MSRs from which the saved ones are chosen.
    pub msr_choice: Option<u64>,
    /// The names of the descriptors of this message, in their order.
    pub descriptors: Vec<String>,
}

/// What is known only once the guest is paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The run state before the transfer.
    pub run_state: RunState,
    /// The fingerprint of the saved state on the main channel.
    pub state: Fingerprint,
    /// Guest requests that have not been handled yet.
    pub pending_events: Vec<GuestEvent>,
    /// `CLOCK_MONOTONIC` when the vCPUs had stopped, in nanoseconds.
    pub paused_ns: u64,
    /// The serial port's listening socket, if it is handed over.
    pub serial_listener: Option<ListenerState>,
    /// The names of the descriptors of this message, in their order.
    pub descriptors: Vec<String>,
}

impl Message {
    /// Returns the message's name, for errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Offer(_) => "Offer",
            Self::Built => "Built",
            Self::Handover(_) => "Handover",
            Self::Running { .. } => "Running",
            Self::Start(_) => "Start",
            Self::State(_) => "State",
            Self::Loaded => "Loaded",
            Self::Run => "Run",
            Self::Refused(_) => "Refused",
        }
    }

    /// Returns the names of the message's descriptors.
    pub fn descriptors(&self) -> &[String] {
        match self {
            Self::Offer(offer) => &offer.descriptors,
            Self::Handover(handover) => &handover.descriptors,
            _ => &[],
        }
    }
}
