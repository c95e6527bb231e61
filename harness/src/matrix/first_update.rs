//! Tries a first update between two builds, which decides whether the cases are run.

use super::Route;
use crate::run::{Options, Report, Verdict, case};
use crate::scenario::{Case, ScenarioError, parse};

const GOOD: &str = r#"
summary = "a running guest is updated to another build"
vm = { guest = "pattern", cpus = 2 }
steps = ["boot", { wait = { sweeps = 1 } }, { migrate = {} }, { wait = { sweeps = 1 } }, "quit"]
"#;

const REFUSED: &str = r#"
summary = "another build refuses a guest, which keeps running"
vm = { guest = "pattern", cpus = 2 }
steps = [
  "boot",
  { wait = { sweeps = 1 } },
  { migrate = { expect = { not-completed = "" } } },
  { wait = { sweeps = 1 } },
  "quit",
]
"#;

/// How the first update ended.
#[derive(Debug)]
pub enum FirstUpdate {
    /// The guest runs in the other build.
    Updated,
    /// The other build refused its state format, for this reason; the guest keeps running.
    Refused(String),
    /// It could not be tried here.
    NotTried(Report),
    /// Any other result, which is an error.
    Failed(Report),
}

/// Tries one update on `route`.
pub fn try_first_update(route: &Route, options: &Options) -> Result<FirstUpdate, ScenarioError> {
    let good = case::run(&route.case(only("matrix/updated", GOOD)?), options);
    match good.verdict {
        Verdict::Pass => return Ok(FirstUpdate::Updated),
        Verdict::Ignored(_) | Verdict::Broken(_) => return Ok(FirstUpdate::NotTried(good)),
        Verdict::Fail(_) => {}
    }
    let refused = case::run(&only("matrix/refused", REFUSED)?, options);
    Ok(match (&refused.verdict, refused.failed_updates.first()) {
        (Verdict::Pass, Some(update)) if is_of_formats(&update.error) => {
            FirstUpdate::Refused(update.error.clone())
        }
        _ => FirstUpdate::Failed(good),
    })
}

/// Whether the error is that one build does not read what the other writes, the only valid reason.
fn is_of_formats(error: &str) -> bool {
    error.contains("this VM writes")
}

fn only(name: &str, text: &str) -> Result<Case, ScenarioError> {
    let mut cases = parse::parse(name, name, text)?;
    cases.pop().ok_or_else(|| ScenarioError::sense(name, "no case".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_another_format_as_a_reason_to_refuse() {
        let command = "cpr-exec-command";
        let formats = [
            "reads CPR state version 1, this VM writes version 2",
            "does not load section vcpu, which this VM writes",
        ];
        for difference in formats {
            assert!(is_of_formats(&format!("{command} {difference}")));
        }
        for other in ["\"b\" did not answer within 2000 ms", "describes 1 vCPU, this VM has 2"] {
            assert!(!is_of_formats(&format!("{command} {other}")));
        }
    }

    #[test]
    fn the_cases_are_valid() {
        only("good", GOOD).unwrap();
        only("refused", REFUSED).unwrap();
    }
}
