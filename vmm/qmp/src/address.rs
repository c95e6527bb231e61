//! The source or destination of a migration (QEMU `qapi/migration.json`, `qapi/sockets.json`).
//!
//! All of QEMU's transports parse, so that an error can name the unsupported one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a migration channel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationChannelType {
    /// Device and vCPU state (and RAM, where it is not kept in place).
    Main,
    /// CPR state, for `cpr-transfer`.
    Cpr,
}

impl fmt::Display for MigrationChannelType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Main => "main",
            Self::Cpr => "cpr",
        })
    }
}

/// One channel of a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationChannel {
    /// What it carries.
    pub channel_type: MigrationChannelType,
    /// Its address.
    pub addr: MigrationAddress,
}

/// The address of a migration channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "transport", rename_all = "kebab-case")]
pub enum MigrationAddress {
    /// A socket.
    Socket(SocketAddress),
    /// A pipe to a command.
    Exec(MigrationExecCommand),
    /// RDMA.
    Rdma(InetSocketAddress),
    /// A file.
    File(FileMigrationArgs),
}

impl MigrationAddress {
    /// Returns the kind, named like the scheme of a URI: `file`, `exec`, `rdma`, `tcp`, `unix`, …
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Socket(SocketAddress::Inet(_)) => "tcp",
            Self::Socket(SocketAddress::Unix(_)) => "unix",
            Self::Socket(SocketAddress::Vsock(_)) => "vsock",
            Self::Socket(SocketAddress::Fd(_)) => "fd",
            Self::Exec(_) => "exec",
            Self::Rdma(_) => "rdma",
            Self::File(_) => "file",
        }
    }
}

/// A command to migrate through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationExecCommand {
    /// The program and its arguments.
    pub args: Vec<String>,
}

/// A file to migrate through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMigrationArgs {
    /// Its path; `/dev/fdset/N` names a descriptor set in QEMU.
    pub filename: String,
    /// Offset of the state in the file, in bytes.
    pub offset: u64,
}

/// A socket to migrate through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum SocketAddress {
    /// TCP.
    Inet(InetSocketAddress),
    /// A Unix socket.
    Unix(UnixSocketAddress),
    /// A socket between guest and host.
    Vsock(VsockSocketAddress),
    /// A descriptor that was passed in.
    Fd(FdSocketAddress),
}

/// A host and a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InetSocketAddress {
    /// Host name or address.
    pub host: String,
    /// Port name or number.
    pub port: String,
    /// True if both are known to be numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numeric: Option<bool>,
    /// The last port of a range to try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u16>,
    /// Whether IPv4 may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<bool>,
    /// Whether IPv6 may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<bool>,
    /// Whether to send keep-alive packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<bool>,
    /// Whether to use multi-path TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mptcp: Option<bool>,
}

/// A Unix socket's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixSocketAddress {
    /// Its path or abstract name.
    pub path: String,
    /// True for an abstract name.
    #[serde(rename = "abstract", default, skip_serializing_if = "Option::is_none")]
    pub is_abstract: Option<bool>,
    /// Whether an abstract name has its own length, or is padded with NUL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tight: Option<bool>,
}

/// A vsock address; both parts are numbers as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockSocketAddress {
    /// The context id.
    pub cid: String,
    /// The port.
    pub port: String,
}

/// A descriptor's name or number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdSocketAddress {
    /// The name or number.
    pub str: String,
}
