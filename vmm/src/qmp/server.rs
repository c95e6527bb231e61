//! The server: one listener and its clients, driven by the main loop.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cpr_qmp::codec::DecodeError;
use cpr_qmp::command::Command;
use cpr_qmp::message::{Event, QmpError};
use nix::errno::Errno;
use serde_json::Value;

use super::acceptor::{self, Acceptor, MAX_CLIENTS};
use super::connection::{self, Closed, Connection};
use super::dispatch::{self, Outcome};
use super::state::{RestoreError, ServerState};
use crate::counted_io::CountedIo;
use crate::unix_listener::{BindError, Listener};

/// Maximum number of client bytes in the server's state, fixed so that an update need not ask.
pub const MAX_STATE: usize = MAX_CLIENTS * connection::MAX_KEPT;

/// Prefix of the names of all the server's descriptors.
pub const FD_PREFIX: &str = "qmp.";
const LISTENER_FD: &str = "qmp.listener";

/// Identifies one of the server's descriptors in the poll loop. Zero is the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// A client's number. It is kept across updates and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    fn fd_name(self) -> String {
        format!("qmp.client.{}", self.0)
    }
}

/// What the server waits for on one descriptor; descriptors not listed must not be polled. A
/// hang-up or error must be reported as readable and writable.
#[derive(Clone, Copy, Debug)]
pub struct Interest<'a> {
    /// To hand back to [`Server::ready`].
    pub token: Token,
    /// The descriptor.
    pub fd: BorrowedFd<'a>,
    /// Whether to wait until it can be read or accepted from.
    pub read: bool,
    /// Whether to wait until it can be written to.
    pub write: bool,
}

/// A command that the VMM has to carry out and answer with [`Server::respond`].
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The client that sent it.
    pub client: ConnectionId,
    /// The command.
    pub command: Command,
}

/// The QMP server.
///
/// For each client it holds at most one partial message, one read's worth of further ones (somewhat
/// more while it [looks ahead](Self::look_ahead)), one request in flight and
/// [`MAX_OUTPUT`](super::MAX_OUTPUT) bytes of output; for all clients together [`MAX_STATE`] bytes.
#[derive(Debug, Default)]
pub struct Server {
    acceptor: Option<Acceptor>,
    clients: BTreeMap<ConnectionId, Connection>,
    last_id: u64,
    last_served: u64,
    /// See [`hold`](Self::hold).
    held: Option<u64>,
}

