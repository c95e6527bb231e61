//! The QMP client: commands with deadlines, and a log of events.

use std::borrow::Cow;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cpr_qmp::message::{Event, GreetingBody, QmpError, Response};
use serde_json::{Value, json};

use super::patience::patient;
use super::poll::{self, Deadline};
pub use super::qmp_inbox::{Arrived, Direction, Tap};
use super::qmp_inbox::{Inbox, Missed};
use crate::coverage;

/// How long a response may take on a busy machine.
pub const ANSWER: Duration = Duration::from_secs(20);

/// Why a conversation with the VMM failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpFault {
    /// There is no connection.
    #[error("cannot connect to the QMP socket {path} within {limit:?}: {why}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// How long it was tried.
        limit: Duration,
        /// The last error.
        why: String,
    },
    /// A message could not be sent.
    #[error("cannot send {what} to the VMM: {source}")]
    Send {
        /// The message.
        what: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// What was awaited did not arrive in time.
    #[error("waited {limit:?} for {what}; seen: {seen}")]
    Late {
        /// What was awaited.
        what: String,
        /// How long.
        limit: Duration,
        /// The events that did arrive.
        seen: String,
    },
    /// The connection ended first.
    #[error("while waiting for {what}: {why}; seen: {seen}")]
    Closed {
        /// What was awaited.
        what: String,
        /// Why it ended.
        why: String,
        /// The events that did arrive.
        seen: String,
    },
    /// The VMM answered with an error.
    #[error("`{command}` was refused: {error}")]
    Refused {
        /// The command.
        command: String,
        /// The VMM's error.
        error: QmpError,
    },
    /// The VMM's answer does not match its schema.
    #[error("`{command}` answered {value}: {source}")]
    Answer {
        /// The command.
        command: String,
        /// The answer.
        value: Value,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// One command to send.
#[derive(Clone, Debug)]
pub struct Command {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its arguments; null for none.
    pub arguments: Value,
}

impl Command {
    /// A command with arguments.
    pub fn new(name: impl Into<Cow<'static, str>>, arguments: Value) -> Self {
        Self { name: name.into(), arguments }
    }

    /// A command without arguments.
    pub fn plain(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, Value::Null)
    }
}

/// A connection to a VMM, ready for commands.
pub struct Qmp {
    stream: UnixStream,
    inbox: Arc<Inbox>,
    tap: Tap,
    next_id: u64,
}

impl Qmp {
    /// Connects to `path` as soon as a process listens there, and negotiates capabilities.
    ///
    /// `give_up` returns a reason to give up, once there is one.
    pub fn connect(
        path: &Path,
        limit: Duration,
        tap: Tap,
        give_up: impl Fn() -> Option<String>,
    ) -> Result<Self, QmpFault> {
        let inbox = Arc::new(Inbox::default());
        let stream = connect_within(path, Deadline::after(limit), limit, &inbox, &tap, &give_up)?;
        let mut qmp = Self { stream, inbox, tap, next_id: 1 };
        qmp.await_that("the greeting", limit, |c| c.greeting.clone())?;
        qmp.execute(Command::plain("qmp_capabilities"))?;
        Ok(qmp)
    }

    /// Reconnects after the VMM has closed the connection; what has arrived is kept. Returns the
    /// number of attempts: the old VMM's listener accepts one that is too early, and then closes
    /// it.
    pub fn reconnect(
        &mut self,
        path: &Path,
        limit: Duration,
        give_up: impl Fn() -> Option<String>,
    ) -> Result<u32, QmpFault> {
        let deadline = Deadline::after(limit);
        let mut tries = 0;
        loop {
            tries += 1;
            self.inbox.reopen();
            self.stream = connect_within(path, deadline, limit, &self.inbox, &self.tap, &give_up)?;
            match self.await_that("the greeting", deadline.remaining(), |c| c.greeting.clone()) {
                Err(QmpFault::Closed { .. }) if !deadline.passed() => {}
                Err(other) => return Err(other),
                Ok(_) => break,
            }
        }
        self.execute(Command::plain("qmp_capabilities"))?;
        Ok(tries)
    }

    /// The content of the server's greeting.
    pub fn greeting(&self) -> Option<GreetingBody> {
        self.inbox.read(|c| c.greeting.clone()).map(|g| g.qmp)
    }

    /// Sends `commands` in one write and returns their ids.
    pub fn send(&mut self, commands: &[Command]) -> Result<Vec<u64>, QmpFault> {
        let mut text = String::new();
        let mut ids = Vec::new();
        for command in commands {
            coverage::sent(&command.name, &command.arguments);
            let mut message = json!({ "execute": command.name, "id": self.next_id });
            if !command.arguments.is_null() {
                message["arguments"] = command.arguments.clone();
            }
            let line = message.to_string();
            (self.tap)(Direction::Sent, &line);
            text.push_str(&line);
            text.push('\n');
            ids.push(self.next_id);
            self.next_id += 1;
        }
        self.inbox.ask(&ids);
        self.stream.write_all(text.as_bytes()).map_err(|source| QmpFault::Send {
            what: commands.iter().map(|c| &*c.name).collect::<Vec<_>>().join(", "),
            source,
        })?;
        Ok(ids)
    }

    /// Waits for the answer to the command with this id.
    pub fn answer(&self, name: &str, id: u64) -> Result<Value, QmpFault> {
        let what = format!("the answer to `{name}`");
        match self.await_that(&what, patient(ANSWER), |c| c.answers.get(&id).cloned())? {
            Response::Success { value, .. } => {
                coverage::answered(name, &value);
                Ok(value)
            }
            Response::Failure { error, .. } => {
                coverage::failed(error.class);
                Err(QmpFault::Refused { command: name.to_owned(), error })
            }
        }
    }

    /// Sends one command and waits for its answer.
    pub fn execute(&mut self, command: Command) -> Result<Value, QmpFault> {
        let ids = self.send(std::slice::from_ref(&command))?;
        self.answer(&command.name, ids[0])
    }

    /// Sends a query whose answer has the type `T`.
    pub fn query<T: serde::de::DeserializeOwned>(
        &mut self,
        name: &'static str,
    ) -> Result<T, QmpFault> {
        let value = self.execute(Command::plain(name))?;
        serde_json::from_value(value.clone()).map_err(|source| QmpFault::Answer {
            command: name.to_owned(),
            value,
            source,
        })
    }

    /// Protocol violations by the server so far.
    pub fn violations(&self) -> Vec<String> {
        self.inbox.read(|c| c.conversation.violations().to_vec())
    }

    /// How many events have arrived.
    pub fn event_count(&self) -> usize {
        self.inbox.read(|c| c.event_count())
    }

    /// Drops all answers, and the events before number `before`, which are no longer needed.
    pub fn forget(&self, before: usize) {
        self.inbox.forget(before);
    }

    /// The events from number `from` on.
    pub fn events_from(&self, from: usize) -> Vec<Arrived> {
        self.inbox.read(|c| c.events_from(from).unwrap_or_default().to_vec())
    }

    /// Waits for the first event from number `from` on that `wanted` accepts.
    pub fn await_event(
        &self,
        from: usize,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Arrived, QmpFault> {
        self.await_that(what, limit, |c| {
            c.events_from(from)?.iter().find(|arrived| wanted(&arrived.event)).cloned()
        })
    }

    /// Waits until `wanted` accepts the events from number `from` on.
    pub fn await_events(
        &self,
        from: usize,
        limit: Duration,
        wanted: impl Fn(&[Arrived]) -> bool,
    ) -> Result<(), QmpFault> {
        self.await_that("events", limit, |c| wanted(c.events_from(from)?).then_some(()))
    }

    /// Waits until the VMM has closed the connection.
    pub fn await_end(&self, limit: Duration) -> Result<String, QmpFault> {
        self.await_that("the end of the connection", limit, |c| c.closed.clone())
    }

    fn await_that<T>(
        &self,
        what: &str,
        limit: Duration,
        look: impl FnMut(&super::qmp_inbox::Content) -> Option<T>,
    ) -> Result<T, QmpFault> {
        self.inbox.wait(Deadline::after(limit), look).map_err(|missed| {
            let what = what.to_owned();
            let seen = self.inbox.read(|c| describe(&c.events));
            match missed {
                Missed::Late => QmpFault::Late { what, limit, seen },
                Missed::Closed(why) => QmpFault::Closed { what, why, seen },
            }
        })
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        // Ends the reader thread.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Connects to `path` and starts the thread that fills the inbox.
fn connect_within(
    path: &Path,
    deadline: Deadline,
    limit: Duration,
    inbox: &Arc<Inbox>,
    tap: &Tap,
    give_up: &impl Fn() -> Option<String>,
) -> Result<UnixStream, QmpFault> {
    let fault = |why| QmpFault::Connect { path: path.to_owned(), limit, why };
    let mut last = String::new();
    let stream = poll::until(deadline, || match UnixStream::connect(path) {
        Ok(stream) => Some(Ok(stream)),
        Err(e) => {
            last = e.to_string();
            give_up().map(Err)
        }
    })
    .ok_or_else(|| fault(last))?
    .map_err(fault)?;
    let reader = stream.try_clone().map_err(|e| fault(e.to_string()))?;
    let (filled, sees) = (inbox.clone(), tap.clone());
    std::thread::Builder::new()
        .name("qmp-reader".into())
        .spawn(move || filled.fill(reader, &sees))
        .map_err(|e| fault(e.to_string()))?;
    Ok(stream)
}

/// Returns one word per event: its name, and the status of a `MIGRATION`.
pub fn label(event: &Event) -> String {
    let status = event.data.as_ref().and_then(|d| d.get("status")).and_then(Value::as_str);
    match status {
        Some(status) => format!("{}({status})", event.event),
        None => event.event.clone(),
    }
}

/// Formats the newest events as one line.
fn describe(events: &[Arrived]) -> String {
    const NEWEST: usize = 12;
    if events.is_empty() {
        return "no event".into();
    }
    let newest = &events[events.len().saturating_sub(NEWEST)..];
    let dots = if newest.len() < events.len() { "… " } else { "" };
    let labels: Vec<String> = newest.iter().map(|a| label(&a.event)).collect();
    format!("{dots}{}", labels.join(" "))
}
