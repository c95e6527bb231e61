//! The host's side of the serial port.

mod stdio;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::TakeFd;
use crate::counted_io::CountedIo;
use crate::devices::serial::SerialConfig;
use crate::same_file::names;
use crate::unix_listener::{BindError, Listener, ListenerState};
use stdio::Stdio;

/// Maximum output kept for a reader that does not read; beyond it the newest bytes are lost.
const MAX_PENDING: usize = 1 << 20;
/// Maximum bytes of input at once: a UART's FIFO has room for fewer.
const MOST_INPUT: usize = 64;

const LISTENER: &str = "serial.listener";
const CLIENT: &str = "serial.client";
const FILE: &str = "serial.file";

/// Errors from opening the host's side.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The socket cannot listen.
    #[error("--serial: {0}")]
    Listen(#[from] BindError),
    /// The file.
    #[error("--serial: cannot open {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// A write to the file could block.
    #[error(
        "--serial: {0} is not a regular file: use stdio for a terminal, unix:PATH for a program \
         that reads along, null for nothing"
    )]
    NotRegular(PathBuf),
}

#[derive(Debug)]
enum Kind {
    Null,
    Stdio(Stdio),
    File(File),
    Unix { listener: Listener, client: Option<UnixStream> },
}

/// What the serial port is connected to.
#[derive(Debug)]
pub struct SerialHost {
    kind: Kind,
    pending: VecDeque<u8>,
    lost: u64,
    /// `accept` failed, probably for lack of descriptors.
    accept_failed: bool,
    /// Traffic on a socket.
    exact: Arc<CountedIo>,
    /// Bytes to skip: a process that died had already sent them.
    skip_output: u64,
}

impl SerialHost {
    /// Opens what `config` names, or takes over what an update preserved: `listener`, and the
    /// descriptors that `take` finds by name.
    pub fn open(
        config: &SerialConfig,
        listener: Option<&ListenerState>,
        take: TakeFd<'_>,
    ) -> Result<Self, HostError> {
        let kind = match config {
            SerialConfig::Null => Kind::Null,
            SerialConfig::Stdio => Kind::Stdio(Stdio::new()),
            SerialConfig::File(path) => match take(FILE) {
                Some(fd) => {
                    let file = File::from(fd);
                    warn_if_other(path, names(path, &file));
                    Kind::File(file)
                }
                None => Kind::File(open_file(path)?),
            },
            SerialConfig::Unix(path) => match listener.and_then(|l| Some((l, take(LISTENER)?))) {
                Some((state, fd)) => {
                    let listener = Listener::restore(state, fd);
                    warn_if_other(path, listener.path() == path);
                    Kind::Unix { listener, client: take(CLIENT).map(UnixStream::from) }
                }
                None => Kind::Unix { listener: Listener::bind(path)?, client: None },
            },
        };
        Ok(Self::with(kind))
    }

    fn with(kind: Kind) -> Self {
        Self {
            kind,
            pending: VecDeque::new(),
            lost: 0,
            accept_failed: false,
            exact: Arc::new(CountedIo::new(MOST_INPUT)),
            skip_output: 0,
        }
    }

    /// Traffic on a socket since the newest copy of the port's state.
    pub fn exact(&self) -> &Arc<CountedIo> {
        &self.exact
    }

    /// Skips the next `bytes` bytes of output, which have already been sent.
    pub fn skip_output(&mut self, bytes: u64) {
        let pending = bytes.min(self.pending.len() as u64);
        self.pending.drain(..pending as usize);
        self.skip_output = bytes - pending;
    }

    pub(super) fn preserved_fds(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        match &self.kind {
            Kind::Null | Kind::Stdio(_) => Vec::new(),
            Kind::File(file) => vec![(FILE, file.as_fd())],
            Kind::Unix { listener, client } => {
                let mut fds = vec![(LISTENER, listener.as_fd())];
                fds.extend(client.as_ref().map(|client| (CLIENT, client.as_fd())));
                fds
            }
        }
    }

    /// Returns what the next process must know about the listening socket.
    pub fn listener_state(&self) -> Option<ListenerState> {
        match &self.kind {
            Kind::Unix { listener, .. } => Some(listener.save(LISTENER)),
            _ => None,
        }
    }

    /// From now on, dropping this removes the socket's file.
    pub fn own_socket_file(&mut self) {
        if let Kind::Unix { listener, .. } = &mut self.kind {
            listener.own_file();
        }
    }

    /// From now on, the socket's file belongs to the process that the port was handed to.
    pub fn disown_socket_file(&mut self) {
        if let Kind::Unix { listener, .. } = &mut self.kind {
            listener.disown_file();
        }
    }

