//! vCPUs: their threads, how they are stopped, and their saved state.

mod access;
mod cpuid;
mod due_timer;
mod events;
mod exit;
mod handle;
mod kick;
mod known_msrs;
mod lapic_timer;
mod msrs;
pub mod order;
pub mod raw;
mod request;
mod settle;
pub mod shared;
mod state;
mod state_error;
mod thread;

pub use access::{Access, StateCapabilities};
pub use cpuid::{CpuidError, cpuid_for};
pub use events::{EventSink, GuestEvent, GuestEventKind};
pub use handle::{Answer, PauseError, VcpuHandle};
pub use kick::install_kick_handler;
pub use request::VcpuStart;
pub use state::VcpuState;
pub use state_error::StateError;
