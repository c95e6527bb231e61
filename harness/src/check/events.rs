//! Checks that a step emits exactly the events that belong to it, in order.

use cpr_qmp::message::Event;

use super::diff::Difference;
use super::race::Race;
use super::transferred::PASSES;
use super::{Action, Check, Ending, Handover, Scene, interrupted, revived, transferred};
use crate::backend::AcrossExec;
use crate::observe::qmp::label;
use crate::scenario::Mode;

/// The `events` check.
pub const CHECK: Check = Check {
    name: "events",
    claim: "the events are exactly those that belong to the step, in order",
    run,
};

/// An event in a sequence; one in brackets is optional, and with an asterisk it may repeat.
type Pattern = &'static str;

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let seen: Vec<String> = scene.events.iter().map(label).collect();
    if scene.handover.revival().is_some() {
        return revived::check(scene.action, scene.ran_before, &seen);
    }
    if let Some(transfer) = scene.handover.transfer() {
        let former: Vec<String> = transfer.events.iter().map(label).collect();
        let wanted = transferred::former_events(transfer.mode, scene.ran_before);
        if !fits(&wanted, &former) {
            let wanted = resolved(&wanted, &former);
            return Err(differ("the events of the former VMM", &wanted, &former));
        }
    }
    if let Action::Race { commands, accepted } = scene.action {
        return race(
            Race { commands, accepted: *accepted, ran: scene.ran_before },
            scene.dialect.across_exec,
            &seen,
        );
    }
    let wanted = wanted(scene.action, scene.handover, scene.ran_before, scene.dialect.across_exec);
    if let Action::Interrupted { with, early, .. } = scene.action {
        return interrupted::check(*with, *early, scene.ran_before, &seen);
    }
    if fits(&wanted, &seen) || fails_early(scene.action, scene.dialect.across_exec, &seen) {
        return Ok(());
    }
    Err(differ("the events", &resolved(&wanted, &seen), &seen))
}

/// The events of `wanted`, without the optional ones that were not seen.
fn resolved<'a>(wanted: &[&'a str], seen: &[String]) -> Vec<&'a str> {
    let event = |pattern: &&'a str| match Expected::of(pattern) {
        Expected { name, repeats: true, .. } => seen.iter().filter(|s| *s == name).count(),
        Expected { name, optional: true, .. } => usize::from(seen.iter().any(|s| s == name)),
        _ => 1,
    };
    let times = |pattern: &&'a str| vec![Expected::of(pattern).name; event(pattern)];
    wanted.iter().flat_map(times).collect()
}

/// Tells how the seen events differ from the wanted ones.
fn differ(what: &str, wanted: &[&str], seen: &[impl AsRef<str>]) -> String {
    let difference = Difference::of(wanted, seen);
    format!("{what} differ: {}\n{}", difference.summary(), difference.unified())
}

/// Returns true once `events` are all the events of an action.
pub fn complete(
    action: &Action,
    handover: &Handover,
    ran_before: bool,
    across_exec: AcrossExec,
    events: &[Event],
) -> bool {
    let seen: Vec<String> = events.iter().map(label).collect();
    match action {
        _ if handover.revival().is_some() => revived::check(action, ran_before, &seen).is_ok(),
        Action::Race { commands, accepted } => {
            race(Race { commands, accepted: *accepted, ran: ran_before }, across_exec, &seen)
                .is_ok()
        }
        Action::Interrupted { with, early, .. } => {
            interrupted::check(*with, *early, ran_before, &seen).is_ok()
        }
        _ => {
            fits(&wanted(action, handover, ran_before, across_exec), &seen)
                || fails_early(action, across_exec, &seen)
        }
    }
}

/// The events of the VMM in which the VM is after an action.
fn wanted(
    action: &Action,
    handover: &Handover,
    ran: bool,
    across_exec: AcrossExec,
) -> Vec<Pattern> {
    match handover.transfer() {
        Some(_) => transferred::new_events(ran).to_vec(),
        None => expected(action, ran, across_exec),
    }
}

/// Whether an update failed before the guest was stopped, and so sent no `STOP` or `RESUME`.
fn fails_early(action: &Action, across_exec: AcrossExec, seen: &[String]) -> bool {
    let failed = matches!(action, Action::Update { ending: Ending::Failed(_), .. });
    let copies = matches!(action, Action::Update { mode: Mode::Normal, .. });
    let early: &[Pattern] = match across_exec {
        _ if copies => &[
            "MIGRATION(setup)",
            "[MIGRATION(active)]",
            PASSES,
            "[MIGRATION(failing)]",
            "MIGRATION(failed)",
        ],
        AcrossExec::Recreated => &["MIGRATION(setup)", "[MIGRATION(failing)]", "MIGRATION(failed)"],
        _ => &["MIGRATION(setup)", "MIGRATION(failed)"],
    };
    failed && fits(early, seen)
}

