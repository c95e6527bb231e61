//! The QMP connections to a VM: one that sends commands, and one that only listens.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpr_qmp::message::Event;

use crate::observe::qmp::{Command, Direction, Qmp, Tap};
use crate::process::vm::Vm;
use crate::run::Options;
use crate::run::evidence::Evidence;
use crate::run::failure::StepError;
use crate::run::session::Session;

/// Connects to the VMM's socket `qmp`; `suffix` distinguishes its connections in the timeline.
pub fn connect(
    qmp: &str,
    evidence: &Evidence,
    vm: &mut Vm,
    options: &Options,
    suffix: &str,
) -> Result<Qmp, StepError> {
    let connect_failure = connect_failure(vm, evidence.console());
    let tap = tap(evidence, suffix);
    Ok(Qmp::connect(Path::new(qmp), options.patience.greeting, tap, connect_failure)?)
}

/// Returns what records a connection in the timeline, with `suffix` in its name.
pub(super) fn tap(evidence: &Evidence, suffix: &str) -> Tap {
    let timeline = evidence.timeline.clone();
    let sent = format!("qmp{suffix}-sent");
    let received = format!("qmp{suffix}-received");
    Arc::new(move |direction, text| match direction {
        Direction::Sent => timeline.say(&sent, text),
        Direction::Received => timeline.say(&received, text),
    })
}

/// Returns a probe that says why no connection can succeed, once the VMM has exited.
fn connect_failure(vm: &mut Vm, console: PathBuf) -> impl Fn() -> Option<String> {
    let vm = RefCell::new(vm);
    move || {
        let status = vm.borrow_mut().ended()?;
        let said = std::fs::read_to_string(&console).unwrap_or_default();
        let last = said.lines().last().unwrap_or("none").to_owned();
        Some(format!("the VMM has ended ({status}); last console line: {last}"))
    }
}

impl Session<'_> {
    /// Reconnects both clients to a VMM that does not keep its connections over an update.
    pub(super) fn connect_again(&mut self) -> Result<(), StepError> {
        let backend = &*self.options.backend;
        let limit = self.options.patience.greeting;
        let began = Instant::now();
        let sockets = [self.files.qmp.clone(), backend.second_qmp(&self.files)];
        let clients = [&mut self.qmp, &mut self.second_client.qmp];
        let mut tries = 0;
        for (socket, client) in sockets.iter().zip(clients) {
            // This client may see the connection close later than the other one.
            client.await_end(limit)?;
            let connect_failure = connect_failure(&mut self.vm, self.evidence.console());
            tries += client.reconnect(Path::new(socket), limit, connect_failure)?;
        }
        let text = format!(
            "the VMM closed its QMP connections; reconnected both after {:?} in {tries} tries",
            began.elapsed()
        );
        self.evidence.timeline.say("harness", text);
        Ok(())
    }
}

/// A client that only listens.
pub struct EventListener {
    qmp: Qmp,
    heard: usize,
}

impl EventListener {
    /// Listens on the connection `qmp`.
    pub fn new(qmp: Qmp) -> Self {
        Self { qmp, heard: 0 }
    }

    /// Returns the protocol violations so far.
    pub fn violations(&self) -> Vec<String> {
        self.qmp.violations()
    }

    /// Drops the events that were already returned.
    pub fn forget(&self) {
        self.qmp.forget(self.heard);
    }

    /// Returns the events received since the last call, after waiting up to `limit` until those
    /// that all clients get (`common`) match the ones among `others`.
    pub fn hear(
        &mut self,
        others: &[Event],
        common: impl Fn(&[Event]) -> Vec<String>,
        limit: Duration,
    ) -> Result<Vec<Event>, String> {
        let wanted = common(others);
        // The check `clients` reports what is missing after the limit.
        let _ = self.qmp.await_events(self.heard, limit, |arrived| {
            let events: Vec<Event> = arrived.iter().map(|a| a.event.clone()).collect();
            common(&events) == wanted
        });
        // Proves that the connection works both ways; the reply follows everything sent before it.
        self.qmp.execute(Command::plain("query-status")).map_err(|e| e.to_string())?;
        let arrived = self.qmp.events_from(self.heard);
        self.heard += arrived.len();
        Ok(arrived.into_iter().map(|a| a.event).collect())
    }
}
