//! `cpr-transfer`: hands the guest to another VMM process, which an operator has started.
//!
//! The new process listens on two channels. Over the cpr channel pass the messages of [`message`],
//! framed by [`wire`], with the descriptors of RAM; over the main channel the saved state.
//!
//! | new process ([`incoming`]) | old process ([`outgoing`], [`handover`]) |
//! |---|---|
//! | `Hello`: its versions and its machine | compares them with its own |
//! | | `Offer`, with RAM, boot images and the page with the commit point |
//! | builds the machine, while the guest still runs; `Built` | |
//! | | pauses and saves; `Handover`, with the serial port; the state |
//! | loads the state, *claims the guest*, runs it; `Running` | gives the guest up for good |
//!
//! Only the claim decides: one atomic step on the page that both processes and the old one's keeper
//! map (`keeper::commit`). Before it, any failure leaves the guest in the old process, which takes
//! the offer back in the same atomic step before it resumes the guest. After it, none of the old
//! process's failures matters. Instead of `Built` or `Running`, and at any time, either process may
//! send `Refused` with its reason.

mod error;
mod fds;
pub mod handover;
pub mod incoming;
mod main_channel;
pub mod message;
mod offer;
pub mod outgoing;
pub mod timed_io;
pub mod wire;
mod wire_error;

pub use error::{ReceiveError, TransferError};
pub use fds::{CrossingFds, ReceivedFds};
pub use wire_error::WireError;
