//! Stores what a QMP server has sent so far, and lets several threads wait for it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use cpr_qmp::message::{Event, Greeting, Response, ServerMessage};

use super::clock;
use super::conversation::Conversation;
use super::poll::Deadline;
use crate::coverage;

/// Called with every message in both directions, to record it.
pub type Tap = Arc<dyn Fn(Direction, &str) + Send + Sync>;

/// The direction of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the VMM.
    Sent,
    /// From the VMM.
    Received,
}

/// An event and when it arrived here.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrived {
    /// Time since the harness started.
    pub at: Duration,
    /// The event.
    pub event: Event,
}

/// All that has arrived.
#[derive(Debug, Default)]
pub struct Content {
    /// The greeting.
    pub greeting: Option<Greeting>,
    /// Answers, by the `id` of their command.
    pub answers: BTreeMap<u64, Response>,
    /// Events in order, without those dropped.
    pub events: Vec<Arrived>,
    /// Number of dropped events, which came before these.
    pub forgotten: usize,
    /// Why nothing more will arrive, if so.
    pub closed: Option<String>,
    /// Checks the protocol.
    pub conversation: Conversation,
}

impl Content {
    /// How many events have arrived.
    pub fn event_count(&self) -> usize {
        self.forgotten + self.events.len()
    }

    /// The events from number `from` on; `None` if fewer have arrived.
    pub fn events_from(&self, from: usize) -> Option<&[Arrived]> {
        self.events.get(from.saturating_sub(self.forgotten)..)
    }
}

/// Why a wait failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missed {
    /// The deadline passed.
    Late,
    /// The connection ended, for this reason.
    Closed(String),
}

/// The shared inbox of one connection.
#[derive(Debug, Default)]
pub struct Inbox {
    content: Mutex<Content>,
    changed: Condvar,
}

impl Inbox {
    /// Reads messages from `stream` until it ends; runs in a thread of its own.
    pub fn fill(&self, stream: impl Read, tap: &Tap) {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        let why = loop {
            line.clear();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => break "the VMM closed the connection".to_owned(),
                Err(e) => break format!("cannot read from the QMP socket: {e}"),
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&line);
            tap(Direction::Received, text.trim_end());
            if let Err(why) = self.take(&line) {
                break why;
            }
        };
        self.change(|content| content.closed = Some(why));
    }

    /// Drops all answers, and the events before number `before`.
    pub fn forget(&self, before: usize) {
        self.change(|content| {
            let count = before.saturating_sub(content.forgotten).min(content.events.len());
            content.events.drain(..count);
            content.forgotten += count;
            content.answers.clear();
        });
    }

    /// Prepares for the greeting of a new connection; keeps what has arrived.
    pub fn reopen(&self) {
        self.change(|content| {
            (content.greeting, content.closed) = (None, None);
            content.conversation.reopen();
        });
    }

    /// Records that these requests are about to be sent.
    pub fn ask(&self, ids: &[u64]) {
        self.change(|content| ids.iter().for_each(|id| content.conversation.ask(*id)));
    }

    /// Parses and stores a line; the error says why it is invalid.
    fn take(&self, line: &[u8]) -> Result<(), String> {
        self.change(|content| {
            match content.conversation.line(line, SystemTime::now())? {
                ServerMessage::Greeting(greeting) => content.greeting = Some(greeting),
                ServerMessage::Event(event) => {
                    coverage::heard(&event);
                    content.events.push(Arrived { at: clock::now(), event });
                }
                ServerMessage::Response(response) => {
                    let (Response::Success { id, .. } | Response::Failure { id, .. }) = &response;
                    // A response without our id answers no request: `conversation` reports it.
                    if let Some(id) = id.as_ref().and_then(serde_json::Value::as_u64) {
                        content.answers.insert(id, response);
                    }
                }
            }
            Ok(())
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        let changed = change(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        changed
    }

    /// Looks at the content now.
    pub fn read<T>(&self, read: impl FnOnce(&Content) -> T) -> T {
        read(&self.content.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until `look` finds something.
    pub fn wait<T>(
        &self,
        deadline: Deadline,
        mut look: impl FnMut(&Content) -> Option<T>,
    ) -> Result<T, Missed> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = look(&content) {
                return Ok(found);
            }
            if let Some(why) = &content.closed {
                return Err(Missed::Closed(why.clone()));
            }
            if deadline.passed() {
                return Err(Missed::Late);
            }
            content = self
                .changed
                .wait_timeout(content, deadline.remaining())
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_keep_their_numbers_when_earlier_ones_are_dropped() {
        let inbox = Inbox::default();
        let tap: Tap = Arc::new(|_, _| {});
        let event = |name: &str| {
            format!(r#"{{"event": "{name}", "timestamp": {{"seconds": 1, "microseconds": 2}}}}"#)
        };
        let sent = ["A", "B", "C"].map(event).join("\n") + "\n";
        inbox.fill(sent.as_bytes(), &tap);
        inbox.forget(2);
        let names = |from| {
            inbox.read(|content| {
                let events = content.events_from(from)?;
                Some(events.iter().map(|a| a.event.event.clone()).collect::<Vec<_>>())
            })
        };
        assert_eq!(names(2), Some(vec!["C".to_owned()]));
        assert_eq!(names(3), Some(Vec::new()));
        assert_eq!(names(4), None);
        inbox.forget(9);
        assert_eq!(inbox.read(Content::event_count), 3);
    }
}
