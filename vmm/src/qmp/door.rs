//! Letting clients in: there is a limit to their number, and one to descriptors. Whoever cannot be let
//! in is told, and the next who comes is listened to.

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

/// So many clients may be connected.
pub const MAX_CLIENTS: usize = 64;

/// After a failure for which there is no remedy, so long nobody is let in.
const RETRY: Duration = Duration::from_millis(500);

/// The listener, and what it needs where there are no descriptors left.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) listener: Listener,
    /// Closed for a moment to have a descriptor for one who is told that there is none.
    reserve: Option<EventFd>,
    /// Closed until then.
    closed_until: Option<Instant>,
    /// The last client could not be let in, and that was logged.
    failed: bool,
}

impl Door {
    pub(super) fn new(listener: Listener) -> Self {
        Self { listener, reserve: reserve(), closed_until: None, failed: false }
    }

    /// Whether to wait for clients.
    pub(super) fn is_open(&self) -> bool {
        self.opens_in().is_none()
    }

    /// How long until it is open, if it is not.
    pub(super) fn opens_in(&self) -> Option<Duration> {
        let left = self.closed_until?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// There may be a descriptor for the next client.
    pub(super) fn descriptor_freed(&mut self) {
        self.closed_until = None;
    }

    /// The next client.
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
            turn_away(socket, &QmpError::generic(why));
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

/// Says why, as far as the socket takes it at once, and closes the connection.
pub(super) fn turn_away(socket: OwnedFd, why: &QmpError) {
    let Ok(line) = codec::encode(&dispatch::response(Err(why.clone()), None)) else { return };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    // It is as good as gone: nobody is left to hear of a failure.
    let _: Result<usize, Errno> = send(socket.as_raw_fd(), &line, flags);
}

/// Why a client that was idle is disconnected.
pub(super) fn evicted() -> QmpError {
    QmpError::generic(format!(
        "disconnected: {MAX_CLIENTS} clients are the most, another one came, and this one has been \
         idle the longest"
    ))
}

/// Why a client is not let in.
pub(super) fn full() -> QmpError {
    QmpError::generic(format!(
        "cannot serve another client: {MAX_CLIENTS} clients are the most, and all wait for an \
         answer; try again"
    ))
}
