//! Where a guest that is migrated with its RAM comes from or goes to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use cpr_qmp::address::{InetSocketAddress, MigrationAddress, SocketAddress};

/// Where the other process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    /// On this host.
    Unix(PathBuf),
    /// On any host. The connection is neither encrypted nor authenticated.
    Tcp(SocketAddr),
}

/// Errors from addresses that are unsupported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerAddressError {
    /// The kind of address is unsupported.
    #[error("cannot migrate over {0}: use file:PATH, unix:PATH or tcp:ADDRESS:PORT")]
    Kind(&'static str),
    /// The host is not given by its number.
    #[error(
        "cannot use tcp:{host}:{port}: give the host's address and the port as numbers; a name \
         would have to be looked up while clients wait"
    )]
    Name {
        /// The host.
        host: String,
        /// The port.
        port: String,
    },
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl PeerAddress {
    /// Returns the address of a socket.
    pub fn of(address: &MigrationAddress) -> Result<Self, PeerAddressError> {
        match address {
            MigrationAddress::Socket(SocketAddress::Inet(inet)) => Self::of_inet(inet),
            other => unix_path(other).map(Self::Unix).ok_or(PeerAddressError::Kind(other.kind())),
        }
    }

    fn of_inet(inet: &InetSocketAddress) -> Result<Self, PeerAddressError> {
        let host = inet.host.trim_start_matches('[').trim_end_matches(']');
        let ip = match host {
            "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            number => number.parse().ok(),
        };
        match (ip, inet.port.parse()) {
            (Some(ip), Ok(port)) => Ok(Self::Tcp(SocketAddr::new(ip, port))),
            _ => Err(PeerAddressError::Name { host: inet.host.clone(), port: inet.port.clone() }),
        }
    }
}

/// Returns the path of a Unix socket's address, unless it is abstract.
pub fn unix_path(address: &MigrationAddress) -> Option<PathBuf> {
    match address {
        MigrationAddress::Socket(SocketAddress::Unix(unix))
            if unix.is_abstract != Some(true) && !unix.path.is_empty() =>
        {
            Some(unix.path.clone().into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(uri: &str) -> Result<String, String> {
        let address: MigrationAddress = uri.parse().map_err(|error| format!("{error}"))?;
        PeerAddress::of(&address).map(|peer| peer.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn sockets_are_parsed_and_others_are_refused_by_name() {
        let uris = [
            "unix:/a",
            "tcp:127.0.0.1:4444",
            "tcp:localhost:4444",
            "tcp:[::1]:4444",
            "tcp:host.example:4444",
            "tcp:127.0.0.1:http",
            "vsock:1:2",
            "exec:cat",
        ];
        insta::assert_debug_snapshot!(uris.map(parsed));
    }
}
