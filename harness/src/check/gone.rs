//! A VMM that was told to quit ends well and leaves its socket's path free.

use std::path::Path;
use std::process::ExitStatus;

use cpr_qmp::message::Event;

use crate::observe::qmp::label;

/// Name of this check. It takes the place of all others when the VMM has ended.
pub const NAME: &str = "gone";

/// How the VMM `ended`, its `socket`, and the `events` of the last step.
pub fn check(ended: ExitStatus, socket: &Path, events: &[Event]) -> Result<(), String> {
    if !ended.success() {
        return Err(format!("after quit the VMM ended with {ended}"));
    }
    if socket.exists() {
        return Err(format!("after quit the socket {} is still there", socket.display()));
    }
    let shutdowns = events.iter().filter(|e| label(e) == "SHUTDOWN").count();
    if shutdowns != 1 {
        return Err(format!("quit must send one SHUTDOWN event, sent {shutdowns}"));
    }
    Ok(())
}
