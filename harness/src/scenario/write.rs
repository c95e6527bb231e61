//! Writes a case as a scenario file, formatted as if written by hand.

use serde::Serialize;
use toml::{Table, Value};

use crate::scenario::{Migrate, Step, Vm};

/// The order of keys in a scenario; all others follow.
const ORDER: [&str; 21] = [
    "guest",
    "ring",
    "cpus",
    "memory",
    "share",
    "pages",
    "serial",
    "paused",
    "cmdline",
    "command",
    "channel",
    "rehearsal",
    "deadline-ms",
    "max-downtime-ms",
    "expect",
    "times",
    "point",
    "action",
    "with",
    "errno",
    "text",
];

/// A scenario to write.
pub struct Scenario<'a> {
    /// Comment lines that say where it comes from.
    pub comment: &'a str,
    /// What the scenario shows.
    pub summary: &'a str,
    /// The VM.
    pub vm: &'a Vm,
    /// The steps.
    pub steps: &'a [Step],
    /// The guest's seed.
    pub seed: u64,
    /// The deadline in milliseconds; none for the default.
    pub deadline_ms: Option<u64>,
}

impl Scenario<'_> {
    /// The text of the scenario file.
    pub fn text(&self) -> String {
        let mut text: String = self.comment.lines().map(|line| format!("# {line}\n")).collect();
        text.push_str(&format!("summary = {}\n", Value::from(self.summary)));
        let vm = without_defaults(self.vm, &Vm::default());
        if !vm.is_empty() {
            text.push_str(&format!("vm = {}\n", inline(&Value::Table(vm))));
        }
        text.push_str(&steps(self.steps));
        // The parser masks the seeds it draws, because TOML's integers are signed.
        text.push_str(&format!("seed = {}\n", self.seed));
        if let Some(ms) = self.deadline_ms {
            text.push_str(&format!("time-limit-ms = {ms}\n"));
        }
        text
    }
}

/// Formats the steps as `steps = […]`.
pub fn steps(steps: &[Step]) -> String {
    let lines: String = steps.iter().map(|step| format!("  {},\n", of_step(step))).collect();
    format!("steps = [\n{lines}]\n")
}

/// Formats one step.
pub fn of_step(step: &Step) -> String {
    let value = match step {
        Step::Migrate(migrate) => {
            let update = without_defaults(migrate, &Migrate::default());
            Value::Table(Table::from_iter([("migrate".to_owned(), Value::Table(update))]))
        }
        step => value(step),
    };
    inline(&value)
}

fn value(of: &impl Serialize) -> Value {
    Value::try_from(of).unwrap_or(Value::Table(Table::new()))
}

/// The keys of `of` whose values differ from those of `default`.
fn without_defaults<T: Serialize>(of: &T, default: &T) -> Table {
    let (Value::Table(mut table), default) = (value(of), value(default)) else {
        return Table::new();
    };
    table.retain(|key, value| default.get(key) != Some(value));
    table
}

fn inline(value: &Value) -> String {
    match value {
        Value::Table(table) if table.is_empty() => "{}".to_owned(),
        Value::Table(table) => {
            let place = |key: &str| ORDER.iter().position(|k| *k == key).unwrap_or(ORDER.len());
            let mut keys: Vec<&String> = table.keys().collect();
            keys.sort_by_key(|key| place(key));
            let pair = |key: &&String| format!("{key} = {}", inline(&table[key.as_str()]));
            format!("{{ {} }}", keys.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        Value::Array(values) => {
            format!("[{}]", values.iter().map(inline).collect::<Vec<_>>().join(", "))
        }
        plain => plain.to_string(),
    }
}
