//! Checks the events of a step in which the VM moved to its keeper's process.

use super::handover::CONTINUED;
use super::{Action, Scene};
use crate::observe::qmp::label;
use crate::scenario::Mode;

const FAILED: &str = "MIGRATION(failed)";

/// All events of an update, in order.
const UPDATE: [&str; 6] = [
    "MIGRATION(setup)",
    "STOP",
    "MIGRATION(active)",
    "MIGRATION(device)",
    "RESUME",
    "MIGRATION(completed)",
];

/// The same in mode `normal`, without the passes over RAM.
const COPY: [&str; 4] = ["MIGRATION(setup)", "MIGRATION(active)", "STOP", "MIGRATION(device)"];

/// Whether the first client saw valid events.
pub(super) fn fits(scene: &Scene<'_>) -> bool {
    let seen: Vec<String> = scene.events.iter().map(label).collect();
    check(scene.action, scene.ran_before, &seen).is_ok()
}

/// Checks that `seen` is valid for a VM whose guest `ran`: at most an update that breaks off, then
/// the event that the VM continues in another process. An update that was under way must have
/// failed, and a guest that was stopped for it must resume after that.
///
/// A process may have been killed just before or just after it sent its last event: both are valid.
pub fn check(action: &Action, ran: bool, seen: &[String]) -> Result<(), String> {
    let (copies, seen) = match action {
        Action::Update { mode: Mode::Normal, .. } => (true, without_passes(seen)),
        _ => (false, seen.to_vec()),
    };
    let (update, seen) = (update(ran, copies), seen.as_slice());
    let exact = exactly(action, &update, seen);
    let (Err(_), Action::Killed { in_update: true }) = (&exact, action) else { return exact };
    let Some(at) = seen.iter().position(|event| event == CONTINUED) else { return exact };
    let at = at - usize::from(at > 0 && seen[at - 1] == FAILED);
    let (before, rest) = seen.split_at(at);
    let next = update.get(before.len()).map(|event| (*event).to_owned());
    let sent_more = before.split_last().map(|(_, fewer)| fewer.to_vec());
    let sent_less = next.map(|next| [before, &[next]].concat());
    let may_be =
        |before: Vec<String>| exactly(action, &update, &[before.as_slice(), rest].concat()).is_ok();
    if sent_more.into_iter().chain(sent_less).any(may_be) { Ok(()) } else { exact }
}

fn without_passes(seen: &[String]) -> Vec<String> {
    seen.iter().filter(|event| *event != "MIGRATION_PASS").cloned().collect()
}

/// All events of an update of a guest that `ran`, which copies RAM or not.
fn update(ran: bool, copies: bool) -> Vec<&'static str> {
    let all: &[&str] = if copies { &COPY } else { &UPDATE };
    all.iter().copied().filter(|event| ran || event.starts_with("MIGRATION")).collect()
}

fn exactly(action: &Action, update: &[&str], seen: &[String]) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("in a revival {why}; saw the events [{}]", seen.join(" ")));
    if seen.iter().filter(|event| *event == CONTINUED).count() != 1 {
        return wrong("X_CPR_CONTINUED must come once");
    }
    let at = seen.iter().position(|event| event == CONTINUED).unwrap_or(0);
    let (mut before, mut after) = (&seen[..at], &seen[at + 1..]);
    let mut failures = 0;
    if let [rest @ .., last] = before
        && last == FAILED
    {
        (before, failures) = (rest, failures + 1);
    }
    if let [first, rest @ ..] = after
        && first == FAILED
    {
        (after, failures) = (rest, failures + 1);
    }
    let begins = before.len() <= update.len() && before.iter().zip(update).all(|(a, b)| a == b);
    if !begins {
        return wrong("an update must break off before it");
    }
    let has = |name: &str| before.iter().any(|event| event == name);
    let under_way = has(UPDATE[0]) && !has(UPDATE[5]);
    // A requested update may be under way before its first event.
    let untold = before.is_empty() && action.may_update();
    if failures != usize::from(under_way) && !(untold && failures == 1) {
        let wanted = if under_way { "once, next to it" } else { "never" };
        return wrong(&format!("MIGRATION(failed) must come {wanted}"));
    }
    let resumes: &[&str] = if has("STOP") && !has("RESUME") { &["RESUME"] } else { &[] };
    if after == resumes {
        return Ok(());
    }
    match resumes {
        [] => wrong("nothing must come after it"),
        _ => wrong("RESUME must come after it, and nothing else"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn full(event: &str) -> String {
        match event {
            "X" => CONTINUED.to_owned(),
            event if event.starts_with(char::is_lowercase) => format!("MIGRATION({event})"),
            event => event.to_owned(),
        }
    }

    #[rstest]
    #[case(true, "X", true)]
    #[case(false, "X", true)]
    #[case(true, "X RESUME", false)]
    #[case(true, "", false)]
    #[case(true, "X X", false)]
    #[case(true, "setup X failed", true)]
    #[case(true, "setup failed X", true)]
    #[case(true, "setup X", false)]
    #[case(true, "X failed", true)]
    #[case(true, "X failed failed", false)]
    #[case(true, "setup failed X failed", false)]
    #[case(true, "setup STOP active X failed RESUME", true)]
    #[case(true, "setup STOP active failed X RESUME", true)]
    #[case(true, "setup STOP active X RESUME failed", false)]
    #[case(true, "setup STOP active failed RESUME X", false)]
    #[case(true, "setup STOP active X failed", false)]
    #[case(true, "setup active X failed", false)]
    #[case(false, "setup active X failed", true)]
    #[case(false, "setup active X failed RESUME", false)]
    #[case(true, "setup STOP active device RESUME X failed", true)]
    #[case(true, "setup STOP active device RESUME completed X", true)]
    #[case(true, "setup STOP active device RESUME completed X failed", false)]
    fn a_revival_is_reported_in_order(
        #[case] ran: bool,
        #[case] seen: &str,
        #[case] allowed: bool,
    ) {
        let seen: Vec<String> = seen.split_whitespace().map(full).collect();
        let checked = exactly(&Action::Killed { in_update: true }, &update(ran, false), &seen);
        assert_eq!(checked.is_ok(), allowed, "{checked:?}");
    }

    #[rstest]
    #[case("setup STOP X failed", true)]
    #[case("setup X failed RESUME", true)]
    #[case("setup STOP active X failed", false)]
    #[case("setup STOP active device RESUME X failed RESUME", true)]
    #[case("setup STOP active device RESUME completed X failed", true)]
    #[case("setup STOP active device RESUME completed X failed RESUME", false)]
    fn the_last_event_may_have_been_sent_or_not(#[case] seen: &str, #[case] allowed: bool) {
        let seen: Vec<String> = seen.split_whitespace().map(full).collect();
        let checked = check(&Action::Killed { in_update: true }, true, &seen);
        assert_eq!(checked.is_ok(), allowed, "{checked:?}");
    }

    #[test]
    fn no_update_fails_outside_an_update() {
        let accepted = |seen: &[&str]| {
            let seen: Vec<String> = seen.iter().map(|event| (*event).to_owned()).collect();
            check(&Action::Killed { in_update: false }, true, &seen).is_ok()
        };
        assert!(accepted(&[CONTINUED]));
        assert!(!accepted(&[CONTINUED, FAILED]));
    }
}
