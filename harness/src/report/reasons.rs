//! Failed cases, grouped by the reason of their failure.

use std::cmp::Reverse;

use crate::run::Report;
use crate::run::signature::Signature;

/// Cases that failed for one reason.
pub struct Reason<'a> {
    signature: Option<Signature>,
    /// The first of them.
    pub first: &'a Report,
    /// How many there are.
    pub count: usize,
}

/// Groups failed cases by their first finding, without what differs from run to run; the most
/// frequent reason is first.
pub fn of<'a>(failed: impl IntoIterator<Item = &'a Report>) -> Vec<Reason<'a>> {
    let mut reasons: Vec<Reason<'a>> = Vec::new();
    for report in failed {
        let signature = Signature::of_report(report);
        match reasons.iter_mut().find(|reason| reason.signature == signature) {
            Some(reason) => reason.count += 1,
            None => reasons.push(Reason { signature, first: report, count: 1 }),
        }
    }
    reasons.sort_by_key(|reason| Reverse(reason.count));
    reasons
}

impl Reason<'_> {
    /// Returns the first finding of the first case.
    pub fn finding(&self) -> String {
        self.first.verdict.findings().into_iter().next().unwrap_or_default()
    }

    /// Formats the reason, its first case, and what to do about that.
    pub fn lines(&self) -> Vec<String> {
        let Self { first, count, .. } = self;
        let finding = self.finding();
        let step = first.failed_step.as_ref().map(|step| format!(" at {step}"));
        let which = if *count == 1 { "case" } else { "first" };
        let mut lines = vec![
            format!("  {count} x {finding}"),
            format!("    {which}: {}{}", first.case, step.unwrap_or_default()),
        ];
        lines.extend(first.repro_commands().into_iter().map(|line| format!("    {line}")));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Finding;
    use crate::run::Verdict;

    #[test]
    fn failures_that_differ_in_numbers_only_have_one_reason() {
        let report = |case: &str, check: &str, message: &str| Report {
            verdict: Verdict::Fail(vec![Finding::new(check, message)]),
            failed_step: Some("step 2 (migrate)".into()),
            ..Report::of(case, format!("replay {case}"), format!("show {case}"))
        };
        let failed = [
            report("a/one", "pid", "is gone"),
            report("a/two", "leftovers", "child 41 is left"),
            report("a/three", "leftovers", "child 42 is left"),
            report("a/four", "fds", "child 42 is left"),
        ];
        let lines: Vec<String> = of(&failed).iter().flat_map(Reason::lines).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
          2 x leftovers: child 41 is left
            first: a/two at step 2 (migrate)
            replay: replay a/two
            show: show a/two
          1 x pid: is gone
            case: a/one at step 2 (migrate)
            replay: replay a/one
            show: show a/one
          1 x fds: child 42 is left
            case: a/four at step 2 (migrate)
            replay: replay a/four
            show: show a/four
        ");
    }
}
