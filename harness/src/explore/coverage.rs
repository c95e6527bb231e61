//! Counts which kinds of steps were tried in which states, and how updates ended.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::grammar::Grammar;
use super::kind::StepKind;
use crate::model::guests::Marker;
use crate::model::reference::{Run, State};
use crate::run::{Report, Verdict};
use crate::scenario::{Case, Limit, SerialKind, Step, Vm};

/// A class of states: a column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The guest has not started.
    Prelaunch,
    /// The guest runs.
    Running,
    /// The guest is stopped.
    Paused,
    /// The guest runs, after an update that did not succeed.
    RunningAfterFailure,
    /// The guest is stopped, after an update that did not succeed.
    PausedAfterFailure,
    /// A limit is set.
    Limited,
}

impl Phase {
    /// All phases.
    pub const ALL: [Self; 6] = [
        Self::Prelaunch,
        Self::Running,
        Self::Paused,
        Self::RunningAfterFailure,
        Self::PausedAfterFailure,
        Self::Limited,
    ];

    /// Returns the phase of `state`; `None` if the VMM has ended.
    pub fn of(state: &State) -> Option<Self> {
        match (state.run, state.after_failure) {
            (Run::Gone, _) => None,
            _ if state.limit.is_some() => Some(Self::Limited),
            (Run::Prelaunch, _) => Some(Self::Prelaunch),
            (Run::Running, false) => Some(Self::Running),
            (Run::Running, true) => Some(Self::RunningAfterFailure),
            (Run::Paused, false) => Some(Self::Paused),
            (Run::Paused, true) => Some(Self::PausedAfterFailure),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::RunningAfterFailure => "running, failed",
            Self::PausedAfterFailure => "paused, failed",
            Self::Limited => "limited",
        }
    }
}

/// What an exploration has done.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Number of sequences drawn.
    pub sequences: usize,
    /// Number of those that could not be run here.
    pub ignored: usize,
    /// Number of those ignored because this machine failed to run them.
    pub broken: usize,
    /// Number of steps carried out.
    pub steps: usize,
    cells: BTreeMap<(StepKind, Phase), usize>,
    /// Number of updates by what was wrong with them and how they ended.
    outcomes: BTreeMap<String, BTreeMap<String, usize>>,
}

impl Coverage {
    /// Whether sequences were run, and none was lost to this machine.
    pub fn proves_something(&self) -> bool {
        self.sequences > self.ignored && self.broken == 0
    }

    /// Adds a sequence and its report.
    pub fn add(&mut self, grammar: &Grammar, case: &Case, report: &Report) {
        self.sequences += 1;
        if matches!(report.verdict, Verdict::Ignored(_) | Verdict::Broken(_)) {
            self.ignored += 1;
            self.broken += usize::from(matches!(report.verdict, Verdict::Broken(_)));
            return;
        }
        let done = failed_step(report).unwrap_or(case.steps.len());
        let model = grammar.model(&case.vm);
        let mut state = model.boot();
        for step in case.steps.iter().take(done) {
            self.steps += usize::from(!matches!(step, Step::Boot));
            let kind = StepKind::of(&state, step);
            if let (Some(kind), Some(phase)) = (kind, Phase::of(&state)) {
                *self.cells.entry((kind, phase)).or_default() += 1;
            }
            state = model.after(&state, step);
        }
        self.add_outcomes(case, report);
    }

    fn add_outcomes(&mut self, case: &Case, report: &Report) {
        for seen in &report.observed {
            let number = number_of(&seen.step).unwrap_or_default();
            let armed = number.checked_sub(2).and_then(|before| case.steps.get(before));
            let what = match (armed, number.checked_sub(1).and_then(|at| case.steps.get(at))) {
                (Some(Step::Inject(inject)), Some(Step::Migrate(_))) => {
                    format!("fault {}", inject.action)
                }
                (_, Some(Step::Migrate(migrate))) => migrate.kind(),
                (_, Some(Step::Interrupt(_))) => "interrupted".to_owned(),
                _ => "good".to_owned(),
            };
            for ending in &seen.endings {
                let endings = self.outcomes.entry(what.clone()).or_default();
                *endings.entry(ending.clone()).or_default() += 1;
            }
        }
    }

