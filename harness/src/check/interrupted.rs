//! Checks the events of an interrupted update: all of the update's own, and the interruption's
//! event once, in a place where it may occur.

use super::diff::Difference;
use crate::scenario::Interruption;

/// Checks that `seen` is a valid sequence for an update of a guest that `ran`, interrupted by
/// `with`. `early`: `with` was handled before the guest stopped, otherwise after it resumed.
pub fn check(with: Interruption, early: bool, ran: bool, seen: &[String]) -> Result<(), String> {
    let allowed = sequences(with, early, ran);
    if allowed.iter().any(|sequence| sequence == seen) {
        return Ok(());
    }
    let differences = allowed.iter().map(|sequence| Difference::of(sequence, seen));
    let Some(closest) = differences.min_by_key(Difference::count) else { return Ok(()) };
    Err(format!(
        "the events differ from the closest of {} valid orders: {}\n{}",
        allowed.len(),
        closest.summary(),
        closest.unified()
    ))
}

fn sequences(with: Interruption, early: bool, ran: bool) -> Vec<Vec<&'static str>> {
    let own = match with {
        Interruption::Stop => ran.then_some("STOP"),
        Interruption::Cont => (!ran).then_some("RESUME"),
        Interruption::Reset | Interruption::GuestReset => Some("RESET"),
        Interruption::Quit => Some("SHUTDOWN"),
        _ => None,
    };
    let runs = match with {
        Interruption::Stop if early => false,
        Interruption::Cont if early => true,
        _ => ran,
    };
    let update = update(runs);
    let Some(own) = own else {
        return if early && with.cancels() { vec![Vec::new()] } else { vec![update] };
    };
    if with == Interruption::Quit {
        return match early {
            true => vec![vec![own]],
            // The old address space may outlive the new VMM.
            false => [&update[..update.len() - 1], &update]
                .map(|update| [update, &[own]].concat())
                .into(),
        };
    }
    let all = [vec![own], update.clone()].concat();
    if early {
        return vec![all];
    }
    // The guest resumes before the update is complete.
    let place = |at: usize| {
        let mut sequence = update.clone();
        sequence.insert(at, own);
        sequence
    };
    vec![place(update.len() - 1), place(update.len())]
}

/// The events of an update of a guest that `runs`.
pub(super) fn update(runs: bool) -> Vec<&'static str> {
    let all = [
        "MIGRATION(setup)",
        "STOP",
        "MIGRATION(active)",
        "MIGRATION(device)",
        "RESUME",
        "MIGRATION(completed)",
    ];
    all.into_iter().filter(|event| runs || event.starts_with("MIGRATION")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const RAN: &str = "setup STOP active device RESUME completed";
    const STOOD: &str = "setup active device completed";

    #[rstest]
    #[case(Interruption::Stop, false, true, "setup STOP active device RESUME completed STOP", true)]
    #[case(Interruption::Stop, false, true, "setup STOP active device RESUME STOP completed", true)]
    #[case(
        Interruption::Stop,
        false,
        true,
        "setup STOP active device STOP RESUME completed",
        false
    )]
    #[case(Interruption::Stop, false, true, RAN, false)]
    #[case(Interruption::Stop, false, false, STOOD, true)]
    #[case(Interruption::Stop, true, true, "STOP setup active device completed", true)]
    #[case(
        Interruption::Cont,
        true,
        false,
        "RESUME setup STOP active device RESUME completed",
        true
    )]
    #[case(
        Interruption::Reset,
        false,
        true,
        "RESET setup STOP active device RESUME completed",
        false
    )]
    #[case(Interruption::MigrateCancel, false, true, RAN, true)]
    #[case(Interruption::MigrateCancel, true, true, RAN, false)]
    #[case(Interruption::MigrateCancel, true, true, "", true)]
    #[case(Interruption::Quit, false, true, "setup STOP active device RESUME SHUTDOWN", true)]
    #[case(Interruption::Quit, false, true, "setup STOP active device SHUTDOWN", false)]
    #[case(Interruption::Quit, true, true, "SHUTDOWN", true)]
    #[case(Interruption::Half, false, true, "setup STOP active device RESUME", false)]
    fn the_interruption_is_reported_once_in_its_place(
        #[case] with: Interruption,
        #[case] early: bool,
        #[case] ran: bool,
        #[case] seen: &str,
        #[case] allowed: bool,
    ) {
        let full = |event: &str| match event.starts_with(char::is_lowercase) {
            true => format!("MIGRATION({event})"),
            false => event.to_owned(),
        };
        let seen: Vec<String> = seen.split_whitespace().map(full).collect();
        assert_eq!(check(with, early, ran, &seen).is_ok(), allowed);
    }
}
