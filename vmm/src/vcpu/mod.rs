//! vCPUs: their threads, how they are stopped, and their saved state.

mod cpuid;
mod events;
mod exit;
mod handle;
mod kick;
mod known_msrs;
mod lapic_timer;
mod msrs;
pub mod order;
pub mod raw;
mod settle;
pub mod shared;
mod state;
mod thread;

pub use cpuid::{CpuidError, cpuid_for};
pub use events::{EventSink, GuestEvent, GuestEventKind};
pub use handle::{Answer, PauseError, VcpuHandle, VcpuStart};
pub use kick::install_kick_handler;
pub use state::{Access, StateCapabilities, StateError, VcpuState};
