//! One client: its input, its output and its state.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use cpr_qmp::codec::{self, DecodeError, Decoder, EncodeError};
use nix::errno::Errno;
use serde::Serialize;
use serde_json::Value;

use super::dispatch;
use super::state::{ConnectionState, InFlight};
use crate::counted_io::CountedIo;

/// Bytes of unread output above which a client is not served until it reads.
pub const PAUSE_OUTPUT: usize = 64 << 10;

/// Bytes of unread output (from events, then) above which a client is disconnected.
pub const MAX_OUTPUT: usize = 512 << 10;

/// Maximum length of a message in bytes.
const MAX_MESSAGE: usize = 256 << 10;

const READ_CHUNK: usize = 16 << 10;

/// Bytes of input that are read ahead while a request is in flight.
const LOOK_AHEAD: usize = 64 << 10;

/// Maximum number of bytes kept for one client.
pub(super) const MAX_KEPT: usize = MAX_MESSAGE + LOOK_AHEAD + READ_CHUNK + MAX_OUTPUT;

/// Reasons for closing a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Closed {
    #[error("it left {MAX_OUTPUT} bytes of output unread")]
    NeverReads,
    #[error("{step}: {} (errno {})", .errno.desc(), *.errno as i32)]
    System { step: &'static str, errno: Errno },
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    decoder: Decoder,
    output: VecDeque<u8>,
    /// The request that was handed out and is not answered yet.
    in_flight: Option<InFlight>,
    pub(super) negotiated: bool,
    /// The decoder holds no whole message: read more.
    starved: bool,
    /// The client will send no more.
    ended: bool,
    /// Whether input is examined while a request is in flight, and whether some has not been
    /// examined yet.
    looks_ahead: bool,
    unseen: bool,
    /// When it last sent something, or connected.
    last_heard: Instant,
    /// Counts the bytes that go over the socket.
    exact: Arc<CountedIo>,
    /// If set, only [`flush_published`](Self::flush_published) sends anything.
    held: bool,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            decoder: Decoder::new().with_limit(MAX_MESSAGE),
            output: VecDeque::new(),
            in_flight: None,
            negotiated: false,
            starved: true,
            ended: false,
            looks_ahead: false,
            unseen: false,
            last_heard: Instant::now(),
            exact: Arc::new(CountedIo::new(READ_CHUNK)),
            held: false,
        }
    }

    pub(super) fn restore(state: ConnectionState, socket: OwnedFd) -> Self {
        Self {
            socket,
            decoder: Decoder::resume(state.pending_input, state.skipping).with_limit(MAX_MESSAGE),
            output: state.pending_output.into(),
            in_flight: state.in_flight,
            negotiated: state.negotiated,
            starved: false,
            ended: state.ended,
            looks_ahead: false,
            unseen: false,
            last_heard: Instant::now(),
            exact: Arc::new(CountedIo::new(READ_CHUNK)),
            held: false,
        }
    }

    pub(super) fn save(&self, id: u64, fd: String) -> ConnectionState {
        ConnectionState {
            fd,
            id,
            negotiated: self.negotiated,
            pending_input: self.decoder.pending().to_vec(),
            skipping: self.decoder.skipping(),
            pending_output: self.output.iter().copied().collect(),
            in_flight: self.in_flight.clone(),
            ended: self.ended,
        }
    }

    pub(super) fn wants_read(&self) -> bool {
        let ahead = self.looks_ahead && self.decoder.pending().len() < LOOK_AHEAD;
        !self.ended && (self.starved && self.is_served() || ahead)
    }

    pub(super) fn wants_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// Returns whether nothing is left to do for a client that will send no more.
    pub(super) fn is_finished(&self) -> bool {
        self.ended && self.starved && self.output.is_empty() && self.in_flight.is_none()
    }

    /// Returns whether the bytes read so far may hold a message that can be served without polling.
    pub(super) fn is_due(&self) -> bool {
        self.is_served() && !self.starved
    }

    fn is_served(&self) -> bool {
        self.in_flight.is_none() && self.output.len() < PAUSE_OUTPUT
    }

    /// Reads once, so that other clients get their turn.
    pub(super) fn read(&mut self) -> Result<(), Closed> {
        match self.exact.receive(self.socket.as_fd(), READ_CHUNK) {
            Ok(chunk) if chunk.is_empty() => self.ended = true,
            Ok(chunk) => {
                self.decoder.feed(&chunk);
                (self.starved, self.unseen) = (false, true);
                self.last_heard = Instant::now();
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(Closed::System { step: "recv", errno }),
        }
        Ok(())
    }

    /// Returns the next message or error, unless the client has a request in flight or does not
    /// read.
    pub(super) fn next_message(&mut self) -> Option<Result<Value, DecodeError>> {
        if !self.is_served() {
            return None;
        }
        let message = self.decoder.next_value();
        self.starved = message.is_none();
        message
    }

    /// Starts to examine input that arrives before the request in flight is answered.
    pub(super) fn look_ahead(&mut self) {
        (self.looks_ahead, self.unseen) = (true, true);
    }

    /// Returns whether `migrate_cancel` has arrived after the request in flight. It stays queued,
    /// and is carried out and answered in its turn.
    pub(super) fn wants_to_cancel(&mut self) -> bool {
        if !(self.looks_ahead && std::mem::take(&mut self.unseen)) {
            return false;
        }
        let pending = self.decoder.pending().to_vec();
        let mut copy = Decoder::resume(pending, self.decoder.skipping()).with_limit(MAX_MESSAGE);
        std::iter::from_fn(|| copy.next_value()).flatten().any(dispatch::is_cancellation)
    }

    /// Returns the eviction order of an idle client (lowest first); `None` if it must not be
    /// evicted.
    pub(super) fn idle_since(&self) -> Option<(bool, Instant)> {
        self.in_flight.is_none().then_some((self.negotiated, self.last_heard))
    }

    pub(super) fn begin_request(&mut self, id: Option<&Value>) {
        self.in_flight = Some(InFlight { id: id.map(Value::to_string) });
    }

    /// Ends the request in flight and returns its `id`; `None` if there is no such request.
    pub(super) fn end_request(&mut self) -> Option<Option<Value>> {
        let in_flight = self.in_flight.take()?;
        self.looks_ahead = false;
        Some(in_flight.id.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Queues `message` and sends as much as the socket accepts.
    pub(super) fn send(&mut self, message: &impl Serialize) -> Result<(), Closed> {
        let line = codec::encode(message)?;
        if self.output.len() + line.len() > MAX_OUTPUT {
            return Err(Closed::NeverReads);
        }
        self.output.extend(line);
        self.flush()
    }

    /// From now on, sends output only once a copy of the state contains it; `generation` is the
    /// newest copy. With `None`, sends everything at once.
    pub(super) fn hold(&mut self, generation: Option<u64>) {
        self.held = generation.is_some();
        self.exact.copied(generation.unwrap_or(0));
    }

    /// Returns the counters of the traffic since the newest copy.
    pub(super) fn exact(&self) -> &Arc<CountedIo> {
        &self.exact
    }

    /// Sends as much as the socket accepts, unless output is held.
    pub(super) fn flush(&mut self) -> Result<(), Closed> {
        if self.held { Ok(()) } else { self.flush_published() }
    }

    /// Sends as much as the socket accepts. All output must be in the newest copy of the state, if
    /// there is one.
    pub(super) fn flush_published(&mut self) -> Result<(), Closed> {
        while !self.output.is_empty() {
            match self.exact.send(self.socket.as_fd(), self.output.as_slices().0) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(Closed::System { step: "send", errno }),
            }
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
