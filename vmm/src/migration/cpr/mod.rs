//! `cpr-exec`: updates the VMM in place.
//!
//! The old process runs [`update`]: check, pause, save, publish, exec. The new one starts in
//! [`take_over`]. Two things pass between them: the saved state in the migration channel, and
//! [`state::CprState`] in a sealed memfd whose number is in the environment. A new process that
//! fails falls back to the old binary ([`fall_back`]).

pub mod command;
pub mod deadlines;
pub mod description;
pub mod downtime;
pub mod fall_back;
pub mod fd_names;
#[cfg(test)]
mod golden;
pub mod headroom;
pub mod held_signals;
pub mod monotonic;
pub mod named_fds;
pub mod outgoing;
pub mod phases;
pub mod plan;
pub mod publish;
pub mod rehearsal;
pub mod safeguard;
mod spawn;
pub mod state;
pub mod take_over;
pub mod update;
pub mod variables;
pub mod version;
