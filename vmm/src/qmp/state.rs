//! What of the server travels over an update.

use cpr_qmp::codec::Skip;
use serde::{Deserialize, Serialize};

use crate::unix_listener::ListenerState;

/// The server without its descriptors, which it names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerState {
    /// The listener; absent without `--qmp`.
    pub listener: Option<ListenerState>,
    /// The clients.
    pub connections: Vec<ConnectionState>,
    /// The number of the client that was served last.
    pub last_served: u64,
    /// The number the last client to come was given.
    pub last_id: u64,
}

/// One client. Bytes it has sent that the kernel still holds are not in here: they stay there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionState {
    /// The name under which the descriptor is handed over.
    pub fd: String,
    /// Its number.
    pub id: u64,
    /// True after `qmp_capabilities`.
    pub negotiated: bool,
    /// Bytes read and not yet understood.
    #[serde(with = "serde_bytes")]
    pub pending_input: Vec<u8>,
    /// How far the rest of some garbage is being skipped, if it is.
    pub skipping: Option<Skip>,
    /// Bytes not yet sent.
    #[serde(with = "serde_bytes")]
    pub pending_output: Vec<u8>,
    /// The request that was handed out and not answered: the new process answers it.
    pub in_flight: Option<InFlight>,
    /// True if it will send no more.
    pub ended: bool,
}

/// A request that was handed out and not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// Its `id` as JSON text: `null` is an `id` too.
    pub id: Option<String>,
}

impl ServerState {
    /// Makes up for what went over a client's socket after this copy was made: so many bytes of its
    /// output were `sent`, and this was `received`.
    pub fn make_up_for(&mut self, client: u64, sent: usize, received: &[u8]) {
        if let Some(client) = self.connections.iter_mut().find(|c| c.id == client) {
            // What was sent beyond it was not kept, and is not to be sent again.
            client.pending_output.drain(..sent.min(client.pending_output.len()));
            client.pending_input.extend_from_slice(received);
        }
    }
}

/// A server could not go on where another stopped.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A descriptor was not handed over.
    #[error("taking over QMP: the descriptor '{name}' was not handed over")]
    MissingFd {
        /// Its name.
        name: String,
    },
    /// Two clients have the same number.
    #[error("taking over QMP: there are two clients of number {id}")]
    DuplicateClient {
        /// The number.
        id: u64,
    },
}
