//! Mode `normal`: RAM and state go to another process, on any host, or to a file.
//!
//! RAM is copied while the guest runs, in passes: the first has all pages, each further one those
//! that the guest has written since (KVM's dirty log). Once the rest can be copied within
//! `downtime-limit`, the guest stops, and the rest follows with the state.
//!
//! Over a socket, the new process confirms that it has loaded everything; then the old one gives the
//! guest up for good, and only then tells the new one to run it. So whatever fails before that leaves
//! the guest in the old process, and no failure at any time lets it run in two. A connection that
//! breaks at that very moment can leave it running in neither: both keep it, stopped, and `cont`
//! continues it in the one that an operator chooses.

mod copier;
mod error;
pub mod handover;
mod holes;
pub mod incoming;
pub mod on_demand;
pub mod outgoing;
mod peer;
mod progress;
mod ram_stream;
pub mod section;
mod sink;
pub mod snapshot;

pub use error::{NormalError, NormalLoadError};
pub use peer::PeerError;
