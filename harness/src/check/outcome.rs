//! Checks that an update ends as the scenario says.

use super::{Action, Check, Ending, Scene};
use crate::scenario::{Expect, RaceCommand};

/// The `outcome` check.
pub const CHECK: Check =
    Check { name: "outcome", claim: "an update ends as the scenario says it must", run };

fn run(scene: &Scene<'_>) -> Result<(), String> {
    match scene.action {
        Action::Update { expect, ending, .. } => {
            let revived = scene.handover.revival().is_some();
            let fits = matches!(
                (expect, ending),
                (Expect::Completed, Ending::Completed)
                    | (Expect::Refused(_), Ending::Refused(_))
                    | (Expect::Failed(_), Ending::Failed(_))
                    | (Expect::NotCompleted(_), Ending::Refused(_) | Ending::Failed(_))
                    | (Expect::Cancelled, Ending::Cancelled)
                    | (Expect::Any | Expect::Survives, _)
            );
            let revived_as_it_must = *expect == Expect::Revived && revived;
            if fits || revived_as_it_must {
                return Ok(());
            }
            let wanted = match expect {
                Expect::Completed => "succeed",
                Expect::Refused(_) => "be refused",
                Expect::Failed(_) => "fail",
                Expect::Cancelled => "be cancelled",
                Expect::NotCompleted(_) => "be refused or fail",
                Expect::Revived => "cost the VMM its process",
                Expect::Any | Expect::Survives | Expect::Ended => "end",
            };
            Err(format!("the update should {wanted}; it {}", describe(ending)))
        }
        Action::Race { commands, accepted } => {
            let asked = commands.iter().filter(|c| **c == RaceCommand::Migrate).count();
            let wanted = asked.min(1);
            if *accepted == wanted {
                return Ok(());
            }
            Err(format!(
                "of {asked} simultaneous updates {accepted} were accepted, expected {wanted}"
            ))
        }
        Action::Interrupted { with, early, ending } => match (ending, *early && with.cancels()) {
            (Ending::Completed, false) => Ok(()),
            (Ending::Refused(error), true) if error.contains("cancelled") => Ok(()),
            (ending, cancelled) => {
                let wanted = if cancelled { "be refused as cancelled" } else { "succeed" };
                Err(format!(
                    "the update that {with:?} interrupted should {wanted}; it {}",
                    describe(ending)
                ))
            }
        },
        _ => Ok(()),
    }
}

fn describe(ending: &Ending) -> String {
    match ending {
        Ending::Completed => "succeeded".into(),
        Ending::Refused(error) => format!("was refused: {error}"),
        Ending::Failed(error) => format!("failed: {error}"),
        Ending::Cancelled => "was cancelled".into(),
    }
}
