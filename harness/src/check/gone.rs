//! A VMM that was told to quit ends well and leaves its socket's path free.

use std::path::Path;
use std::process::ExitStatus;

use cpr_qmp::message::Event;

use crate::observe::qmp::label;

/// Name of this check. It takes the place of all others when the VMM has ended.
pub const NAME: &str = "gone";

/// What the guests write to the debug exit port is 0, of which the port makes this.
const EXIT_BY_GUEST: i32 = 1;

/// How the VMM `ended` (`by_guest`: by the debug exit port), its `socket`, and the `events` of the
/// last step.
pub fn check(
    ended: ExitStatus,
    by_guest: bool,
    socket: &Path,
    events: &[Event],
) -> Result<(), String> {
    let wanted = if by_guest { EXIT_BY_GUEST } else { 0 };
    if ended.code() != Some(wanted) {
        return Err(format!("the VMM must end with exit status {wanted}, ended with {ended}"));
    }
    if socket.exists() {
        return Err(format!("after quit the socket {} is still there", socket.display()));
    }
    let shutdowns = events.iter().filter(|e| label(e) == "SHUTDOWN").count();
    if shutdowns > 1 || (shutdowns == 0 && !by_guest) {
        return Err(format!("the VMM must send one SHUTDOWN event, sent {shutdowns}"));
    }
    Ok(())
}