fn expected(action: &Action, ran: bool, across_exec: AcrossExec) -> Vec<Pattern> {
    let all: &[Pattern] = match action {
        Action::Nothing | Action::Killed { .. } => &[],
        // The guest may start before or after the first client connects.
        Action::Boot => &["[RESUME]"],
        Action::Stop => &["STOP"],
        Action::Cont => &["RESUME"],
        Action::Reset => &["RESET"],
        Action::Update { mode: Mode::Normal, ending: Ending::Cancelled, .. } => &[
            "MIGRATION(setup)",
            "[MIGRATION(active)]",
            PASSES,
            "[MIGRATION(cancelling)]",
            "MIGRATION(cancelled)",
        ],
        Action::Update { ending: Ending::Cancelled, .. } => {
            &["MIGRATION(setup)", "[MIGRATION(cancelling)]", "MIGRATION(cancelled)"]
        }
        Action::Update { mode: Mode::Normal, ending: Ending::Failed(_), .. } => &[
            "MIGRATION(setup)",
            "MIGRATION(active)",
            PASSES,
            "STOP",
            "[MIGRATION(device)]",
            "[MIGRATION(failing)]",
            "MIGRATION(failed)",
            "RESUME",
        ],
        Action::Update { ending, .. } if across_exec == AcrossExec::Recreated => recreated(ending),
        Action::Update { ending, .. } => match ending {
            Ending::Completed => &[
                "MIGRATION(setup)",
                "STOP",
                "MIGRATION(active)",
                "MIGRATION(device)",
                "RESUME",
                "MIGRATION(completed)",
            ],
            Ending::Refused(_) | Ending::Cancelled => &[],
            // The events of stages that the update did not reach are missing.
            Ending::Failed(_) => &[
                "MIGRATION(setup)",
                "STOP",
                "[MIGRATION(active)]",
                "[MIGRATION(device)]",
                "MIGRATION(failed)",
                "RESUME",
            ],
        },
        Action::Race { .. } | Action::Interrupted { .. } => &[],
    };
    let needless = |pattern: &&Pattern| match action {
        Action::Stop => !ran,
        Action::Cont => ran,
        Action::Update { .. } => !ran && matches!(**pattern, "STOP" | "RESUME" | "[RESUME]"),
        _ => false,
    };
    all.iter().filter(|pattern| !needless(pattern)).copied().collect()
}

/// The events of a VMM whose clients have to reconnect: events before that reach no client, and an
/// update that has completed can still fail to execute its command.
fn recreated(ending: &Ending) -> &'static [Pattern] {
    match ending {
        Ending::Completed => &[
            "MIGRATION(setup)",
            "STOP",
            "MIGRATION(active)",
            "[MIGRATION_PASS]",
            "MIGRATION(device)",
            "MIGRATION(completed)",
            "[RESUME]",
        ],
        // A channel that cannot be opened is reported in the response and by events.
        Ending::Refused(_) | Ending::Cancelled => {
            &["[MIGRATION(setup)]", "[MIGRATION(failing)]", "[MIGRATION(failed)]"]
        }
        Ending::Failed(_) => &[
            "MIGRATION(setup)",
            "STOP",
            "[MIGRATION(active)]",
            "[MIGRATION_PASS]",
            "[MIGRATION(device)]",
            "[MIGRATION(completed)]",
            "[MIGRATION(failing)]",
            "MIGRATION(failed)",
            "RESUME",
        ],
    }
}

/// What a pattern stands for.
struct Expected<'a> {
    name: &'a str,
    optional: bool,
    repeats: bool,
}

impl<'a> Expected<'a> {
    fn of(pattern: &'a str) -> Self {
        let once = pattern.strip_suffix('*');
        let name = once.unwrap_or(pattern).trim_start_matches('[').trim_end_matches(']');
        Self { name, optional: pattern.starts_with('['), repeats: once.is_some() }
    }
}