impl Server {
    /// Creates a server that listens on `path`.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        Ok(Self { acceptor: Some(Acceptor::new(Listener::bind(path)?)), ..Self::default() })
    }

    /// Creates a server without a socket.
    pub fn none() -> Self {
        Self::default()
    }

    /// Restores the server of another process image; `take_fd` hands out the descriptors by name.
    /// The socket's file is not owned yet: see [`own_socket_file`](Self::own_socket_file). Requests
    /// that were read but not decoded come out of [`next_request`](Self::next_request) at once,
    /// without polling.
    pub fn restore(
        state: ServerState,
        mut take_fd: impl FnMut(&str) -> Option<OwnedFd>,
    ) -> Result<Self, RestoreError> {
        let mut take =
            |name: &str| take_fd(name).ok_or(RestoreError::MissingFd { name: name.to_owned() });
        let acceptor = match &state.listener {
            Some(listener) => Some(Acceptor::new(Listener::restore(listener, take(&listener.fd)?))),
            None => None,
        };
        let mut clients = BTreeMap::new();
        let mut last_id = state.last_id;
        for client in state.connections {
            let (id, socket) = (client.id, take(&client.fd)?);
            last_id = last_id.max(id);
            let connection = Connection::restore(client, socket);
            if clients.insert(ConnectionId(id), connection).is_some() {
                return Err(RestoreError::DuplicateClient { id });
            }
        }
        let last_served = state.last_served;
        Ok(Self { acceptor, clients, last_id, last_served, held: None })
    }

    /// Returns the state to hand over. Call [`flush`](Self::flush) before; the state contains the
    /// output that could not be sent.
    pub fn save(&self) -> ServerState {
        ServerState {
            listener: self.acceptor.as_ref().map(|acceptor| acceptor.listener.save(LISTENER_FD)),
            connections: self.clients.iter().map(|(id, c)| c.save(id.0, id.fd_name())).collect(),
            last_served: self.last_served,
            last_id: self.last_id,
        }
    }

    /// Returns the descriptors that [`save`](Self::save) refers to, by name.
    pub fn named_fds(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let listener = self.acceptor.iter().map(|d| (LISTENER_FD.to_owned(), d.listener.as_fd()));
        listener.chain(self.clients.iter().map(|(id, c)| (id.fd_name(), c.as_fd()))).collect()
    }

    /// Returns the path of the socket.
    pub fn path(&self) -> Option<&Path> {
        self.acceptor.as_ref().map(|acceptor| acceptor.listener.path())
    }

    /// Takes ownership of the socket's file after [`restore`](Self::restore): from now on, dropping
    /// the server removes it. Call it once a failed handover can no longer return to the old
    /// process image.
    pub fn own_socket_file(&mut self) {
        if let Some(acceptor) = &mut self.acceptor {
            acceptor.listener.own_file();
        }
    }

    /// Removes the socket's file, as dropping the server does.
    pub fn remove_socket_file(&mut self) {
        if let Some(acceptor) = &mut self.acceptor {
            acceptor.listener.remove_file();
        }
    }

    /// Returns what to poll for; any other call may change it.
    pub fn interests(&self) -> impl Iterator<Item = Interest<'_>> {
        let listener = self.acceptor.iter().map(|acceptor| Interest {
            token: Token(0),
            fd: acceptor.listener.as_fd(),
            read: acceptor.is_open(),
            write: false,
        });
        let clients = self.clients.iter().map(|(id, client)| Interest {
            token: Token(id.0),
            fd: client.as_fd(),
            read: client.wants_read(),
            write: client.wants_write(),
        });
        // A hang-up is reported even without requested events, and would be forever.
        listener.chain(clients).filter(|interest| interest.read || interest.write)
    }

    /// Tells the server what happened on one descriptor. Ask for
    /// [`next_request`](Self::next_request) afterwards, until there is none.
    pub fn ready(&mut self, token: Token, readable: bool, writable: bool) {
        if token == Token(0) {
            self.accept();
            return;
        }
        let id = ConnectionId(token.0);
        self.with_client(id, |client| {
            if writable {
                client.flush()?;
            }
            if readable && client.wants_read() {
                client.read()?;
            }
            Ok(())
        });
    }

    /// Returns the next request that the server cannot answer by itself. Clients take turns; each
    /// client's requests come in order and one at a time.
    pub fn next_request(&mut self) -> Option<Request> {
        loop {
            let (id, message) = self.next_message()?;
            let mut forward = None;
            self.with_client(id, |client| {
                match dispatch::dispatch(message, &mut client.negotiated) {
                    Outcome::Answer(response) => client.send(&response),
                    Outcome::Forward { command, id } => {
                        client.begin_request(id.as_ref());
                        forward = Some(command);
                        Ok(())
                    }
                }
            });
            if let Some(command) = forward {
                return Some(Request { client: id, command });
            }
        }
    }

    fn next_message(&mut self) -> Option<(ConnectionId, Result<Value, DecodeError>)> {
        let last = ConnectionId(self.last_served);
        let after = self.clients.range((Bound::Excluded(last), Bound::Unbounded));
        let turns: Vec<_> = after.chain(self.clients.range(..=last)).map(|(id, _)| *id).collect();
        for id in turns {
            if let Some(message) = self.clients.get_mut(&id).and_then(Connection::next_message) {
                self.last_served = id.0;
                return Some((id, message));
            }
            // Its input may be used up now, with no more to come.
            self.with_client(id, |_| Ok(()));
        }
        None
    }

    /// Answers the request that `client` has in flight; does nothing if the client has left.
    pub fn respond(&mut self, client: ConnectionId, result: Result<Value, QmpError>) {
        self.with_client(client, |client| match client.end_request() {
            Some(id) => client.send(&dispatch::response(result, id)),
            None => Ok(()),
        });
    }

    /// Answers every request in flight with `error`, after a restart that lost their context.
    pub fn refuse_in_flight(&mut self, error: &QmpError) {
        let ids: Vec<_> = self.clients.keys().copied().collect();
        ids.into_iter().for_each(|id| self.respond(id, Err(error.clone())));
    }

    /// Sends `event` to every client that has negotiated.
    pub fn broadcast(&mut self, event: &Event) {
        for event in seam!(events(std::slice::from_ref(event))).iter() {
            self.with_every_client(
                |client| {
                    if client.negotiated { client.send(event) } else { Ok(()) }
                },
            );
        }
    }

    /// Sends as much as the sockets accept.
    pub fn flush(&mut self) {
        self.with_every_client(Connection::flush);
    }

    /// From now on, sends output only once a copy of the state contains it; `generation` is the
    /// newest copy. With `None`, sends everything at once.
    ///
    /// So a process that continues from that copy knows from the counters
    /// ([`traffic`](Self::traffic)) what each client has received and sent, and answers each
    /// request once.
    pub fn hold(&mut self, generation: Option<u64>) {
        self.held = generation;
        self.clients.values_mut().for_each(|client| client.hold(generation));
    }

    /// Sends as much as the sockets accept. All output must be in the newest copy of the state.
    pub fn flush_published(&mut self) {
        self.with_every_client(Connection::flush_published);
    }

    /// Returns whether [`next_request`](Self::next_request) may return one without any event: a
    /// client whose output was just sent is served again, and may have sent all that it ever will.
    pub fn is_due(&self) -> bool {
        self.clients.values().any(Connection::is_due)
    }

    /// Returns the traffic counters of each client, by its number.
    pub fn traffic(&self) -> Vec<(u64, Arc<CountedIo>)> {
        self.clients.iter().map(|(id, client)| (id.0, client.exact().clone())).collect()
    }

    /// Returns whether there was any traffic since the newest copy of the state.
    pub fn has_traffic(&self) -> bool {
        self.clients.values().any(|client| client.exact().was_used())
    }

    fn accept(&mut self) {
        let Some(socket) = self.acceptor.as_mut().and_then(Acceptor::accept) else { return };
        if self.clients.len() >= MAX_CLIENTS
            && let Err(full) = self.make_room()
        {
            return acceptor::reject(socket, &full);
        }
        self.last_id += 1;
        let id = ConnectionId(self.last_id);
        let mut client = Connection::new(socket);
        client.hold(self.held);
        self.clients.insert(id, client);
        tracing::debug!(client = id.0, "QMP client connected");
        self.with_client(id, |client| client.send(&dispatch::greeting()));
    }

    /// Disconnects the client that has been idle the longest: first those that have not negotiated,
    /// never those that wait for an answer.
    fn make_room(&mut self) -> Result<(), QmpError> {
        let idle = self.clients.iter().filter_map(|(id, c)| Some((c.idle_since()?, *id))).min();
        let (_, id) = idle.ok_or_else(acceptor::full)?;
        tracing::warn!(client = id.0, most = MAX_CLIENTS, "qmp_client_evicted");
        self.with_client(id, |client| {
            client.hold(None);
            client.send(&dispatch::response(Err(acceptor::evicted()), None))
        });
        self.clients.remove(&id);
        Ok(())
    }

    /// Returns how long until [`interests`](Self::interests) must be polled again without any
    /// event.
    pub fn retry_in(&self) -> Option<Duration> {
        self.acceptor.as_ref().and_then(Acceptor::opens_in)
    }

    /// Until `client`'s request in flight is answered, examines what the client sends after it for
    /// a `migrate_cancel`: see [`wants_to_cancel`](Self::wants_to_cancel).
    pub fn look_ahead(&mut self, client: ConnectionId) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.look_ahead();
        }
    }

    /// Returns whether the client has sent `migrate_cancel` after its request in flight. Reports it
    /// once; the command stays queued and is carried out in its turn, so that each client gets its
    /// answers in the order of its requests.
    pub fn wants_to_cancel(&mut self, client: ConnectionId) -> bool {
        self.clients.get_mut(&client).is_some_and(Connection::wants_to_cancel)
    }

    fn with_every_client(&mut self, mut act: impl FnMut(&mut Connection) -> Result<(), Closed>) {
        let ids: Vec<_> = self.clients.keys().copied().collect();
        for id in ids {
            self.with_client(id, &mut act);
        }
    }

    /// Runs `act` on a client, and disconnects it if that fails or nothing is left to do.
    fn with_client(
        &mut self,
        id: ConnectionId,
        act: impl FnOnce(&mut Connection) -> Result<(), Closed>,
    ) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        match act(client) {
            Ok(()) if !client.is_finished() => return,
            Ok(()) | Err(Closed::System { errno: Errno::EPIPE | Errno::ECONNRESET, .. }) => {
                tracing::debug!(client = id.0, "QMP client disconnected");
            }
            Err(reason) => tracing::warn!(client = id.0, %reason, "disconnecting QMP client"),
        }
        self.clients.remove(&id);
        if let Some(acceptor) = &mut self.acceptor {
            acceptor.descriptor_freed();
        }
    }
}

#[cfg(test)]
mod tests;
