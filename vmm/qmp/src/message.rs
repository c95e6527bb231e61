//! The messages of a QMP server: greeting, success, error and event.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The first message of a server on every connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Greeting {
    /// The body of the greeting.
    #[serde(rename = "QMP")]
    pub qmp: GreetingBody,
}

/// What the greeting says about the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GreetingBody {
    /// The server's version, as reported by `query-version`.
    pub version: VersionInfo,
    /// Protocol capabilities that the server offers, such as `oob`.
    pub capabilities: Vec<String>,
}

/// The answer to `query-version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The version number; the field is called `qemu` on the wire whatever the VMM is.
    pub qemu: VersionTriple,
    /// The name of the build, as free text.
    pub package: String,
}

/// A version number of three parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionTriple {
    /// Incompatible changes.
    pub major: u32,
    /// Additions.
    pub minor: u32,
    /// Corrections.
    pub micro: u32,
}

/// The class of a QMP error; nearly every error is `GenericError`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorClass {
    /// Any error that clients need not tell apart.
    GenericError,
    /// The command does not exist, or is not available before capability negotiation.
    CommandNotFound,
    /// The device is not active.
    DeviceNotActive,
    /// The device does not exist.
    DeviceNotFound,
    /// The hypervisor lacks the capability.
    KVMMissingCap,
}

/// An error on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{desc}")]
pub struct QmpError {
    /// The class, for programs.
    pub class: ErrorClass,
    /// A one-line description.
    pub desc: String,
}

impl QmpError {
    /// Creates a `GenericError` with the description `desc`.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::GenericError, desc: desc.into() }
    }

    /// Creates the error for a command that does not exist.
    pub fn command_not_found(name: &str) -> Self {
        Self {
            class: ErrorClass::CommandNotFound,
            desc: format!("The command {name} has not been found"),
        }
    }
}

/// The answer to one command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Response {
    /// The command was carried out.
    Success {
        /// The result; `{}` where there is none.
        #[serde(rename = "return")]
        value: Value,
        /// The `id` of the command, echoed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<Value>,
    },
    /// The command was refused or failed.
    Failure {
        /// Why.
        error: QmpError,
        /// The `id` of the command, echoed where it could be read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<Value>,
    },
}

/// An asynchronous event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened.
    pub timestamp: Timestamp,
    /// Its name, such as `STOP`.
    pub event: String,
    /// Its data; absent where the event has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl Event {
    /// Creates an event with the current time.
    pub fn now(event: &str, data: Option<Value>) -> Self {
        Self { timestamp: Timestamp::now(), event: event.to_owned(), data }
    }
}

/// Wall-clock time of an event (`CLOCK_REALTIME`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds since 1970-01-01 UTC; -1 where the clock could not be read.
    pub seconds: i64,
    /// Microseconds within the second, 0 to 999,999; -1 where the clock could not be read.
    pub microseconds: i64,
}

impl Timestamp {
    /// Returns the current time.
    pub fn now() -> Self {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Self::from_unix(since),
            Err(_) => Self { seconds: -1, microseconds: -1 },
        }
    }

    fn from_unix(since: Duration) -> Self {
        Self { seconds: since.as_secs() as i64, microseconds: since.subsec_micros().into() }
    }
}

/// Any message that a server may send, for clients to deserialize.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ServerMessage {
    /// The greeting.
    Greeting(Greeting),
    /// An event.
    Event(Event),
    /// The answer to a command.
    Response(Response),
}
