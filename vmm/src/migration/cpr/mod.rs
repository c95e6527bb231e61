//! `cpr-exec`: the update in place.
//!
//! The old process walks [`update`]: check, pause, save, publish, exec. The new one starts in
//! [`take_over`]. What passes between them: the saved state in the migration channel, and
//! [`state::CprState`] in a sealed memfd whose number is in the environment. A new one that fails
//! goes back to the old one ([`fall_back`]).

pub mod command;
pub mod description;
pub mod fall_back;
#[cfg(test)]
mod golden;
pub mod headroom;
pub mod held_signals;
pub mod helper;
pub mod named_fds;
pub mod phases;
pub mod publish;
mod raw;
pub mod rehearsal;
mod spawn;
mod stack;
pub mod state;
pub mod take_over;
pub mod update;
