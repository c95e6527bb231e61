//! Accepts clients within the limits on clients and descriptors. A client that cannot be served is
//! told why, and the next one is accepted.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use cpr_qmp::codec;
use cpr_qmp::message::QmpError;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, send};

use super::dispatch;
use crate::unix_listener::Listener;

/// Maximum number of connected clients.
pub const MAX_CLIENTS: usize = 64;

/// How long no client is accepted after a failure without remedy.
const RETRY: Duration = Duration::from_millis(500);

/// The listener, and what it needs when there are no descriptors left.
#[derive(Debug)]
pub(super) struct Acceptor {
    pub(super) listener: Listener,
    /// A spare descriptor, closed briefly to tell a client that there are none left.
    reserve: Option<EventFd>,
    /// No client is accepted until then.
    closed_until: Option<Instant>,
    /// The last accept failed, and that was logged.
    failed: bool,
}

impl Acceptor {
    pub(super) fn new(listener: Listener) -> Self {
        Self { listener, reserve: reserve(), closed_until: None, failed: false }
    }

    /// Returns whether to wait for clients.
    pub(super) fn is_open(&self) -> bool {
        self.opens_in().is_none()
    }

    /// Returns how long until clients are accepted again; `None` if they are accepted now.
    pub(super) fn opens_in(&self) -> Option<Duration> {
        let left = self.closed_until?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Accepts clients again, because a descriptor was freed.
    pub(super) fn descriptor_freed(&mut self) {
        self.closed_until = None;
    }

    /// Accepts the next client, if there is one.
    pub(super) fn accept(&mut self) -> Option<OwnedFd> {
        self.closed_until = None;
        match self.listener.accept() {
            Ok(Some(socket)) => {
                self.failed = false;
                self.reserve = self.reserve.take().or_else(reserve);
                return Some(socket);
            }
            Ok(None) => {}
            Err(error) => self.cannot_accept(&error),
        }
        None
    }

    fn cannot_accept(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::warn!(%error, "qmp_accept_failed");
        }
        let short = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
        if short
            && self.reserve.take().is_some()
            && let Ok(Some(socket)) = self.listener.accept()
        {
            let why = format!("cannot serve another client: accept: {error}; {REMEDY}");
            reject(socket, &QmpError::generic(why));
            self.reserve = reserve();
            return;
        }
        self.reserve = self.reserve.take().or_else(reserve);
        self.closed_until = Some(Instant::now() + RETRY);
    }
}

const REMEDY: &str = "disconnect other clients, or raise RLIMIT_NOFILE of the VMM";

fn reserve() -> Option<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).ok()
}

/// Sends the reason, as far as the socket accepts it at once, and closes the connection.
pub(super) fn reject(socket: OwnedFd, why: &QmpError) {
    let Ok(line) = codec::encode(&dispatch::response(Err(why.clone()), None)) else { return };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    // The connection is closed anyway: ignore a failure.
    let _: Result<usize, Errno> = send(socket.as_raw_fd(), &line, flags);
}

/// Returns the error for an idle client that is disconnected.
pub(super) fn evicted() -> QmpError {
    QmpError::generic(format!(
        "disconnected: the limit is {MAX_CLIENTS} clients, another one connected, and this one has \
         been idle the longest"
    ))
}

/// Returns the error for a client that is not accepted.
pub(super) fn full() -> QmpError {
    QmpError::generic(format!(
        "cannot serve another client: the limit is {MAX_CLIENTS} clients, and all wait for an \
         answer; try again"
    ))
}
