//! A raw QMP connection that accepts any text and keeps all messages in order.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use cpr_qmp::codec::Decoder;
use serde_json::{Value, json};

use crate::support::PATIENCE;

/// The `id` of the command sent after a step, which marks the end of the step's answers.
const FENCE: &str = "fence";

/// A QMP connection.
pub struct Wire {
    stream: UnixStream,
    decoder: Decoder,
    /// The greeting.
    pub greeting: Value,
    /// The current step, for panic messages.
    pub doing: &'static str,
}

impl Wire {
    /// Connects and waits for the greeting.
    pub fn connect(path: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(path).map_err(|error| error.to_string())?;
        let mut wire =
            Self { stream, decoder: Decoder::new(), greeting: Value::Null, doing: "connect" };
        wire.greeting = wire.next()?.ok_or("end of file")?;
        Ok(wire)
    }

    /// Sends `text` unchanged.
    pub fn say(&mut self, text: &[u8]) {
        self.stream.write_all(text).expect("the server reads");
    }

    /// Executes a command and returns its result; drops events.
    pub fn ask(&mut self, command: &str) -> Value {
        self.say(json!({ "execute": command }).to_string().as_bytes());
        loop {
            let message = self.next().expect("the server answers").expect("the connection is open");
            if message.get("event").is_none() {
                return message["return"].clone();
            }
        }
    }

    /// Executes `command`; returns the messages before its answer, and the answer.
    pub fn fence(&mut self, command: &str) -> (Vec<Value>, Value) {
        // The newline ends an incomplete message.
        self.say(format!("\n{}\n", json!({ "execute": command, "id": FENCE })).as_bytes());
        let mut before = Vec::new();
        loop {
            let message = self.next().expect("the server answers");
            let message =
                message.unwrap_or_else(|| panic!("{}: hung up after {before:?}", self.doing));
            if message["id"] == FENCE {
                return (before, message);
            }
            before.push(message);
        }
    }

    /// Returns the next message; `None` at the end of the stream.
    pub fn next(&mut self) -> Result<Option<Value>, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(message) = self.decoder.next_value() {
                return message.map(Some).map_err(|error| error.to_string());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{}: no message from the server", self.doing);
            self.stream.set_read_timeout(Some(left)).expect("a socket has a timeout");
            let mut bytes = [0; 16 << 10];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(length) => self.decoder.feed(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}
