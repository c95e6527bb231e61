//! The `doctor` command.

use std::process::ExitCode;

use super::{CliError, ENVIRONMENT};
use crate::backend::cpr_vmm::CprVmm;
use crate::doctor::reach::reach;
use crate::doctor::{Finding, Health, examine};
use crate::report::paint::{self, Paint};
use crate::report::stdout::say;
use crate::run;
use crate::scenario::set::Set;

/// Examines the host and prints the findings.
pub(super) fn main() -> Result<ExitCode, CliError> {
    // Probing QEMU starts one.
    run::guard();
    let vmm = CprVmm::carried()
        .map_err(|e| CliError::environment(format!("cannot find my own binary: {e}")))?;
    let findings = examine(&vmm);
    let width = findings.iter().map(|finding| finding.topic.len()).max().unwrap_or(0);
    for finding in &findings {
        lines(finding, width).iter().for_each(say);
    }
    let set = Set::find().map_err(CliError::usage)?;
    let cases: Vec<_> = set.cases.into_iter().filter(|case| !case.on_request).collect();
    let reach = reach(&cases, &vmm);
    // A missing prerequisite affects every case, whatever else it requires.
    let missing = findings.iter().any(|finding| finding.health == Health::Missing);
    let can = if missing { 0 } else { reach.can };
    say(format_args!("\n{can} of {} cases of {} can run here", cases.len(), set.origin));
    say("(what KVM does not support here only shows when a guest boots)");
    for (why, count) in &reach.cannot {
        say(format_args!("{count} cannot run: {why}"));
    }
    Ok(ExitCode::from(if can == 0 { ENVIRONMENT } else { 0 }))
}

fn lines(finding: &Finding, width: usize) -> Vec<String> {
    let (word, paint) = match finding.health {
        Health::Good => ("good", Paint::Good),
        Health::Limited => ("limited", Paint::Care),
        Health::Missing => ("MISSING", Paint::Bad),
    };
    let Finding { topic, seen, advice, .. } = finding;
    let mut lines = vec![format!("{}  {topic:<width$}  {seen}", paint::painted(word, 7, paint))];
    if !advice.is_empty() {
        lines.push(format!("{:<7}  {:<width$}  {advice}", "", "", width = width));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_printed_with_advice() {
        let findings = [
            Finding::good("RAM", "2 GiB"),
            Finding::limited("QEMU", "not found", "install it"),
            Finding::missing("KVM", "no such file", "load it"),
        ];
        let text: Vec<String> = findings.iter().flat_map(|f| lines(f, 4)).collect();
        insta::assert_snapshot!(anstream::adapter::strip_str(&text.join("\n")));
    }
}
