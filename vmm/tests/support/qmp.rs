//! A QMP client that waits with a deadline and reports what it received.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use cpr_qmp::codec::{self, Decoder};
use cpr_qmp::command::{Command, MigrateArgs, MigrateSetCapabilitiesArgs, QmpCapabilitiesArgs};
use cpr_qmp::event::EventKind;
use cpr_qmp::message::{Event, QmpError, Response, ServerMessage};
use cpr_qmp::migration::{
    MigMode, MigrationCapability, MigrationCapabilityStatus, MigrationInfo, MigrationParameters,
    MigrationStatus,
};
use cpr_qmp::run_state::{RunState, StatusInfo};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::PATIENCE;

/// One connection, after negotiation.
pub struct Qmp {
    stream: UnixStream,
    decoder: Decoder,
    /// Received events that were not consumed yet.
    events: VecDeque<EventKind>,
    /// Events that QEMU does not have.
    others: VecDeque<Event>,
    /// All received messages, for panic messages.
    seen: Vec<String>,
    /// Whether commands are rehearsed; if not, their errors show up later.
    pub rehearsal: bool,
    /// How many milliseconds an update may stop the guest.
    pub max_downtime: Option<u64>,
}

impl Qmp {
    /// Negotiates on `stream`.
    pub fn new(stream: UnixStream) -> Self {
        let (events, others, seen) = Default::default();
        let decoder = Decoder::new();
        let mut qmp =
            Self { stream, decoder, events, others, seen, rehearsal: true, max_downtime: None };
        match qmp.receive("the greeting") {
            ServerMessage::Greeting(_) => {}
            other => panic!("not a greeting: {other:?}"),
        }
        qmp.done(Command::QmpCapabilities(QmpCapabilitiesArgs::default()));
        qmp
    }

    /// Executes a command, and keeps the events that arrive before the answer.
    pub fn execute(&mut self, command: Command) -> Result<Value, QmpError> {
        let awaited = format!("the answer to {command:?}");
        self.send(command);
        self.answer(&awaited)
    }

    /// Sends a command without waiting for the answer.
    pub fn send(&mut self, command: Command) {
        let line = codec::encode(&command).expect("a command can be encoded");
        self.stream.write_all(&line).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    }

    /// Waits for the answer to a command that was sent.
    pub fn answer(&mut self, awaited: &str) -> Result<Value, QmpError> {
        loop {
            match self.receive(awaited) {
                ServerMessage::Response(Response::Success { value, .. }) => return Ok(value),
                ServerMessage::Response(Response::Failure { error, .. }) => return Err(error),
                ServerMessage::Event(event) => self.keep(event),
                ServerMessage::Greeting(_) => panic!("a greeting instead of {awaited}"),
            }
        }
    }

    /// Returns whether there are no unread messages.
    pub fn is_silent(&mut self) -> bool {
        let mut byte = [0];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        self.decoder.pending().trim_ascii().is_empty()
            && recv(self.stream.as_raw_fd(), &mut byte, flags) == Err(Errno::EAGAIN)
    }

    /// Executes a command that must succeed, and parses its answer.
    pub fn query<T: DeserializeOwned>(&mut self, command: Command) -> T {
        let shown = format!("{command:?}");
        let value = self.execute(command).unwrap_or_else(|error| panic!("{shown}: {error}"));
        serde_json::from_value(value).unwrap_or_else(|error| panic!("{shown}: {error}"))
    }

    /// Executes a command that must succeed.
    pub fn done(&mut self, command: Command) {
        let _: Value = self.query(command);
    }

    /// Returns the run state.
    pub fn run_state(&mut self) -> RunState {
        self.query::<StatusInfo>(Command::QueryStatus).status
    }

    /// Returns the answer to `query-migrate`.
    pub fn migration(&mut self) -> MigrationInfo {
        self.query(Command::QueryMigrate)
    }

    /// Waits for the first event for which `wanted` returns a value; drops the events before it.
    pub fn event<T>(&mut self, awaited: &str, wanted: impl Fn(EventKind) -> Option<T>) -> T {
        loop {
            while let Some(event) = self.events.pop_front() {
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
            match self.receive(awaited) {
                ServerMessage::Event(event) => self.keep(event),
                other => panic!("{other:?} while waiting for {awaited}"),
            }
        }
    }

    fn keep(&mut self, event: Event) {
        match EventKind::of(&event) {
            Some(kind) => self.events.push_back(kind),
            None => self.others.push_back(event),
        }
    }

    /// Waits for the next event called `name`, which QEMU does not have, and returns its data.
    pub fn event_data<T: DeserializeOwned>(&mut self, name: &str) -> T {
        loop {
            if let Some(at) = self.others.iter().position(|event| event.event == name) {
                let data = self.others.remove(at).and_then(|event| event.data);
                return serde_json::from_value(data.unwrap_or_default())
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            match self.receive(name) {
                ServerMessage::Event(event) => self.keep(event),
                other => panic!("{other:?} while waiting for {name}"),
            }
        }
    }

    /// Takes the received events that were not consumed yet.
    pub fn take_events(&mut self) -> Vec<EventKind> {
        self.events.drain(..).collect()
    }

    /// Begins an update to `command`, with the state in `file`.
    pub fn begin_update(&mut self, command: &[String], file: &Path) -> Result<(), QmpError> {
        let events =
            MigrationCapabilityStatus { capability: MigrationCapability::Events, state: true };
        self.done(Command::MigrateSetCapabilities(MigrateSetCapabilitiesArgs {
            capabilities: vec![events],
        }));
        self.done(Command::MigrateSetParameters(MigrationParameters {
            mode: Some(MigMode::CprExec),
            cpr_exec_command: Some(command.to_vec()),
            x_cpr_exec_rehearsal: Some(self.rehearsal),
            x_max_downtime: self.max_downtime,
            ..MigrationParameters::default()
        }));
        let uri = Some(format!("file:{}", file.display()));
        self.execute(Command::Migrate(MigrateArgs { uri, ..MigrateArgs::default() })).map(drop)
    }

    /// Updates, and waits until the migration has completed or failed.
    pub fn update(&mut self, command: &[String], file: &Path) -> MigrationStatus {
        self.begin_update(command, file).unwrap_or_else(|error| panic!("migrate: {error}"));
        self.event("MIGRATION completed or failed", |event| {
            let ends =
                |status: &_| matches!(status, MigrationStatus::Completed | MigrationStatus::Failed);
            event.migration_status().filter(ends)
        })
    }

    /// Waits for the next message.
    fn receive(&mut self, awaited: &str) -> ServerMessage {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.decoder.next_value() {
                Some(Ok(value)) => {
                    self.seen.push(value.to_string());
                    return serde_json::from_value(value)
                        .unwrap_or_else(|error| panic!("{error}; {}", self.saw(awaited)));
                }
                Some(Err(error)) => panic!("{error}; {}", self.saw(awaited)),
                None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited {PATIENCE:?}; {}", self.saw(awaited));
            self.stream.set_read_timeout(Some(left)).expect("a socket has a timeout");
            let mut bytes = [0; 16 << 10];
            match self.stream.read(&mut bytes) {
                Ok(0) => panic!("the VMM hung up; {}", self.saw(awaited)),
                Ok(length) => self.decoder.feed(&bytes[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => {}
                Err(error) => panic!("{error}; {}", self.saw(awaited)),
            }
        }
    }

    fn saw(&self, awaited: &str) -> String {
        format!("awaited: {awaited}; seen: {:#?}", self.seen)
    }
}
