//! The QMP connections to a VM: the one that asks, and one that only listens.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cpr_qmp::message::Event;

use super::Options;
use super::evidence::Evidence;
use super::failure::StepError;
use super::vm::Vm;
use crate::backend::Files;
use crate::observe::qmp::{Arrived, Command, Direction, Qmp, Tap, label};

/// Connects to the VMM; `suffix` tells its connections apart in the time line.
pub fn connect(
    files: &Files,
    evidence: &Evidence,
    vm: &mut Vm,
    options: &Options,
    suffix: &str,
) -> Result<Qmp, StepError> {
    let timeline = evidence.timeline.clone();
    let sent = format!("qmp{suffix}-sent");
    let received = format!("qmp{suffix}-received");
    let tap: Tap = Arc::new(move |direction, text| match direction {
        Direction::Sent => timeline.say(&sent, text),
        Direction::Received => timeline.say(&received, text),
    });
    let vm = RefCell::new(vm);
    let console = evidence.console();
    let hopeless = || {
        let status = vm.borrow_mut().ended()?;
        let said = std::fs::read_to_string(&console).unwrap_or_default();
        let last = said.lines().last().unwrap_or("nothing").to_owned();
        Some(format!("the VMM has ended ({status}); its last words: {last}"))
    };
    Ok(Qmp::connect(Path::new(&files.qmp), options.patience.greeting, tap, hopeless)?)
}

/// A client that only listens.
pub struct Bystander {
    qmp: Qmp,
    heard: usize,
}

impl Bystander {
    /// On this connection.
    pub fn new(qmp: Qmp) -> Self {
        Self { qmp, heard: 0 }
    }

    /// What it has heard since the last time; waits up to `limit` for as much as `others` heard.
    pub fn hear(&mut self, others: &[Event], limit: Duration) -> Result<Vec<Event>, String> {
        let labels = |arrived: &[Arrived]| -> Vec<String> {
            arrived.iter().map(|a| label(&a.event)).collect()
        };
        let wanted: Vec<String> = others.iter().map(label).collect();
        // What is missing then is for the check `clients` to tell.
        let _ = self.qmp.await_events(self.heard, limit, |arrived| labels(arrived) == wanted);
        // Proves that the connection works both ways, and comes behind all that was sent before.
        self.qmp.execute(Command::plain("query-status")).map_err(|e| e.to_string())?;
        let arrived = self.qmp.events_from(self.heard);
        self.heard += arrived.len();
        Ok(arrived.into_iter().map(|a| a.event).collect())
    }
}
