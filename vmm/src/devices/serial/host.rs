//! The host's side of the serial port.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::TakeFd;
use crate::config::SerialConfig;
use crate::unix_listener::{BindError, Listener, ListenerState};

// SAFETY: descriptor 0 is never closed by this program.
const STDIN: BorrowedFd<'static> = unsafe { BorrowedFd::borrow_raw(0) };
// SAFETY: nor is descriptor 1.
const STDOUT: BorrowedFd<'static> = unsafe { BorrowedFd::borrow_raw(1) };

/// So much can be written without waiting to a pipe that is ready (`PIPE_BUF`, pipe(7)), and to a
/// terminal.
const STDOUT_CHUNK: usize = 256;

/// Output kept for a client that does not read; beyond it the newest bytes are lost.
const MAX_PENDING: usize = 1 << 20;

const LISTENER: &str = "serial.listener";
const CLIENT: &str = "serial.client";
const FILE: &str = "serial.file";

/// Why the host's side could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The socket.
    #[error("--serial: {0}")]
    Listen(#[from] BindError),
    /// The file.
    #[error("--serial: cannot open {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[derive(Debug)]
enum Kind {
    Null,
    Stdio {
        ended: bool,
    },
    File(File),
    Unix {
        listener: Listener,
        client: Option<UnixStream>,
        /// The client has hung up, and left input that the guest does not take.
        left: bool,
    },
}

/// What the serial port is connected to.
#[derive(Debug)]
pub struct SerialHost {
    kind: Kind,
    pending: VecDeque<u8>,
    lost: u64,
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
            SerialConfig::Stdio => Kind::Stdio { ended: false },
            SerialConfig::File(path) => match take(FILE) {
                Some(fd) => Kind::File(fd.into()),
                None => Kind::File(
                    OpenOptions::new()
                        .append(true)
                        .create(true)
                        .open(path)
                        .map_err(|source| HostError::Open { path: path.clone(), source })?,
                ),
            },
            SerialConfig::Unix(path) => match listener.and_then(|l| Some((l, take(LISTENER)?))) {
                Some((state, fd)) => Kind::Unix {
                    listener: Listener::restore(state, fd),
                    client: take(CLIENT).map(UnixStream::from),
                    left: false,
                },
                None => Kind::Unix { listener: Listener::bind(path)?, client: None, left: false },
            },
        };
        Ok(Self { kind, pending: VecDeque::new(), lost: 0 })
    }

    pub(super) fn preserved_fds(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        match &self.kind {
            Kind::Null | Kind::Stdio { .. } => Vec::new(),
            Kind::File(file) => vec![(FILE, file.as_fd())],
            Kind::Unix { listener, client, .. } => {
                let mut fds = vec![(LISTENER, listener.as_fd())];
                fds.extend(client.as_ref().map(|client| (CLIENT, client.as_fd())));
                fds
            }
        }
    }

    /// What the next process must know of the listening socket.
    pub fn listener_state(&self) -> Option<ListenerState> {
        match &self.kind {
            Kind::Unix { listener, .. } => Some(listener.save(LISTENER)),
            _ => None,
        }
    }

    /// From now on the socket's file goes when this does.
    pub fn own_socket_file(&mut self) {
        if let Kind::Unix { listener, .. } = &mut self.kind {
            listener.own_file();
        }
    }

    /// A socket with nobody on it: a client may come.
    pub(super) fn listener_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Unix { listener, client, left } if client.is_none() || *left => {
                Some(listener.as_fd())
            }
            _ => None,
        }
    }

    /// A client of whom nothing can be read now, but who may hang up.
    pub(super) fn hang_up_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Unix { client: Some(client), left: false, .. } => Some(client.as_fd()),
            _ => None,
        }
    }

    pub(super) fn input_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Stdio { ended: false } => Some(STDIN),
            Kind::Unix { client: Some(client), .. } => Some(client.as_fd()),
            _ => None,
        }
    }

    pub(super) fn blocked_output_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Unix { client: Some(client), .. } if !self.pending.is_empty() => {
                Some(client.as_fd())
            }
            Kind::Stdio { .. } if !self.pending.is_empty() => Some(STDOUT),
            _ => None,
        }
    }

    pub(super) fn pending(&self) -> Vec<u8> {
        self.pending.iter().copied().collect()
    }

    pub(super) fn queue(&mut self, bytes: &[u8]) {
        let room = MAX_PENDING - self.pending.len().min(MAX_PENDING);
        let (kept, lost) = bytes.split_at(bytes.len().min(room));
        self.pending.extend(kept);
        if !lost.is_empty() {
            if self.lost == 0 {
                tracing::warn!(limit = MAX_PENDING, "serial_output_lost: nobody reads it");
            }
            self.lost += lost.len() as u64;
        }
    }

    /// Lets the next client in, if there is none. One that has left makes room too once the guest
    /// has no `room` for the rest of what it sent.
    pub(super) fn accept(&mut self, room: usize) {
        let Kind::Unix { listener, client, left } = &mut self.kind else { return };
        if let Some(client) = client {
            *left = room == 0 && has_hung_up(client);
            if !*left {
                return;
            }
        }
        match listener.accept() {
            Ok(Some(fd)) => {
                let stream = UnixStream::from(fd);
                match stream.set_nonblocking(true) {
                    Ok(()) => {
                        self.pending.clear();
                        (*client, *left) = (Some(stream), false);
                    }
                    Err(error) => tracing::warn!(%error, "serial_accept_failed"),
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "serial_accept_failed"),
        }
    }

    fn hang_up(&mut self) {
        self.pending.clear();
        if let Kind::Unix { client, left, .. } = &mut self.kind {
            (*client, *left) = (None, false);
        }
    }

    fn end_input(&mut self) {
        match &mut self.kind {
            Kind::Stdio { ended } => *ended = true,
            _ => self.hang_up(),
        }
    }

    pub(super) fn flush_pending(&mut self) {
        while !self.pending.is_empty() {
            let bytes = self.pending.as_slices().0;
            let written = match &mut self.kind {
                Kind::Stdio { .. } => write_stdout(bytes),
                Kind::Unix { client: Some(client), .. } => client.write(bytes),
                _ => return self.pending.clear(),
            };
            match written {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.hang_up(),
            }
        }
    }

    /// At most `room` bytes of input, without waiting.
    pub(super) fn receive(&mut self, room: usize) -> Vec<u8> {
        let mut buffer = vec![0; room];
        let result = match &mut self.kind {
            // Not std's stdin, whose buffer would be lost by an update.
            Kind::Stdio { ended: false } if is_ready(STDIN, PollFlags::POLLIN) => {
                nix::unistd::read(STDIN, &mut buffer).map_err(io::Error::from)
            }
            Kind::Unix { client: Some(client), .. } => client.read(&mut buffer),
            _ => return Vec::new(),
        };
        match result {
            Ok(0) => {
                self.end_input();
                Vec::new()
            }
            Ok(length) => {
                buffer.truncate(length);
                buffer
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Vec::new()
            }
            Err(_) => {
                self.end_input();
                Vec::new()
            }
        }
    }
}

