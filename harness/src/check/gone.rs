//! Checks that a VMM that was told to end exits cleanly and removes its sockets and PID file.

use std::path::Path;
use std::process::ExitStatus;

use cpr_qmp::message::Event;
use serde_json::Value;

use crate::observe::qmp::label;

/// Name of this check, which replaces all others once the VMM has ended.
pub const NAME: &str = "gone";

/// Exit status when a guest ends its VMM: the guests write 0 to the debug exit port, which maps it
/// to 1.
const EXIT_BY_GUEST: i32 = 1;

/// What told the VMM to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// `quit`.
    Quit,
    /// The guest, by the debug exit port.
    Guest,
    /// The guest, by the power-off of its operating system.
    PowerOff,
    /// SIGTERM, SIGINT or SIGHUP.
    Signal,
}

impl Cause {
    /// Its name, as reports print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quit => "quit",
            Self::Guest => "the guest's end",
            Self::PowerOff => "the guest's power-off",
            Self::Signal => "the signal",
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Quit => "host-qmp-quit",
            Self::Guest | Self::PowerOff => "guest-shutdown",
            Self::Signal => "host-signal",
        }
    }
}

/// A VMM that has ended.
#[derive(Clone, Copy)]
pub struct Gone<'a> {
    /// How it exited.
    pub ended: ExitStatus,
    /// What told it to end.
    pub cause: Cause,
    /// Its sockets.
    pub sockets: &'a [&'a str],
    /// Its PID file.
    pub pid_file: &'a Path,
    /// The events of the last step.
    pub events: &'a [Event],
}

/// Checks exit status, leftover paths and the `SHUTDOWN` event.
pub fn check(gone: &Gone<'_>) -> Result<(), String> {
    let Gone { ended, cause, events, .. } = gone;
    let wanted = if *cause == Cause::Guest { EXIT_BY_GUEST } else { 0 };
    if ended.code() != Some(wanted) {
        return Err(format!("the VMM must end with exit status {wanted}, ended with {ended}"));
    }
    let sockets = gone.sockets.iter().map(|path| ("socket", Path::new(*path)));
    for (what, path) in sockets.chain([("PID file", gone.pid_file)]) {
        if path.exists() {
            let after = cause.name();
            return Err(format!("after {after} the {what} {} still exists", path.display()));
        }
    }
    let shutdowns: Vec<&Event> = events.iter().filter(|e| label(e) == "SHUTDOWN").collect();
    let [shutdown] = shutdowns[..] else {
        // No client may be left to see the end.
        return match (cause, shutdowns.len()) {
            (Cause::Guest | Cause::PowerOff, 0) => Ok(()),
            (_, sent) => Err(format!("expected one SHUTDOWN event, got {sent}")),
        };
    };
    let reason = shutdown.data.as_ref().and_then(|data| data.get("reason")).and_then(Value::as_str);
    if reason != Some(cause.reason()) {
        let (wanted, reason) = (cause.reason(), reason.unwrap_or("nothing"));
        return Err(format!("expected SHUTDOWN with reason {wanted}, got {reason}"));
    }
    Ok(())
}
