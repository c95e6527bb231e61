//! The socket to the other process: a Unix socket, or TCP to any host.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, SockaddrStorage, getsockopt, setsockopt, sockopt,
};

use crate::config::{PeerAddress, PeerAddressError};
use crate::migration::transfer::{WireError, timed_io};
use crate::unix_listener::{BindError, Listener};

/// Errors of the socket to the other process.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The address is unsupported.
    #[error(transparent)]
    Address(#[from] PeerAddressError),
    /// The process is not there.
    #[error("cannot connect to {peer}: {}; start the new VMM with --incoming {peer}", .errno.desc())]
    Connect {
        /// The address.
        peer: PeerAddress,
        /// Why.
        errno: Errno,
    },
    /// The Unix socket cannot be used.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The Unix socket cannot be created.
    #[error("--incoming: {0}")]
    Bind(#[from] BindError),
    /// The TCP socket cannot be created.
    #[error("--incoming: cannot listen on {peer}: {source}")]
    Listen {
        /// The address.
        peer: PeerAddress,
        /// Why.
        source: io::Error,
    },
}

/// Begins to connect, without blocking: see [`connected`].
pub fn connect(peer: &PeerAddress) -> Result<OwnedFd, PeerError> {
    let failed = |errno| PeerError::Connect { peer: peer.clone(), errno };
    let address = match peer {
        PeerAddress::Unix(path) => return Ok(timed_io::connect(path)?),
        PeerAddress::Tcp(address) => address,
    };
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(family, SockType::Stream, flags, None).map_err(failed)?;
    match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(*address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
        Err(errno) => Err(failed(errno)),
    }
}

/// Checks a socket that has become writable: whether it is connected.
pub fn connected(peer: &PeerAddress, socket: &OwnedFd) -> Result<(), PeerError> {
    let failed = |errno| PeerError::Connect { peer: peer.clone(), errno };
    match getsockopt(socket, sockopt::SocketError).map_err(failed)? {
        0 => tune(peer, socket),
        error => Err(failed(Errno::from_raw(error))),
    }
}

/// Sends at once, and notices a host that is gone.
fn tune(peer: &PeerAddress, socket: &OwnedFd) -> Result<(), PeerError> {
    let failed = |errno| PeerError::Connect { peer: peer.clone(), errno };
    if matches!(peer, PeerAddress::Tcp(_)) {
        setsockopt(socket, sockopt::TcpNoDelay, &true).map_err(failed)?;
        setsockopt(socket, sockopt::KeepAlive, &true).map_err(failed)?;
    }
    Ok(())
}

/// A socket on which the new process waits. Dropping it removes a Unix socket's file.
#[derive(Debug)]
pub struct PeerListener {
    address: PeerAddress,
    socket: ListenerSocket,
}

#[derive(Debug)]
enum ListenerSocket {
    Unix(Listener),
    Tcp(TcpListener),
}

impl PeerListener {
    /// Listens on `address`.
    pub fn bind(address: PeerAddress) -> Result<Self, PeerError> {
        let socket = match &address {
            PeerAddress::Unix(path) => ListenerSocket::Unix(Listener::bind(path)?),
            PeerAddress::Tcp(tcp) => {
                let failed = |source| PeerError::Listen { peer: address.clone(), source };
                let listener = TcpListener::bind(tcp).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                ListenerSocket::Tcp(listener)
            }
        };
        Ok(Self { address, socket })
    }

    /// Accepts a connection; `None` if there is none.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let accepted = match &self.socket {
            ListenerSocket::Unix(listener) => listener.accept()?,
            ListenerSocket::Tcp(listener) => match listener.accept() {
                Ok((stream, _)) => Some(stream.into()),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::ConnectionAborted => None,
                    _ => return Err(error),
                },
            },
        };
        if let Some(socket) = &accepted {
            tune(&self.address, socket).map_err(io::Error::other)?;
        }
        Ok(accepted)
    }
}

impl AsFd for PeerListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            ListenerSocket::Unix(listener) => listener.as_fd(),
            ListenerSocket::Tcp(listener) => listener.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_over_tcp_reaches_the_listener() {
        let any = PeerAddress::Tcp("127.0.0.1:0".parse().unwrap());
        let listener = PeerListener::bind(any).unwrap();
        let ListenerSocket::Tcp(tcp) = &listener.socket else { panic!("{listener:?}") };
        let address = PeerAddress::Tcp(tcp.local_addr().unwrap());
        assert!(listener.accept().unwrap().is_none());
        let socket = connect(&address).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let late = || WireError::Deadline("the connection");
        timed_io::wait(socket.as_fd(), nix::poll::PollFlags::POLLOUT, late, until).unwrap();
        connected(&address, &socket).unwrap();
        timed_io::wait(listener.as_fd(), nix::poll::PollFlags::POLLIN, late, until).unwrap();
        assert!(listener.accept().unwrap().is_some());
    }
}