    /// Returns the listening socket if a client may connect: if there is none, or if it has left
    /// (see [`client_has_left`](Self::client_has_left)) before the guest had `room` for the rest of
    /// what it sent.
    pub(super) fn listener_fd(&self, room: bool) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Unix { listener, .. } if !self.accept_failed && self.may_accept(room) => {
                Some(listener.as_fd())
            }
            _ => None,
        }
    }

    fn may_accept(&self, room: bool) -> bool {
        let client = matches!(self.kind, Kind::Unix { client: Some(_), .. });
        !client || !room && self.client_has_left()
    }

    /// Whether the client can no longer send or receive. What it sent before may still be unread.
    pub(super) fn client_has_left(&self) -> bool {
        self.client_fd().is_some_and(|client| is_ready(client, PollFlags::empty()))
    }

    pub(super) fn input_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Stdio(stdio) if !stdio.ended => Some(stdio.input),
            Kind::Unix { client: Some(client), .. } => Some(client.as_fd()),
            _ => None,
        }
    }

    pub(super) fn client_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Unix { client: Some(client), .. } => Some(client.as_fd()),
            _ => None,
        }
    }

    pub(super) fn blocked_output_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            _ if self.pending.is_empty() => None,
            Kind::Stdio(stdio) => Some(stdio.output),
            Kind::Unix { client: Some(client), .. } => Some(client.as_fd()),
            _ => None,
        }
    }

    pub(super) fn pending(&self) -> Vec<u8> {
        self.pending.iter().copied().collect()
    }

    pub(super) fn oldest_pending(&self, most: usize) -> Vec<u8> {
        self.pending.iter().take(most).copied().collect()
    }

    pub(super) fn queue(&mut self, bytes: &[u8]) {
        let room = MAX_PENDING - self.pending.len().min(MAX_PENDING);
        let (kept, lost) = bytes.split_at(bytes.len().min(room));
        self.pending.extend(kept);
        if !lost.is_empty() {
            self.lose(lost.len(), &"its reader does not keep up");
        }
    }

    fn lose(&mut self, bytes: usize, why: &dyn std::fmt::Display) {
        if self.lost == 0 {
            tracing::warn!(%why, "serial_output_lost");
        }
        self.lost += bytes as u64;
    }

    /// Accepts a client; see [`listener_fd`](Self::listener_fd).
    pub(super) fn accept(&mut self, room: bool) {
        if !self.may_accept(room) {
            return;
        }
        let Kind::Unix { listener, client } = &mut self.kind else { return };
        let accepted = listener.accept().and_then(|fd| {
            let stream = fd.map(UnixStream::from);
            stream.iter().try_for_each(|stream| stream.set_nonblocking(true))?;
            Ok(stream)
        });
        match accepted {
            Ok(None) => self.accept_failed = false,
            Ok(Some(stream)) => {
                *client = Some(stream);
                self.pending.clear();
                self.accept_failed = false;
            }
            Err(error) => {
                if !self.accept_failed {
                    tracing::warn!(%error, "serial_accept_failed");
                }
                self.accept_failed = true;
            }
        }
    }

    /// Retries an `accept` that failed: no poll event says when it can succeed.
    pub(super) fn retry_accept(&mut self, room: bool) {
        if self.accept_failed {
            self.accept(room);
        }
    }

    fn hang_up(&mut self) {
        if let Kind::Unix { client, .. } = &mut self.kind {
            *client = None;
            self.pending.clear();
        }
    }

    /// Writes as much pending output as possible without blocking.
    pub(super) fn flush_pending(&mut self) {
        while !self.pending.is_empty() {
            let bytes = self.pending.as_slices().0;
            let result = match &mut self.kind {
                Kind::Null | Kind::Unix { client: None, .. } => {
                    self.pending.clear();
                    return;
                }
                Kind::Stdio(stdio) => stdio.write(bytes),
                Kind::File(file) => file.write(bytes),
                Kind::Unix { client: Some(client), .. } => {
                    self.exact.send(client.as_fd(), bytes).map_err(io::Error::from)
                }
            };
            match result {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What the client sent before it left is still read.
                Err(_) if matches!(self.kind, Kind::Unix { .. }) => self.pending.clear(),
                Err(error) => {
                    self.lose(self.pending.len(), &error);
                    self.pending.clear();
                }
            }
        }
    }

    /// Flushes pending output before the end: waits for its reader, for at most `patience`.
    pub fn drain(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        self.flush_pending();
        while let Some(fd) = self.blocked_output_fd() {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
            if left.is_zero() || poll(&mut fds, timeout).is_err() {
                return;
            }
            self.flush_pending();
        }
    }

    /// Reads at most `room` bytes of input without blocking.
    pub(super) fn receive(&mut self, room: usize) -> Vec<u8> {
        let result = match &mut self.kind {
            Kind::Stdio(stdio) => {
                let mut buffer = vec![0; room];
                stdio.read(&mut buffer).map(|length| {
                    buffer.truncate(length);
                    buffer
                })
            }
            Kind::Unix { client: Some(client), .. } => {
                self.exact.receive(client.as_fd(), room).map_err(io::Error::from)
            }
            _ => return Vec::new(),
        };
        match result {
            Ok(input) if !input.is_empty() => input,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Vec::new()
            }
            // The end, or an error: `poll` would report either forever.
            ended => {
                if let Kind::Stdio(stdio) = &mut self.kind {
                    stdio.ended = true;
                    tracing::info!(?ended, "serial_input_ended");
                }
                self.hang_up();
                Vec::new()
            }
        }
    }
}

fn warn_if_other(path: &Path, same: bool) {
    if !same {
        let path = path.display();
        tracing::warn!(%path, "--serial names another file than the one that was handed over");
    }
}

/// Opens a file that never blocks a writer.
fn open_file(path: &Path) -> Result<File, HostError> {
    let not_regular = || HostError::NotRegular(path.to_owned());
    // Checked before opening, too: opening a device can have side effects.
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Err(not_regular());
    }
    let error = |source| HostError::Open { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.append(true).create(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(error)?;
    if file.metadata().map_err(error)?.is_file() { Ok(file) } else { Err(not_regular()) }
}

/// Whether `fd` is ready for `events`, or has an error to report.
fn is_ready(fd: BorrowedFd<'_>, events: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, events)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Output of the guest. Never blocks and never fails, like a UART's transmitter.
impl Write for SerialHost {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent_before = self.skip_output.min(bytes.len() as u64);
        self.skip_output -= sent_before;
        self.queue(&bytes[sent_before as usize..]);
        self.flush_pending();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