fn is_ready(fd: BorrowedFd<'_>, wanted: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, wanted)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn has_hung_up(client: &UnixStream) -> bool {
    is_ready(client.as_fd(), PollFlags::empty())
}

/// Others have the same stdout: it cannot be made non-blocking, so it is asked first.
fn write_stdout(bytes: &[u8]) -> io::Result<usize> {
    if !is_ready(STDOUT, PollFlags::POLLOUT) {
        return Err(ErrorKind::WouldBlock.into());
    }
    Ok(nix::unistd::write(STDOUT, &bytes[..bytes.len().min(STDOUT_CHUNK)])?)
}

/// Output of the guest. Never waits and never fails: a UART's transmitter does not either.
impl Write for SerialHost {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = match &mut self.kind {
            Kind::Null | Kind::Unix { client: None, .. } => Ok(()),
            Kind::File(file) => file.write_all(bytes),
            Kind::Stdio { .. } | Kind::Unix { .. } => {
                self.queue(bytes);
                self.flush_pending();
                Ok(())
            }
        };
        if let Err(error) = result {
            if self.lost == 0 {
                tracing::warn!(%error, "serial_output_lost");
            }
            self.lost += bytes.len() as u64;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(dir: &std::path::Path) -> (SerialHost, PathBuf) {
        let path = dir.join("serial");
        let host =
            SerialHost::open(&SerialConfig::Unix(path.clone()), None, &mut |_| None).unwrap();
        (host, path)
    }

    #[test]
    fn output_waits_for_a_client_that_does_not_read_and_arrives_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (mut host, path) = unix(dir.path());
        let mut client = UnixStream::connect(path).unwrap();
        host.accept(64);
        let sent: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
        host.write_all(&sent).unwrap();
        assert!(host.blocked_output_fd().is_some());
        let mut seen = Vec::new();
        let mut buffer = [0; 65536];
        while seen.len() < sent.len() {
            let length = client.read(&mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..length]);
            host.flush_pending();
        }
        assert!(seen == sent);
    }

    #[test]
    fn output_without_a_client_is_dropped_as_on_an_open_line() {
        let dir = tempfile::tempdir().unwrap();
        let (mut host, _) = unix(dir.path());
        host.write_all(b"nobody listens").unwrap();
        assert!(host.pending().is_empty());
    }

    #[test]
    fn a_client_that_leaves_makes_room_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (mut host, path) = unix(dir.path());
        drop(UnixStream::connect(&path).unwrap());
        host.accept(64);
        assert!(host.listener_fd().is_none());
        assert!(host.receive(16).is_empty());
        assert!(host.listener_fd().is_some());
    }
}
