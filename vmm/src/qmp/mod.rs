//! The QMP server: listener, clients, and the commands it can answer by itself.
//!
//! It has no thread and never blocks. The main loop polls [`Server::interests`], reports the events
//! to [`Server::ready`], and takes requests one by one from [`Server::next_request`] until there is
//! none, answering each before it asks for the next. So an answer can be queued before an update
//! replaces the process, and a request that was not taken yet is handed over as raw bytes.

mod acceptor;
mod connection;
mod dispatch;
mod schema;
mod server;
mod state;

pub use acceptor::MAX_CLIENTS;
pub use connection::{MAX_OUTPUT, PAUSE_OUTPUT};
pub use dispatch::version;
pub use schema::schema;
pub use server::{ConnectionId, FD_PREFIX, Interest, MAX_STATE, Request, Server, Token};
pub use state::{ConnectionState, InFlight, RestoreError, ServerState};