fn fits(wanted: &[Pattern], seen: &[String]) -> bool {
    let mut seen = seen.iter().peekable();
    for pattern in wanted {
        let Expected { name, optional, repeats } = Expected::of(pattern);
        if seen.next_if(|seen| *seen == name).is_none() && !optional {
            return false;
        }
        while repeats && seen.next_if(|seen| *seen == name).is_some() {}
    }
    seen.next().is_none()
}

/// Checks a race, where the order between commands is open: each update's own events must be in
/// order and each command must take effect exactly once.
fn race(race: Race<'_>, across_exec: AcrossExec, seen: &[String]) -> Result<(), String> {
    let Race { commands, accepted, .. } = race;
    const UPDATE: [&str; 4] =
        ["MIGRATION(setup)", "MIGRATION(active)", "MIGRATION(device)", "MIGRATION(completed)"];
    let counted = |s: &&str| match across_exec {
        AcrossExec::Recreated => s.starts_with("MIGRATION("),
        _ => s.starts_with("MIGRATION"),
    };
    let updates: Vec<&str> = seen.iter().map(String::as_str).filter(counted).collect();
    let wanted = UPDATE.repeat(accepted);
    if updates != wanted {
        return Err(differ("the updates' events", &wanted, &updates));
    }
    let count = |name: &str| seen.iter().filter(|s| *s == name).count();
    let resets = commands.iter().filter(|c| c.resets()).count();
    // A RESET before clients have reconnected reaches none; the guest's boot count shows it anyway.
    let missed = across_exec == AcrossExec::Recreated && accepted > 0 && count("RESET") < resets;
    if count("RESET") != resets && !missed {
        return Err(format!("expected {resets} RESET, saw {}", list(seen)));
    }
    let known = |s: &&String| {
        s.starts_with("MIGRATION") || matches!(s.as_str(), "STOP" | "RESUME" | "RESET")
    };
    match seen.iter().find(|s| !known(s)) {
        Some(unknown) => Err(format!("unexpected event {unknown} in {}", list(seen))),
        // Clients miss every event before they have reconnected.
        None if across_exec == AcrossExec::Recreated => Ok(()),
        None => race.survived(seen),
    }
}

fn list<S: AsRef<str>>(labels: &[S]) -> String {
    if labels.is_empty() {
        return "none".into();
    }
    labels.iter().map(S::as_ref).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("setup STOP active MIGRATION_PASS device completed", true, true)]
    #[case("setup STOP active device completed RESUME", true, true)]
    #[case("setup STOP active device RESUME completed", true, false)]
    #[case("setup STOP active device completed RESUME RESUME", true, false)]
    #[case("setup STOP active device completed failed RESUME", false, true)]
    #[case("setup STOP active device completed failed", false, false)]
    #[case("setup failing failed", false, true)]
    fn clients_that_reconnect_may_miss_the_end_of_an_update(
        #[case] seen: &str,
        #[case] completed: bool,
        #[case] allowed: bool,
    ) {
        let ending = if completed { Ending::Completed } else { Ending::Failed(String::new()) };
        let action = Action::Update {
            mode: Mode::CprExec,
            expect: crate::scenario::Expect::Any,
            ending,
            culprit: String::new(),
            errno: None,
        };
        let full = |event: &str| match event.starts_with(char::is_lowercase) {
            true => format!("MIGRATION({event})"),
            false => event.to_owned(),
        };
        let seen: Vec<String> = seen.split_whitespace().map(full).collect();
        let wanted = expected(&action, true, AcrossExec::Recreated);
        assert_eq!(
            fits(&wanted, &seen) || fails_early(&action, AcrossExec::Recreated, &seen),
            allowed
        );
    }

    #[rstest]
    #[case(&["A", "[B]", "C"], "A B C", true)]
    #[case(&["A", "[B]", "C"], "A C", true)]
    #[case(&["A", "[B]", "C"], "A B", false)]
    #[case(&["A", "[B]", "C"], "A C B", false)]
    #[case(&["A"], "A A", false)]
    #[case(&["A", "[B]*", "C"], "A B B B C", true)]
    #[case(&["A", "[B]*", "C"], "A C", true)]
    #[case(&["A", "[B]*", "C"], "A C B", false)]
    #[case(&[], "A", false)]
    fn bracketed_events_are_optional(
        #[case] wanted: &[&'static str],
        #[case] seen: &str,
        #[case] fit: bool,
    ) {
        let seen: Vec<String> = seen.split_whitespace().map(str::to_owned).collect();
        assert_eq!(fits(wanted, &seen), fit);
    }
}
