//! The QMP clients of a gateway.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use cpr_qmp::codec::{Decoder, encode};
use cpr_qmp::message::{Event, Greeting, QmpError, Response};
use cpr_qmp::request::{Request, RequestError};
use serde::Serialize;
use serde_json::Value;

/// How long a client may take to read what it is sent.
const WRITTEN: Duration = Duration::from_secs(5);

struct Client {
    stream: UnixStream,
    decoder: Decoder,
    negotiated: bool,
}

/// All clients, by number.
#[derive(Default)]
pub(super) struct Clients {
    clients: BTreeMap<u64, Client>,
    next: u64,
}

impl Clients {
    /// Greets a client, and returns its number.
    pub fn add(&mut self, stream: UnixStream, greeting: &Greeting) -> u64 {
        // So that a client that does not read cannot block the gateway.
        let _ = stream.set_write_timeout(Some(WRITTEN));
        let number = self.next;
        self.next += 1;
        let client = Client { stream, decoder: Decoder::new(), negotiated: false };
        self.clients.insert(number, client);
        self.send(number, greeting);
        number
    }

    /// Removes a client.
    pub fn remove(&mut self, client: u64) {
        if let Some(client) = self.clients.remove(&client) {
            // Ends the thread that reads from it.
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }

    /// Executes the requests that are complete with these bytes. `execute` returns the events that come
    /// before a reply, and the reply.
    pub fn feed(
        &mut self,
        number: u64,
        bytes: &[u8],
        mut execute: impl FnMut(Request) -> (Vec<Event>, Result<Value, QmpError>),
    ) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        client.decoder.feed(bytes);
        while let Some(message) =
            self.clients.get_mut(&number).and_then(|client| client.decoder.next_value())
        {
            let request = match message {
                Ok(message) => Request::from_value(message),
                Err(error) => {
                    Err(RequestError { error: QmpError::generic(error.to_string()), id: None })
                }
            };
            let response = match request {
                Err(RequestError { error, id }) => Response::Failure { error, id },
                Ok(request) => {
                    let (id, negotiates) = (request.id.clone(), request.name == NEGOTIATION);
                    let (events, reply) = execute(request);
                    self.broadcast(&events);
                    if negotiates && let Some(client) = self.clients.get_mut(&number) {
                        client.negotiated = true;
                    }
                    match reply {
                        Ok(value) => Response::Success { value, id },
                        Err(error) => Response::Failure { error, id },
                    }
                }
            };
            self.send(number, &response);
        }
    }

    /// Sends `events` to all clients that have ended the negotiation.
    pub fn broadcast(&mut self, events: &[Event]) {
        let all: Vec<u64> =
            self.clients.iter().filter(|(_, c)| c.negotiated).map(|(n, _)| *n).collect();
        for event in events {
            all.iter().for_each(|number| self.send(*number, event));
        }
    }

    /// Disconnects all clients.
    pub fn close(&mut self) {
        for client in std::mem::take(&mut self.clients).into_values() {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }

    /// Sends a message; a client that does not take it is disconnected.
    fn send(&mut self, number: u64, message: &impl Serialize) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        let sent = encode(message).is_ok_and(|bytes| client.stream.write_all(&bytes).is_ok());
        if !sent {
            self.remove(number);
        }
    }
}

/// The command that ends the negotiation of capabilities.
const NEGOTIATION: &str = "qmp_capabilities";
