//! vCPUs: their threads, how they are stopped, and their saved state.

mod cpuid;
mod exit;
mod kick;
pub mod order;
mod state;
mod thread;

pub use cpuid::cpuid_for;
pub use kick::install_kick_handler;
pub use state::{StateCapabilities, StateError, VcpuState};
pub use thread::{
    Answer, EventSink, GuestEvent, GuestEventKind, PauseError, VcpuHandle, VcpuStart,
};
