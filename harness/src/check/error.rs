//! Checks that the error of an update says what was tried, on what, and why it failed.

use serde_json::Value;

use super::{Action, Check, Ending, Revival, Scene};
use crate::observe::qmp::label;
use crate::scenario::Expect;

/// The `error` check.
pub const CHECK: Check = Check {
    name: "error",
    claim: "the error of a failed update names the command and the errno",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    if let Some(revival) = scene.handover.revival() {
        return of_revival(scene, revival);
    }
    let Action::Update { expect, ending, culprit, errno, .. } = scene.action else { return Ok(()) };
    match (expect, ending) {
        (Expect::Failed(failure), Ending::Failed(error)) => {
            let errno = errno.map(|n| errno_text(n, scene.dialect.errno_number));
            let errno = errno.as_deref().unwrap_or("");
            for (what, part) in [
                ("what failed", culprit.as_str()),
                ("the errno", errno),
                ("the text", words(scene, &failure.text)),
            ] {
                if !error.contains(part) {
                    return Err(format!("the error lacks {what}, {part:?}: {error:?}"));
                }
            }
            one_line(error)
        }
        (Expect::Refused(text), Ending::Refused(error)) => {
            if !error.contains(words(scene, text)) {
                return Err(format!("the refusal lacks the text {text:?}: {error:?}"));
            }
            one_line(error)
        }
        (Expect::NotCompleted(text), Ending::Refused(error) | Ending::Failed(error)) => {
            if !error.contains(words(scene, text)) {
                return Err(format!("the error lacks the text {text:?}: {error:?}"));
            }
            one_line(error)
        }
        (Expect::Any | Expect::Survives, Ending::Refused(error) | Ending::Failed(error)) => {
            one_line(error)
        }
        // The check `outcome` reports an update that ended differently.
        _ => Ok(()),
    }
}

/// Checks that the error of an update whose VMM process died names the reason and both processes.
fn of_revival(scene: &Scene<'_>, revival: &Revival) -> Result<(), String> {
    let failed = scene.events.iter().any(|event| label(event) == "MIGRATION(failed)");
    let error = scene.after.migrate.get("error-desc").and_then(Value::as_str);
    // The check `migrate_status` reports a missing error.
    let Some(error) = error.filter(|_| failed) else { return Ok(()) };
    let pids = [revival.former.pid, scene.pid()].map(|pid| pid.to_string());
    let parts = [revival.event.reason.as_str(), &pids[0], &pids[1]];
    for (what, part) in ["the reason", "the former process", "the new process"].iter().zip(parts) {
        if !error.contains(part) {
            return Err(format!("the error lacks {what}, {part:?}: {error:?}"));
        }
    }
    one_line(error)
}

/// The part of a scenario's text that the error must contain.
fn words<'a>(scene: &Scene<'_>, text: &'a str) -> &'a str {
    if scene.dialect.own_words { text } else { "" }
}

fn errno_text(number: i32, with_number: bool) -> String {
    let text = std::io::Error::from_raw_os_error(number).to_string();
    if with_number {
        return text;
    }
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

fn one_line(error: &str) -> Result<(), String> {
    if error.trim().lines().count() == 1 {
        return Ok(());
    }
    Err(format!("the error is not one line: {error:?}"))
}
