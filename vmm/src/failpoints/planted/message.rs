//! Planted bugs in the messages to clients.

use std::sync::atomic::{AtomicBool, Ordering};

use cpr_qmp::message::Event;
use serde_json::{Value, json};

use super::{Planted, planted};

const MIGRATION: &str = "MIGRATION";
const COMPLETED: &str = "completed";
const FAILED: &str = "failed";

/// Whether `completed` was sent too early, and is not to be sent again.
static COMPLETED_EARLY: AtomicBool = AtomicBool::new(false);

/// Returns what is sent in place of `event`.
pub(in super::super) fn change_event(mut event: Event) -> Vec<Event> {
    let status = event.data.as_ref().and_then(|data| data["status"].as_str()).unwrap_or_default();
    match (event.event.as_str(), status) {
        ("STOP", _) if planted(Planted::NoStopEvent) => return Vec::new(),
        ("RESUME", _) if planted(Planted::DoubleResume) => return vec![event.clone(), event],
        ("RESUME", _) if planted(Planted::EarlyCompleted) => {
            COMPLETED_EARLY.store(true, Ordering::SeqCst);
            let completed = Event {
                event: MIGRATION.to_owned(),
                data: Some(json!({ "status": COMPLETED })),
                timestamp: event.timestamp,
            };
            return vec![completed, event];
        }
        (MIGRATION, COMPLETED) if COMPLETED_EARLY.swap(false, Ordering::SeqCst) => {
            return Vec::new();
        }
        (MIGRATION, FAILED) if planted(Planted::FailureIsSuccess) => {
            event.data = Some(json!({ "status": COMPLETED }));
        }
        _ => {}
    }
    vec![event]
}

/// Returns what is sent in place of `answer`.
pub(in super::super) fn change_answer(mut answer: Value) -> Value {
    if let Some(members) = answer.as_object_mut()
        && members.get("status").is_some_and(|status| status == FAILED)
        && planted(Planted::FailureIsSuccess)
    {
        members.insert("status".to_owned(), COMPLETED.into());
        members.remove("error-desc");
    }
    answer
}