    /// Formats the table: a count, `·` for a possible combination not tried, blank for an
    /// impossible one.
    pub fn table(&self, grammar: &Grammar) -> String {
        let width = Phase::ALL.map(|phase| phase.name().len());
        let mut text = format!("{:<18}", "");
        for (phase, width) in Phase::ALL.iter().zip(width) {
            text.push_str(&format!("  {:>width$}", phase.name()));
        }
        text.push('\n');
        for kind in StepKind::ALL {
            let mut line = format!("{kind:<18}");
            for (phase, width) in Phase::ALL.into_iter().zip(width) {
                let count = self.cells.get(&(kind, phase));
                let cell = match count {
                    Some(count) => count.to_string(),
                    None if is_possible(grammar, kind, phase) => "·".to_owned(),
                    None => String::new(),
                };
                line.push_str(&format!("  {cell:>width$}"));
            }
            // Leaves out rows that are impossible on this VMM.
            if line.trim_end().len() > 18 {
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        text
    }

    /// Formats how updates ended, by what was wrong with them.
    pub fn outcomes(&self) -> String {
        let of = |(what, endings): (&String, &BTreeMap<String, usize>)| {
            let counts: Vec<String> =
                endings.iter().map(|(ending, count)| format!("{count} {ending}")).collect();
            format!("{what}: {}", counts.join(", "))
        };
        let mut lines = vec![String::new()];
        for item in self.outcomes.iter().map(of) {
            let full = lines.last().is_some_and(|line| line.len() + item.len() > 96);
            if full {
                lines.push(String::new());
            }
            if let Some(line) = lines.last_mut() {
                let gap = if line.is_empty() { "" } else { "; " };
                line.push_str(&format!("{gap}{item}"));
            }
        }
        lines.join(";\n")
    }

    /// Returns everything as JSON.
    pub fn json(&self) -> Value {
        let cells: Vec<Value> = self
            .cells
            .iter()
            .map(|((kind, phase), count)| {
                json!({ "step": kind.to_string(), "state": phase.name(), "count": count })
            })
            .collect();
        json!({
            "sequences": self.sequences,
            "ignored": self.ignored,
            "steps": self.steps,
            "coverage": cells,
            "updates": self.outcomes,
        })
    }
}

/// Returns the number, from 1, of the step at which `report` failed.
pub fn failed_step(report: &Report) -> Option<usize> {
    report.failed_step.as_deref().and_then(number_of)
}

/// Parses the number in a label such as `step 3 (stop)`.
fn number_of(label: &str) -> Option<usize> {
    label.strip_prefix("step ")?.split(' ').next()?.parse().ok()
}

/// Whether some VM has a state of `phase` in which a step of `kind` is possible.
fn is_possible(grammar: &Grammar, kind: StepKind, phase: Phase) -> bool {
    let own = |vm: Vm| [vm.clone(), Vm { serial: SerialKind::Unix, own_binary: true, ..vm }];
    grammar.vms().flat_map(|vm| own(vm.clone())).any(|vm| {
        let model = grammar.model(&vm);
        let mut state = model.boot();
        state.saved = true;
        (state.run, state.after_failure) = match phase {
            Phase::Prelaunch => (Run::Prelaunch, false),
            Phase::Running | Phase::Limited => (Run::Running, false),
            Phase::Paused => (Run::Paused, false),
            Phase::RunningAfterFailure => (Run::Running, true),
            Phase::PausedAfterFailure => (Run::Paused, true),
        };
        let limited = phase == Phase::Limited;
        state.limit = limited.then_some(Limit::Nofile(crate::scenario::Amount::Above(1)));
        let last = model.guest.markers.saturating_sub(1);
        let first = Marker::default();
        let markers = [
            first,
            Marker { waits: true, ..first },
            Marker { waits: true, sent: true, ..first },
            Marker { last, waits: true, sent: false },
        ];
        markers.into_iter().any(|marker| {
            [false, true].into_iter().any(|client| {
                let state = State { marker, client, ..state.clone() };
                grammar.vocabulary().has_kind(&model, &state, kind)
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exploring_nothing_proves_nothing() {
        let proves = |sequences, ignored, broken| {
            Coverage { sequences, ignored, broken, ..Coverage::default() }.proves_something()
        };
        assert!(proves(3, 2, 0));
        assert!(!proves(3, 3, 0));
        assert!(!proves(0, 0, 0));
        assert!(!proves(3, 1, 1));
    }
}
