//! Checks the events of commands that were sent at once: each command takes effect once, and none
//! in the middle of an update.

use std::collections::VecDeque;

use super::interrupted::update;
use crate::scenario::RaceCommand;

/// A race to be judged.
#[derive(Clone, Copy)]
pub struct Race<'a> {
    /// The commands, in the order sent.
    pub commands: &'a [RaceCommand],
    /// Number of updates that were accepted.
    pub accepted: usize,
    /// Whether the guest ran before.
    pub ran: bool,
}

impl Race<'_> {
    fn count(&self, wanted: RaceCommand) -> usize {
        self.commands.iter().filter(|command| **command == wanted).count()
    }

    /// Whether the guest must run afterwards.
    fn runs_in_the_end(&self) -> bool {
        let settle =
            |command: &&RaceCommand| matches!(command, RaceCommand::Stop | RaceCommand::Cont);
        let last = self.commands.iter().rfind(settle);
        last.map_or(self.ran, |command| *command == RaceCommand::Cont)
    }

    /// Checks the events of a VMM that is still running.
    pub fn survived(&self, seen: &[String]) -> Result<(), String> {
        let progress = self.follow(seen)?;
        if progress.updates != self.accepted || !progress.pending.is_empty() {
            return Err(format!("{} updates were accepted, saw {}", self.accepted, list(seen)));
        }
        if progress.runs != self.runs_in_the_end() {
            let must = if progress.runs { "stopped" } else { "running" };
            return Err(format!("the guest must be {must} at the end, saw {}", list(seen)));
        }
        Ok(())
    }

    /// Checks the events of a VMM that has ended: every accepted update must be done by then,
    /// except that the end may overtake an update's last event, and a guest may end its VMM in the
    /// middle of one.
    pub fn ended(&self, seen: &[String]) -> Result<(), String> {
        let progress = self.follow(seen)?;
        let by_guest = self.commands.contains(&RaceCommand::GuestExit);
        let fits = match by_guest {
            true => progress.updates <= self.count(RaceCommand::Migrate),
            false => progress.updates == self.accepted && progress.pending.len() <= 1,
        };
        if fits {
            return Ok(());
        }
        Err(format!("{} updates were accepted before the end, saw {}", self.accepted, list(seen)))
    }

    fn follow(&self, seen: &[String]) -> Result<Progress, String> {
        let mut progress = Progress { updates: 0, pending: VecDeque::new(), runs: self.ran };
        let (mut stops, mut conts) = (self.count(RaceCommand::Stop), self.count(RaceCommand::Cont));
        // The last event of an update may come after that of the next command.
        for event in seen.iter().map(String::as_str) {
            let between = progress.pending.len() <= 1;
            match event {
                // Counted elsewhere; a reset may come anywhere.
                "RESET" | "SHUTDOWN" => {}
                "MIGRATION(setup)" if progress.pending.is_empty() => {
                    progress.updates += 1;
                    progress.pending = update(progress.runs).into_iter().skip(1).collect();
                }
                event if progress.pending.front() == Some(&event) => {
                    progress.pending.pop_front();
                    progress.runs = match event {
                        "STOP" => false,
                        "RESUME" => true,
                        _ => progress.runs,
                    };
                }
                "STOP" if progress.runs && stops > 0 && between => {
                    (stops, progress.runs) = (stops - 1, false)
                }
                "RESUME" if !progress.runs && conts > 0 && between => {
                    (conts, progress.runs) = (conts - 1, true);
                }
                other => return Err(format!("unexpected {other} in {}", list(seen))),
            }
        }
        Ok(progress)
    }
}

/// State derived from the events so far.
struct Progress {
    /// Number of updates that have begun.
    updates: usize,
    /// Events of the last update that are still to come.
    pending: VecDeque<&'static str>,
    /// Whether the guest runs.
    runs: bool,
}

fn list(seen: &[String]) -> String {
    if seen.is_empty() { "no event".to_owned() } else { seen.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RaceCommand::{Cont, GuestExit, Migrate, Quit, Reset, Stop};
    use rstest::rstest;

    const RAN: &str = "setup STOP active device RESUME completed";
    const STOOD: &str = "setup active device completed";

    fn full(labels: &str) -> Vec<String> {
        let full = |event: &str| match event.starts_with(char::is_lowercase) {
            true => format!("MIGRATION({event})"),
            false => event.to_owned(),
        };
        labels.split_whitespace().map(full).collect()
    }

    #[rstest]
    #[case(&[Migrate, Migrate], true, RAN, true)]
    #[case(&[Migrate, Migrate], false, STOOD, true)]
    #[case(&[Migrate, Migrate], true, STOOD, false)]
    #[case(&[Migrate, Migrate], false, RAN, false)]
    #[case(&[Migrate, Migrate], true, "setup STOP active device completed", false)]
    #[case(&[Migrate, Migrate], true, "setup STOP active device RESUME RESUME completed", false)]
    #[case(&[Migrate, Migrate], true, "STOP RESUME setup STOP active device RESUME completed", false)]
    #[case(&[Migrate, Stop], true, "setup STOP active device RESUME completed STOP", true)]
    #[case(&[Migrate, Stop], true, "setup STOP active device RESUME STOP completed", true)]
    #[case(&[Migrate, Stop], true, "STOP setup active device completed", true)]
    #[case(&[Migrate, Stop], true, RAN, false)]
    #[case(&[Migrate, Stop], true, "setup STOP active device RESUME completed STOP STOP", false)]
    #[case(&[Migrate, Cont], false, "setup active device completed RESUME", true)]
    #[case(&[Migrate, Cont], false, STOOD, false)]
    #[case(&[Migrate, Reset], true, "setup STOP active RESET device RESUME completed", true)]
    fn each_command_stops_the_guest_once(
        #[case] commands: &[RaceCommand],
        #[case] ran: bool,
        #[case] seen: &str,
        #[case] allowed: bool,
    ) {
        let race = Race { commands, accepted: 1, ran };
        let judged = race.survived(&full(seen));
        assert_eq!(judged.is_ok(), allowed, "{judged:?}");
    }

    #[rstest]
    #[case(&[Migrate, Quit], 1, "setup STOP active device RESUME SHUTDOWN", true)]
    #[case(&[Migrate, Quit], 1, "setup STOP active device RESUME completed SHUTDOWN", true)]
    #[case(&[Migrate, Quit], 1, "setup STOP active device SHUTDOWN", false)]
    #[case(&[Migrate, Quit], 1, "SHUTDOWN", false)]
    #[case(&[Quit, Migrate], 0, "SHUTDOWN", true)]
    #[case(&[Quit, Migrate], 0, "setup SHUTDOWN", false)]
    #[case(&[GuestExit, Migrate], 1, "setup STOP active SHUTDOWN", true)]
    #[case(&[GuestExit, Migrate], 0, "SHUTDOWN", true)]
    #[case(&[GuestExit, Migrate], 1, "setup active SHUTDOWN", false)]
    fn accepted_updates_are_done_before_the_end(
        #[case] commands: &[RaceCommand],
        #[case] accepted: usize,
        #[case] seen: &str,
        #[case] allowed: bool,
    ) {
        let judged = Race { commands, accepted, ran: true }.ended(&full(seen));
        assert_eq!(judged.is_ok(), allowed, "{judged:?}");
    }
}
