//! The server's state that an update hands over.

use cpr_qmp::codec::Skip;
use serde::{Deserialize, Serialize};

use crate::unix_listener::ListenerState;

/// The server's state; descriptors are referred to by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerState {
    /// The listener; absent without `--qmp`.
    pub listener: Option<ListenerState>,
    /// The clients.
    pub connections: Vec<ConnectionState>,
    /// The number of the client that was served last.
    pub last_served: u64,
    /// The number of the newest client.
    pub last_id: u64,
}

/// One client. Bytes that it sent and the kernel still holds are not included: they stay there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionState {
    /// The name under which the descriptor is handed over.
    pub fd: String,
    /// Its number.
    pub id: u64,
    /// True after `qmp_capabilities`.
    pub negotiated: bool,
    /// Bytes read and not yet decoded.
    #[serde(with = "serde_bytes")]
    pub pending_input: Vec<u8>,
    /// How far to skip the rest of some garbage, if it is being skipped.
    pub skipping: Option<Skip>,
    /// Bytes not yet sent.
    #[serde(with = "serde_bytes")]
    pub pending_output: Vec<u8>,
    /// The request that was handed out and not answered; the new process answers it.
    pub in_flight: Option<InFlight>,
    /// True if the client will send no more.
    pub ended: bool,
}

/// A request that was handed out and not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// Its `id` as JSON text: `null` is an `id` too.
    pub id: Option<String>,
}

impl ServerState {
    /// Accounts for a client's traffic after this copy was made: `sent` bytes of its output went
    /// out, and `received` came in.
    pub fn apply_traffic(&mut self, client: u64, sent: usize, received: &[u8]) {
        if let Some(client) = self.connections.iter_mut().find(|c| c.id == client) {
            // Bytes sent beyond it are not in this copy and must not be sent again.
            client.pending_output.drain(..sent.min(client.pending_output.len()));
            client.pending_input.extend_from_slice(received);
        }
    }
}

/// Errors from restoring a server.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A descriptor was not handed over.
    #[error("cannot take over QMP: the descriptor '{name}' was not handed over")]
    MissingFd {
        /// Its name.
        name: String,
    },
    /// Two clients have the same number.
    #[error("cannot take over QMP: duplicate client {id}")]
    DuplicateClient {
        /// The number.
        id: u64,
    },
}
